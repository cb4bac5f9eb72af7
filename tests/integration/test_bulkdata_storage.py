"""Files of a FHIR server's export read from the customer's storage account (azure-and-aidbox D).

The account is the real Azurite, whose own log of all headers tells what reached it; the FHIR server and a
stranger are loopback servers that keep every request.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from authority import Authority
from azure.core.credentials import AccessToken
from azure_storage import ACCOUNT, KEY, Azurite, start_azurite, storage_token
from breaking_proxy import BreakingProxy
from starlette.responses import RedirectResponse, Response
from test_bulkdata_protocol import TOKEN, Server, Token

from pipeline.azure.storage_access import storage_access
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.exchange import Exchange
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.bulkdata.profiles import PROFILES
from pipeline.config import DownloadStorage
from pipeline.errors import AuthError, DownloadRefused, ExportError

CONTENT = b'{"resourceType":"Patient","id":"1"}\r\n' * 40


class Credential:
    """What azure-identity gives: a token, another one each time that the old one ran out."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.asked = 0

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        assert scopes == ("https://storage.azure.com/.default",)
        self.asked += 1
        return AccessToken(self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0], 0)


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Azurite]:
    """Over TLS, takes bearer tokens, and logs the headers of each request."""
    with start_azurite(tmp_path_factory.mktemp("storage"), authority, headers=True) as running:
        yield running


@pytest.fixture(scope="module")
def container(account: Azurite) -> str:
    name = account.new_container("fhir")
    account.container(name).upload_blob("export-1/Patient-1-1.ndjson", CONTENT)
    return name


@pytest.fixture(scope="module")
def fhir_and_stranger() -> Iterator[tuple[Server, Server]]:
    with Server() as one, Server() as two:
        yield one, two


@pytest.fixture
def fhir(fhir_and_stranger: tuple[Server, Server]) -> Server:
    for each in fhir_and_stranger:
        each.handlers.clear()
        each.seen.clear()
    return fhir_and_stranger[0]


@pytest.fixture
def stranger(fhir: Server, fhir_and_stranger: tuple[Server, Server]) -> Server:
    return fhir_and_stranger[1]


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(auth=Token(), timeout=20) as client:
        yield client


def policy_for(
    account: Azurite, auth: Any = "storage", *, secret: str = "", credential: Any = None, **storage: Any
) -> DownloadPolicy:
    settings = {"account": ACCOUNT, "endpoint": account.endpoint, "kind": "default", **storage}
    access = storage_access(DownloadStorage(**settings), lambda _: secret.encode(), credential=credential)
    return DownloadPolicy(auth, storage=access)


def client_for(http: httpx.Client, policy: DownloadPolicy, fhir: Server | None = None) -> BulkClient:
    base = fhir.fhir if fhir else "https://fhir.example.org/r4"
    return BulkClient(base, http, PROFILES["azure-fhir-export"], policy, sleep=lambda _: None)


def file(url: str, number: int = 0) -> ManifestFile:
    return ManifestFile("output", number, "Patient", url, 40)


def blob_url(account: Azurite, container: str) -> str:
    return f"{account.endpoint}/{container}/export-1/Patient-1-1.ndjson"


class HeadersLog:
    """What Azurite logs about requests from now on: it writes late, so marker requests tell when it is all
    there."""

    def __init__(self, account: Azurite) -> None:
        self._account = account
        self._start = self._settled()

    def lines(self) -> list[str]:
        """One for each request since, with all its headers."""
        end = self._settled()
        whole = self._account.headers_log.read_text(errors="replace")[self._start : end].splitlines()
        return [line for line in whole if "RequestHeaders" in line and "marker-" not in line]

    def _settled(self) -> int:
        marker = f"marker-{uuid.uuid4().hex}"
        httpx.get(f"{self._account.endpoint}/{marker}/x")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            text = self._account.headers_log.read_text(errors="replace")
            if marker in text:
                return text.index(marker)
            time.sleep(0.05)
        raise AssertionError("Azurite does not write its log")


