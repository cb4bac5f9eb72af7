"""Which URLs are files of the customer's storage account, and what opens them (azure-and-aidbox D)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import CredentialUnavailableError
from hypothesis import given
from hypothesis import strategies as st

from pipeline.azure.storage_access import AccountAccess, storage_access
from pipeline.bulkdata.policy import DownloadPolicy, Route
from pipeline.bulkdata.storage import StorageAccess
from pipeline.config import DownloadStorage
from pipeline.errors import AuthError, ConfigError, DownloadRefused, ExportError, Unreachable

HOST = "contosoexports.blob.core.windows.net"
FILE = f"https://{HOST}/fhir/export-1/Patient-1-1.ndjson"
BASE = "https://fhir.example.org/r4"
SECRET = "c2VjcmV0LWtleS1vZi10aGUtYWNjb3VudC0wMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg=="
SAS = "sv=2024-11-04&ss=b&srt=co&sp=rl&se=2030-01-01T00:00:00Z&sig=aZ%2BbC%2FdEfGhIjKl%3D"
EMULATOR = "http://127.0.0.1:10000/devstoreaccount1"


def no_secret(reference: str) -> bytes:
    raise AssertionError(reference)


def access(
    secret: Callable[[str], bytes] = no_secret, credential: Any = None, **storage: Any
) -> AccountAccess:
    storage = {"account": "contosoexports", "kind": "none", **storage}
    return storage_access(DownloadStorage(**storage), secret, credential=credential)


class Credential:
    """Gives a new token each time, so that one who keeps the first is seen."""

    def __init__(self, error: Exception | None = None) -> None:
        self.scopes: list[tuple[str, ...]] = []
        self.error = error

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes.append(scopes)
        if self.error is not None:
            raise self.error
        return AccessToken(f"storage-token-{len(self.scopes)}", 0)


@pytest.mark.parametrize(
    "url",
    [
        FILE,
        f"https://{HOST}:443/c/f.ndjson",
        f"HTTPS://{HOST.upper()}/c/f.ndjson",
        f"https://{HOST}/f.ndjson",
        f"https://{HOST}/c/a%2Fb/Patient%20one.ndjson",
        f"https://{HOST}/c/f.ndjson?{SAS}",
    ],
)
def test_files_of_the_account_are_covered(url: str) -> None:
    assert access().covers(url)


HOSTILE = [
    f"http://{HOST}/c/f",
    f"https://{HOST}:8443/c/f",
    f"https://{HOST}./c/f",
    f"https://{HOST}.evil.example/c/f",
    f"https://evil.example/{HOST}/c/f",
    f"https://evil.example\\@{HOST}/c/f",
    f"https://{HOST}\\@evil.example/c/f",
    f"https://{HOST}@evil.example/c/f",
    f"https://u:p@{HOST}/c/f",
    f"https://@{HOST}/c/f",
    f"https://x.{HOST}/c/f",
    "https://contosoexports2.blob.core.windows.net/c/f",
    "https://contosoexports.blob.core.chinacloudapi.cn/c/f",
    "https://contosoexports.dfs.core.windows.net/c/f",
    "https://contosoexports-secondary.blob.core.windows.net/c/f",
    f"https://{HOST}/",
    f"https://{HOST}",
    f"https://{HOST}/c/../../f",
    f"https://{HOST}/c/%2e%2e/f",
    f"https://{HOST}/c/%252e%252e/f",
    f"https://{HOST}/c/..%2ff",
    f"https://{HOST}/c\\..\\f",
    f"https://{HOST}/c/..%5cf",
    f"https://{HOST}//evil.example/f",
    f"https://{HOST}/c?restype=container&comp=list",
    f"https://{HOST}/c/f?comp=metadata",
    f"https://{HOST}/c/f#x",
    f"https://{HOST}/c/f g",
    f"https://{HOST}/c/f\r\nx: y",
    f" https://{HOST}/c/f",
    f"//{HOST}/c/f",
    "c/f",
    "",
    "https://ｃontosoexports.blob.core.windows.net/c/f",
    "https://contosoexports%2eblob.core.windows.net/c/f",
    "https://xn--contso-jbg.blob.core.windows.net/c/f",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_what_only_looks_like_a_file_of_the_account_is_not_covered(url: str) -> None:
    assert not access().covers(url)
    with pytest.raises(DownloadRefused):
        access(kind="default", credential=Credential()).prepare(url)


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (None, "contosoexports.blob.core.windows.net"),
        ("https://login.microsoftonline.us", "contosoexports.blob.core.usgovcloudapi.net"),
        ("https://login.chinacloudapi.cn/", "contosoexports.blob.core.chinacloudapi.cn"),
    ],
)
def test_the_account_is_that_of_its_own_cloud_alone(authority: str | None, host: str) -> None:
    """The same name in another cloud is a stranger's account (azure-and-aidbox C: clouds differ)."""
    one = access(kind="default", credential=Credential(), authority=authority)
    suffixes = ("core.windows.net", "core.usgovcloudapi.net", "core.chinacloudapi.cn")
    covered = [each for each in suffixes if one.covers(f"https://contosoexports.blob.{each}/c/f")]
    assert [f"contosoexports.blob.{each}" for each in covered] == [host]


def test_an_endpoint_replaces_the_accounts_usual_address() -> None:
    emulator = access(account="devstoreaccount1", endpoint=EMULATOR)
    assert emulator.covers(f"{EMULATOR}/c/f")
    for url in (
        "http://127.0.0.1:10001/devstoreaccount1/c/f",
        "http://localhost:10000/devstoreaccount1/c/f",
        "https://127.0.0.1:10000/devstoreaccount1/c/f",
        "http://127.0.0.1:10000/devstoreaccount12/c/f",
        "http://127.0.0.1:10000/another/c/f",
        "http://127.0.0.1:10000/devstoreaccount1",
        f"{EMULATOR}/../another/c/f",
        f"{EMULATOR}/%2e%2e/another/c/f",
        f"{EMULATOR}/c/%2e%2e/%2e%2e/another/f",
        f"{EMULATOR}//another/c/f",
        "https://devstoreaccount1.blob.core.windows.net/c/f",
    ):
        assert not emulator.covers(url), url
    custom = access(endpoint="https://files.contoso.example")
    assert custom.covers("https://files.contoso.example/c/f")
    assert not custom.covers(FILE)


PIECES = st.sampled_from(
    [
        HOST,
        "contosoexports",
        ".blob.core.windows.net",
        "evil.example",
        "127.0.0.1",
        "[::1]",
        "https://",
        "http://",
        "//",
        "/",
        "\\",
        "@",
        ":",
        ":443",
        ":10000",
        "..",
        "%2e%2e",
        "%2f",
        "%40",
        "%00",
        "?",
        "#",
        "sig=x",
        "comp=list",
        "/c/f.ndjson",
        "/devstoreaccount1",
        " ",
        "\t",
        "\n",
        "。",
        "ⓒ",
        ".",
    ]
)


def dots_in(path: str) -> bool:
    steps = path.replace("\\", "/")
    for _ in range(3):
        if {".", ".."} & set(steps.split("/")):
            return True
        steps = unquote(steps).replace("\\", "/")
    return False