def ways(account: Azurite) -> dict[str, dict[str, Any]]:
    return {
        "identity": {"credential": Credential(storage_token())},
        "sas": {"kind": "sas", "sas": "env:X", "secret": f"?{account.sas('r')}"},
        "connection string": {
            "kind": "connection-string",
            "connection_string": "env:X",
            "secret": account.connection_string,
            "endpoint": None,
        },
    }


@pytest.mark.parametrize("way", ["identity", "sas", "connection string"])
def test_a_plain_blob_url_is_read_with_the_accounts_credential(
    account: Azurite, container: str, http: httpx.Client, tmp_path: Path, way: str
) -> None:
    client = client_for(http, policy_for(account, **ways(account)[way]))
    got = client.download(file(blob_url(account, container)), False, tmp_path / "f")
    assert ((tmp_path / "f").read_bytes(), got.lines) == (CONTENT, 40)
    assert (
        got.etag
        == account.container(container)
        .get_blob_client("export-1/Patient-1-1.ndjson")
        .get_blob_properties()["etag"]
    )


def test_a_signed_url_of_the_account_is_asked_for_as_it_is(
    account: Azurite, container: str, http: httpx.Client, tmp_path: Path
) -> None:
    """Two credentials at once would be refused by the account; ours is not even asked for."""
    credential = Credential("never")
    client = client_for(http, policy_for(account, credential=credential))
    client.download(file(f"{blob_url(account, container)}?{account.sas('r')}"), False, tmp_path / "f")
    assert credential.asked == 0


def test_a_signed_url_that_has_expired_wants_a_fresh_manifest(
    account: Azurite, container: str, http: httpx.Client, tmp_path: Path
) -> None:
    """Protocol fact 30: DownloadRefused makes the caller fetch one; our own credential is not at fault."""
    client = client_for(http, policy_for(account, credential=Credential(storage_token())))
    signed = f"{blob_url(account, container)}?{account.sas('r', minutes=-1)}"
    with pytest.raises(DownloadRefused, match="fresh manifest"):
        client.download(file(signed), False, tmp_path / "f")


def test_a_credential_in_the_headers_is_not_sent_where_redirects_are_followed(
    fhir: Server, http: httpx.Client
) -> None:
    """Only the storage account's own requests, which follow none, may carry one."""
    fhir.on("GET", "/f", Response(CONTENT))
    for redirects in (True, False):
        with Exchange(http).stream(
            "GET", f"{fhir.origin}/f", {"Authorization": "Bearer x"}, bearer=False, redirects=redirects
        ) as response:
            assert response.status_code == 200
    assert [seen.headers.get("authorization") for seen in fhir.seen] == [None, "Bearer x"]


def test_each_request_asks_for_the_token_anew(
    account: Azurite, container: str, http: httpx.Client, tmp_path: Path
) -> None:
    """Hours of downloads outlive a token: the credential renews it, and we never keep one."""
    tokens = [storage_token(seconds=3600 + number) for number in range(3)]
    log = HeadersLog(account)
    client = client_for(http, policy_for(account, credential=Credential(*tokens)))
    for number in range(3):
        client.download(file(blob_url(account, container)), False, tmp_path / str(number))
    assert [token in line for token, line in zip(tokens, log.lines(), strict=True)] == [True] * 3


EXPIRED = -60.0