@given(
    st.one_of(
        st.lists(PIECES, max_size=8).map("".join),
        st.lists(PIECES, max_size=6).map(lambda parts: FILE + "".join(parts)),
        st.lists(PIECES, max_size=5).map(lambda parts: f"https://{HOST}" + "".join(parts)),
        st.lists(PIECES, max_size=5).map(lambda parts: EMULATOR + "".join(parts)),
        st.lists(PIECES, max_size=3).map(lambda parts: f"https://{''.join(parts)}{HOST}/c/f"),
        st.text(max_size=12).map(lambda text: f"https://{HOST}{text}/c/f"),
        st.text(max_size=12).map(lambda text: f"https://{text}{HOST}/c/f"),
    )
)
def test_whatever_is_covered_is_on_the_accounts_host_by_another_parsers_reading(url: str) -> None:
    """The oracle is urllib and ipaddress; httpx is what `covers` and the connection itself use."""
    public, emulator = access(), access(account="devstoreaccount1", endpoint=EMULATOR)
    for one, scheme, host, port, prefix in (
        (public, "https", HOST, 443, ""),
        (emulator, "http", "127.0.0.1", 10000, "/devstoreaccount1"),
    ):
        if not one.covers(url):
            continue
        parts = urlsplit(url)
        assert parts.scheme == scheme
        assert parts.hostname == host
        assert (parts.port or {"https": 443, "http": 80}[scheme]) == port
        assert "@" not in parts.netloc
        assert parts.path.startswith(f"{prefix}/") and not dots_in(parts.path)
        assert not parts.query or "sig" in parts.query.lower()
        if scheme == "http":
            assert ipaddress.ip_address(parts.hostname or "").is_loopback
        assert httpx.URL(url).host == host


@given(
    st.lists(
        st.text("abcdefghijklmnopqrstuvwxyzABC0123456789-_.~%20", min_size=1, max_size=12).filter(
            lambda each: not dots_in(each) and each.count("%") == each.count("%20")
        ),
        min_size=2,
        max_size=4,
    )
)
def test_every_plain_blob_url_of_the_account_is_covered(segments: list[str]) -> None:
    """So that the strictness above refuses no real file."""
    assert access().covers(f"https://{HOST}/{'/'.join(segments)}")


def test_an_identity_is_asked_for_a_token_at_each_request() -> None:
    """Downloads take hours; azure-identity keeps and renews the token (azure-and-aidbox D)."""
    credential = Credential()
    one = access(kind="default", credential=credential)
    answers = [one.prepare(FILE) for _ in range(3)]
    assert [headers["Authorization"] for _, headers in answers] == [
        f"Bearer storage-token-{number}" for number in (1, 2, 3)
    ]
    assert {url for url, _ in answers} == {FILE}
    assert credential.scopes == [("https://storage.azure.com/.default",)] * 3
    assert all(headers["x-ms-version"] >= "2021-12-02" for _, headers in answers)


def test_a_sas_is_appended_as_it_is_and_sent_nowhere_else() -> None:
    one = access(lambda reference: {"env:SAS": f"?{SAS}\n".encode()}[reference], kind="sas", sas="env:SAS")
    url, headers = one.prepare(FILE)
    assert url == f"{FILE}?{SAS}"
    assert "Authorization" not in headers
    assert httpx.URL(url).raw_path.decode().endswith(SAS)
    assert "sig=" not in repr(one)


def test_an_empty_query_does_not_spoil_the_signature() -> None:
    url, _ = access(lambda _: SAS.encode(), kind="sas", sas="env:SAS").prepare(f"{FILE}?")
    assert url == f"{FILE}?{SAS}"
    bare, _ = access(kind="default", credential=Credential()).prepare(f"{FILE}?")
    assert bare == FILE


def test_a_renewed_sas_is_found_after_a_while() -> None:
    held, now = [SAS.encode()], [1000.0]
    storage = DownloadStorage(account="contosoexports", kind="sas", sas="env:SAS")
    one = storage_access(storage, lambda _: held[0], clock=lambda: now[0])
    held[0] = SAS.replace("aZ", "bZ").encode()
    now[0] += 299
    assert one.prepare(FILE)[0] == f"{FILE}?{SAS}"
    now[0] += 2
    assert one.prepare(FILE)[0] == f"{FILE}?{SAS}".replace("aZ", "bZ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not a sas",
        f"https://{HOST}/c?{SAS}",
        "sv=2024-11-04&sp=r",
        f"{SAS}#x",
        f"{SAS} x",
        f"{SAS}\nHost: evil",
    ],
)
def test_a_sas_that_is_none_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match=r"downloads\.storage\.sas") as raised:
        access(lambda _: text.encode(), kind="sas", sas="env:SAS")
    assert "aZ" not in str(raised.value)


def connection(**parts: str) -> str:
    whole = {
        "DefaultEndpointsProtocol": "https",
        "AccountName": "contosoexports",
        "AccountKey": SECRET,
        **parts,
    }
    return ";".join(f"{name}={value}" for name, value in whole.items() if value)


def from_connection(text: str, **storage: Any) -> AccountAccess:
    return access(
        lambda _: text.encode(), kind="connection-string", connection_string="env:CONNECTION", **storage
    )


def test_an_account_key_makes_a_short_signature_for_reading_one_file_and_is_never_sent() -> None:
    """The signature is computed anew here, by Azure's description of a service SAS."""
    url, headers = from_connection(connection()).prepare(f"https://{HOST}/fhir/export%201/P.ndjson")
    assert SECRET not in url and "Authorization" not in headers
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert (query["sp"], query["sr"], query["spr"]) == ("r", "b", "https")
    life = datetime.fromisoformat(query["se"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < life <= timedelta(hours=1)
    signed = [
        query["sp"],
        query.get("st", ""),
        query["se"],
        "/blob/contosoexports/fhir/export 1/P.ndjson",
        "",
        "",
        query["spr"],
        query["sv"],
        query["sr"],
        *[""] * 7,
    ]
    digest = hmac.new(base64.b64decode(SECRET), "\n".join(signed).encode(), hashlib.sha256).digest()
    assert query["sig"] == base64.b64encode(digest).decode()


def test_a_connection_string_may_hold_a_sas_and_an_endpoint() -> None:
    one = from_connection(
        connection(AccountKey="", SharedAccessSignature=SAS, BlobEndpoint="https://files.contoso.example/")
    )
    assert one.prepare("https://files.contoso.example/c/f")[0] == f"https://files.contoso.example/c/f?{SAS}"
    assert not one.covers(FILE)
    us = from_connection(connection(EndpointSuffix="core.usgovcloudapi.net"))
    assert us.covers("https://contosoexports.blob.core.usgovcloudapi.net/c/f") and not us.covers(FILE)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("UseDevelopmentStorage=true", "no AccountKey"),
        (connection(AccountKey=""), "no AccountKey"),
        (connection(AccountName="another"), "not of the account contosoexports"),
        (connection(AccountKey="%%%"), "cut off or damaged"),
        (connection(BlobEndpoint="http://files.example.org"), "no https URL"),
        (connection(BlobEndpoint="https://u:p@files.example.org"), "no https URL"),
    ],
)
def test_a_wrong_connection_string_is_refused_without_being_repeated(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as raised:
        from_connection(text)
    assert SECRET[:12] not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (
            ClientAuthenticationError(
                message="AADSTS7000222: The provided client secret keys are expired. x=" + "y" * 90
            ),
            AuthError,
            "the storage account contosoexports.*AADSTS7000222.*has expired: make a new one",
        ),
        (
            CredentialUnavailableError(message="no managed identity endpoint found."),
            AuthError,
            "Managed identity works on Azure",
        ),
        (
            ServiceRequestError("https://login.example/?secret=abcdefgh"),
            Unreachable,
            "Check the network, proxy and firewall",
        ),
    ],
)
def test_a_credential_that_gives_no_token_is_explained(
    error: Exception, kind: type[ExportError], hint: str
) -> None:
    one = access(kind="default", credential=Credential(error))
    with pytest.raises(kind, match=hint) as raised:
        one.prepare(FILE)
    assert "contosoexports" in str(raised.value)
    assert "abcdefgh" not in str(raised.value) and "yyyy" not in str(raised.value)
    assert raised.value.__context__ is None
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize(
    "endpoint", ["https://fabrikam.blob.core.windows.net", "https://127.0.0.1:1/fabrikam"]
)
def test_an_endpoint_of_another_account_gets_no_credential(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="the account contosoexports, and its endpoint fabrikam"):
        access(kind="default", credential=Credential(), endpoint=endpoint)
    held = f"AccountName=contosoexports;AccountKey={SECRET};BlobEndpoint={endpoint}".encode()
    with pytest.raises(ConfigError, match="endpoint fabrikam"):
        access(lambda _: held, kind="connection-string", connection_string="env:HELD")