@pytest.mark.parametrize(
    ("way", "kind", "status", "hint"),
    [
        ("expired token", AuthError, "40", "expired"),
        ("token for another service", AuthError, "40", "not for this account"),
        ("SAS without read", AuthError, "403", "lacks the permission read"),
        ("expired SAS", AuthError, "403", "expired"),
        ("another account's key", AuthError, "403", "account key is wrong or was renewed"),
        ("nobody", AuthError, "403", r"downloads\.storage\.kind"),
        ("missing blob", DownloadRefused, "404", "too early"),
        ("missing container", DownloadRefused, "404", "ask for the export again"),
    ],
)
def test_each_refusal_of_the_account_is_explained_without_a_secret(
    account: Azurite,
    container: str,
    http: httpx.Client,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: str,
    kind: type[ExportError],
    status: str,
    hint: str,
) -> None:
    other_key = account.connection_string.replace(KEY, "b3RoZXI" + KEY[7:])
    sas = {"kind": "sas", "sas": "env:X"}
    how: dict[str, Any] = {
        "expired token": {"credential": Credential(storage_token(seconds=EXPIRED))},
        "token for another service": {"credential": Credential(storage_token("https://other.example"))},
        "SAS without read": {**sas, "secret": account.sas("w")},
        "expired SAS": {**sas, "secret": account.sas("r", minutes=-1)},
        "another account's key": {**ways(account)["connection string"], "secret": other_key},
        "nobody": {"kind": "none"},
    }.get(way, {"credential": Credential(storage_token())})
    url = blob_url(account, container)
    url = url.replace("Patient-1-1", "Patient-9-9") if way == "missing blob" else url
    url = url.replace(container, "missing-container") if way == "missing container" else url
    caplog.set_level(logging.DEBUG)
    with pytest.raises(kind, match=hint) as raised:
        client_for(http, policy_for(account, **how)).download(file(url), False, tmp_path / "f")
    assert type(raised.value) is kind
    assert f"HTTP {status}" in raised.value.cause
    assert f"storage account {ACCOUNT}" in raised.value.cause
    said = str(raised.value) + caplog.text
    assert "sig=" not in said and "eyJ" not in said and KEY[8:30] not in said
    assert list(tmp_path.iterdir()) == []


def test_neither_credential_reaches_the_others_host(
    account: Azurite, container: str, fhir: Server, stranger: Server, http: httpx.Client, tmp_path: Path
) -> None:
    """Told by the servers' own logs. The manifest wants the FHIR token everywhere (azure-and-aidbox A)."""
    storage = storage_token(seconds=7200)
    sas = account.sas("r", minutes=90)
    for each in (fhir, stranger):
        each.on("GET", "/f", Response(CONTENT))
    log = HeadersLog(account)
    for way in ({"credential": Credential(storage)}, {"kind": "sas", "sas": "env:X", "secret": sas}):
        client = client_for(http, policy_for(account, "auto", **way), fhir)
        for required in (True, False, None):
            client.download(file(blob_url(account, container)), required, tmp_path / "f")
            client.download(file(f"{fhir.origin}/f"), required, tmp_path / "f")
            if required is not True:
                client.download(file(f"{stranger.origin}/f"), required, tmp_path / "f")
    at_azurite = log.lines()
    assert len(at_azurite) == 6
    assert [storage in line for line in at_azurite] == [True] * 3 + [False] * 3
    assert not any("t0ken" in line for line in at_azurite)
    assert len(fhir.seen) == 6 and len(stranger.seen) == 4
    for seen in (*fhir.seen, *stranger.seen):
        everything = f"{seen.path}?{seen.query} {seen.headers}"
        assert storage not in everything and "sig=" not in everything and "x-ms-version" not in everything
    assert [seen.headers.get("authorization") for seen in fhir.seen].count(f"Bearer {TOKEN}") == 4
    assert not any("authorization" in seen.headers for seen in stranger.seen)


@pytest.mark.parametrize("way", ["identity", "sas", "connection string"])
def test_no_redirect_is_followed_with_the_storage_credential(
    stranger: Server, http: httpx.Client, tmp_path: Path, fhir: Server, way: str
) -> None:
    """Blob storage does not redirect: whoever answers so is not it."""
    path = f"/{ACCOUNT}/c/f"
    fhir.on("GET", path, RedirectResponse(f"{stranger.origin}/f"))
    stranger.on("GET", "/f", Response(CONTENT))
    how = {
        "identity": {"credential": Credential("a-storage-token")},
        "sas": {"kind": "sas", "sas": "env:X", "secret": "sv=2024&sig=abc"},
        "connection string": {
            "kind": "connection-string",
            "connection_string": "env:X",
            "secret": f"AccountName={ACCOUNT};AccountKey={KEY}",
        },
    }[way]
    settings = {"account": ACCOUNT, "endpoint": f"{fhir.origin}/{ACCOUNT}", "kind": "default", **how}
    secret, credential = settings.pop("secret", ""), settings.pop("credential", None)
    access = storage_access(DownloadStorage(**settings), lambda _: secret.encode(), credential=credential)
    client = client_for(http, DownloadPolicy("storage", storage=access))
    with pytest.raises(DownloadRefused, match="redirects"):
        client.download(file(f"{fhir.origin}{path}"), True, tmp_path / "f")
    assert stranger.seen == []
    assert len(fhir.seen) == 1
    carried = f"{fhir.seen[0].query} {fhir.seen[0].headers.get('authorization')}"
    assert ("a-storage-token" in carried) or ("sig=" in carried)
    assert TOKEN not in str(fhir.seen[0].headers)