@pytest.mark.parametrize(
    ("status", "code", "kind", "hint"),
    [
        (403, "AuthorizationPermissionMismatch", "default", "Storage Blob Data Reader"),
        (403, "", "managed-identity", "Storage Blob Data Reader"),
        (401, "InvalidAuthenticationInfo", "default", "another tenant"),
        (403, "AuthenticationFailed", "default", "expired"),
        (403, "AuthorizationFailure", "default", "firewall"),
        (403, "KeyBasedAuthenticationNotPermitted", "default", "use an identity"),
        (404, "ContainerNotFound", "default", "ask for the export again"),
        (404, "", "default", "not there"),
        (409, "BlobArchived", "default", "archived"),
        (403, "AuthorizationFailure", "none", r"downloads\.storage\.kind"),
        (400, "SomethingNew", "default", "Look at the file"),
    ],
)
def test_each_refusal_of_the_account_says_what_to_do(status: int, code: str, kind: str, hint: str) -> None:
    one = access(kind=kind, credential=Credential())
    assert httpx.codes(status) and hint.replace("\\", "") in one.advice(status, code)


def policy(auth: Any = "auto", **more: Any) -> DownloadPolicy:
    storage: StorageAccess = access(kind="default", credential=Credential())
    return DownloadPolicy(auth, storage=storage, **more)


@pytest.mark.parametrize("required", [True, False, None])
@pytest.mark.parametrize("auth", ["auto", "storage"])
def test_the_fhir_token_never_goes_to_the_account_whatever_the_manifest_says(
    auth: str, required: bool | None
) -> None:
    """azure-and-aidbox A: `requiresAccessToken` forced true beside plain blob URLs."""
    ours = policy(auth).route(FILE, BASE, required)
    assert (ours.bearer, ours.storage is not None) == (False, True)
    assert policy(auth).route(f"{FILE}?{SAS}", BASE, required) == Route(bearer=False)


def test_with_auto_other_files_go_by_the_manifest() -> None:
    assert policy().route(f"{BASE}/f/1", BASE, True) == Route(bearer=True)
    assert policy().route("https://else.example/1?sig=x", BASE, False) == Route(bearer=False)
    with pytest.raises(DownloadRefused, match="allow_hosts"):
        policy().route("https://other.blob.core.windows.net/c/f", BASE, True)


@pytest.mark.parametrize("url", [f"{BASE}/f/1", "https://other.blob.core.windows.net/c/f", *HOSTILE])
def test_with_storage_there_are_no_other_files(url: str) -> None:
    with pytest.raises(DownloadRefused):
        policy("storage").route(url, BASE, False)


def test_the_accounts_address_is_where_its_containers_lie() -> None:
    assert access().address == f"https://{HOST}"
    emulator = access(account="devstoreaccount1", endpoint=EMULATOR)
    assert emulator.address == EMULATOR
    assert emulator.covers(f"{emulator.address}/c/f")


def test_a_policy_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"downloads\.storage names none"):
        DownloadPolicy("storage")
    with pytest.raises(ConfigError, match="token never goes there"):
        policy(allow_hosts=(HOST,))
    with pytest.raises(ConfigError):
        DownloadPolicy("anything")  # type: ignore[arg-type]