def test_a_redirect_of_the_fhir_server_to_the_account_takes_no_credential_along(
    account: Azurite, container: str, fhir: Server, http: httpx.Client, tmp_path: Path
) -> None:
    """Only a manifest's own URL gets one; a redirect's target is asked with nothing (protocol fact 28)."""
    fhir.on("GET", "/f", RedirectResponse(blob_url(account, container)))
    credential = Credential(storage_token(seconds=8000))
    log = HeadersLog(account)
    with pytest.raises(DownloadRefused):
        client_for(http, policy_for(account, "auto", credential=credential), fhir).download(
            file(f"{fhir.origin}/f"), True, tmp_path / "f"
        )
    (line,) = log.lines()
    assert '"authorization"' not in line and "t0ken" not in line and "sig=" not in line
    assert credential.asked == 0


def test_a_file_elsewhere_is_refused_before_anything_is_sent(
    account: Azurite, stranger: Server, http: httpx.Client, tmp_path: Path
) -> None:
    client = client_for(http, policy_for(account, credential=Credential("never")))
    with pytest.raises(DownloadRefused, match=f"no file of the storage account {ACCOUNT}"):
        client.download(file(f"{stranger.origin}/f?sig=SECRET"), False, tmp_path / "f")
    assert stranger.seen == []


def test_an_error_file_that_must_not_be_asked_for_can_be_told_beforehand(
    account: Azurite, container: str, http: httpx.Client, tmp_path: Path
) -> None:
    """azure-and-aidbox A: `error[].url` is not rewritten, and the token must not go to that host."""
    error = ManifestFile("error", 0, "OperationOutcome", blob_url(account, container))
    plain = BulkClient("https://gw.example/smart", http, PROFILES["apim-smart"])
    assert "which is not the FHIR server" in (plain.forbidden(error, True) or "")
    with pytest.raises(DownloadRefused, match="which is not the FHIR server"):
        plain.download(error, True, tmp_path / "f")
    assert plain.forbidden(ManifestFile("error", 0, None, "https://gw.example/smart/_export/1"), True) is None
    with_storage = client_for(http, policy_for(account, "auto", credential=Credential(storage_token())))
    assert with_storage.forbidden(error, True) is None
    with_storage.download(error, True, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_many_files_share_a_few_connections(azurite: Azurite, tmp_path: Path) -> None:
    """azure-and-aidbox D: thousands of files."""
    name = azurite.new_container("many")
    parts = urlsplit(azurite.endpoint)
    blobs = azurite.container(name)
    for number in range(20):
        blobs.upload_blob(f"{number}.ndjson", CONTENT)
    with ExitStack() as stack:
        proxy = stack.enter_context(BreakingProxy((parts.hostname or "", parts.port or 0)))
        http = stack.enter_context(httpx.Client(timeout=20, trust_env=False, auth=Token()))
        endpoint = f"http://127.0.0.1:{proxy.port}/{ACCOUNT}"
        client = client_for(
            http, policy_for(azurite, kind="sas", sas="env:X", secret=azurite.sas("r"), endpoint=endpoint)
        )
        with ThreadPoolExecutor(8) as pool:
            results = list(
                pool.map(
                    lambda number: client.download(
                        file(f"{endpoint}/{name}/{number % 20}.ndjson", number), False, tmp_path / str(number)
                    ),
                    range(200),
                )
            )
        assert len(proxy.asked()) == 200
        assert proxy.connections <= 8
    assert {each.lines for each in results} == {40}
