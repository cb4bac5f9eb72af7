"""What a lake on Azure says when it cannot be used: the cause and the way out, and nothing secret."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from azure.core.exceptions import AzureError
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from azure.storage.blob.aio import BlobServiceClient
from azure_storage import ACCOUNT, KEY, Azurite
from lake_on_azurite import AsyncIdentity, Identity, lake_by_key, lake_by_sas, lake_by_token, lake_url

from pipeline.config import LakeAuth
from pipeline.errors import ConfigError, LakeError
from pipeline.lake.azure import AzureLake
from pipeline.lake.blob_account import BlobAccess, BlobAccount
from pipeline.lake.blob_address import parse_address
from pipeline.lake.blob_errors import explain
from pipeline.lake.lake import Lake, open_lake
from pipeline.tables.delta import total_rows

SIGNATURE = "c2VjcmV0LXNpZ25hdHVyZQ"


def refused(lake: Lake) -> LakeError:
    """The error of a write; that of listing, reading and removing is of the same kind."""
    with pytest.raises(LakeError) as found:
        lake.put_new("hosp_a/fact.json", b"1")
    for act in (lake.read, lake.sizes, lake.names, lake.open):
        with pytest.raises(LakeError):
            act("hosp_a/fact.json")
    return found.value


def test_a_missing_container_is_named_and_never_made_or_taken_for_an_empty_one(azurite: Azurite) -> None:
    error = refused(lake_by_key(azurite, "not-made-yet"))
    assert "there is no container not-made-yet in the storage account devstoreaccount1" in error.cause
    assert "az storage container create" in error.advice
    assert "not-made-yet" not in [each.name for each in azurite.service().list_containers()]


def test_a_missing_container_is_named_when_a_file_is_put_and_copied(azurite: Azurite, tmp_path: Path) -> None:
    lake = lake_by_key(azurite, "not-made-yet")
    (tmp_path / "part").write_bytes(b"1")
    with pytest.raises(LakeError, match="no container not-made-yet"):
        lake.put_file(tmp_path / "part", "a")
    with pytest.raises(LakeError, match="no container not-made-yet"), lake.local_copy("a"):
        pass


def test_a_file_that_is_not_there_is_said_so(azurite: Azurite) -> None:
    lake = lake_by_key(azurite)
    with pytest.raises(LakeError, match="no such file"), lake.local_copy("a"):
        pass
    with pytest.raises(LakeError, match="no such file"):
        lake.open("a")


def test_an_expired_sas_is_named_with_its_end(azurite: Azurite) -> None:
    sas = azurite.sas(minutes=-1)
    error = refused(lake_by_sas(azurite, sas))
    assert f"the SAS ended on {datetime.now(UTC):%Y-%m-%d}" in error.cause
    assert "Make a new one" in error.advice
    assert sas.split("sig=")[1] not in str(error)


def test_a_sas_that_may_not_write_is_told_from_a_wrong_one(azurite: Azurite) -> None:
    lake = lake_by_sas(azurite, azurite.sas("rl"))
    assert lake.names("hosp_a") == []
    with pytest.raises(LakeError, match="SAS does not allow this") as found:
        lake.put_new("hosp_a/fact.json", b"1")
    assert "racwdl" in found.value.advice


def test_a_sas_of_another_container_or_with_a_wrong_signature_is_refused_without_repeating_it(
    azurite: Azurite,
) -> None:
    other = generate_container_sas(
        ACCOUNT,
        azurite.new_container(),
        KEY,
        permission=ContainerSasPermissions.from_string("racwdl"),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    good = azurite.sas()
    for sas in (other, good[: good.index("sig=")] + "sig=" + SIGNATURE):
        error = refused(lake_by_sas(azurite, sas))
        assert "SAS" in error.cause
        assert sas.split("sig=")[1][:10] not in str(error)


def test_a_table_that_the_storage_refuses_says_the_storages_own_word_and_no_signature(
    azurite: Azurite,
) -> None:
    """delta-rs gives only an OSError, whose text holds the whole URL."""
    container = azurite.new_container()
    for sas, why in (
        (azurite.sas("rw"), "HTTP 403 AuthorizationPermissionMismatch"),
        (azurite.sas(minutes=-1), "HTTP 403 AuthorizationFailure"),
    ):
        lake = lake_by_sas(azurite, sas, container)
        with pytest.raises(LakeError) as found:
            total_rows(lake.table_uri("hosp_a/tables/patient"), lake.storage_options)
        assert f"patient cannot be opened ({why})" in found.value.cause
        assert parse_qs(sas)["sig"][0][:12] not in str(found.value)
    lake = lake_by_sas(azurite, azurite.sas(), container)
    nobody = {**lake.storage_options, "azure_storage_endpoint": f"http://127.0.0.1:1/{ACCOUNT}"}
    with pytest.raises(LakeError, match=r"cannot be opened \(no connection\)"):
        total_rows(lake.table_uri("hosp_a/tables/patient"), nobody)


def test_a_wrong_account_key_is_named(azurite: Azurite) -> None:
    container = azurite.new_container()
    wrong = azurite.connection_string.replace(KEY, "AAAA" + KEY[4:])
    auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
    error = refused(open_lake(lake_url(container), Path("/"), auth, lambda _: wrong.encode()))
    assert "the account key is wrong" in error.cause
    assert "rotated" in error.advice


def test_a_connection_string_of_another_account_is_a_wrong_configuration(azurite: Azurite) -> None:
    held = azurite.connection_string.encode()
    auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
    lake = open_lake(lake_url("lake", account="otheraccount"), Path("/"), auth, lambda _: held)
    with pytest.raises(ConfigError, match="wrong account") as found:
        lake.read("a")
    assert "otheraccount" in found.value.cause
    assert "devstoreaccount1" in found.value.cause
    assert KEY not in str(found.value)


def test_a_token_that_the_storage_does_not_take_is_told_from_a_missing_role(azurite_tls: Azurite) -> None:
    error = refused(lake_by_token(azurite_tls, seconds=-60))
    assert "the storage does not accept the token" in error.cause
    assert "tenant" in error.advice


async def _one_try(endpoint: str) -> Exception:
    async with BlobServiceClient(endpoint, retry_total=0) as client:
        try:
            await client.get_blob_client("lake-any", "a").get_blob_properties()
        except AzureError as error:
            return error
    raise AssertionError("it was answered")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-account.invalid"])
def test_what_a_refused_connection_and_an_unknown_host_raise_is_said_in_words(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"https://{host}:{taken.getsockname()[1]}/{ACCOUNT}"
        error = asyncio.run(_one_try(endpoint))
    access = BlobAccess(ACCOUNT, endpoint, LakeAuth(kind="none"))
    why, advice = explain(error, parse_address(lake_url("lake-any")), access)
    expected = "refuses connections" if host == "127.0.0.1" else "there is no host for the storage account"
    assert expected in why
    assert host in why
    assert advice


def test_a_storage_that_comes_back_within_seconds_is_waited_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    auth = LakeAuth(kind="none", endpoint=f"http://127.0.0.1:{port}/{ACCOUNT}")
    lake = open_lake(lake_url("lake-any"), Path("/"), auth)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lake.read, "a")
        time.sleep(0.5)
        assert not reading.done()
        with answering(404, "BlobNotFound", port=port):
            assert reading.result(30) is None


UNTRUSTING = """
import sys, time
from pathlib import Path
from urllib.parse import parse_qs
from pipeline.config import LakeAuth
from pipeline.errors import LakeError
from pipeline.lake.lake import open_lake
lake = open_lake(sys.argv[1], Path("/"), LakeAuth(kind="none", endpoint=sys.argv[2]))
lake.account  # imports Azure's libraries
started = time.monotonic()
try:
    lake.read("a")
except LakeError as error:
    print(error)
print("seconds:", time.monotonic() - started)
"""


def test_a_certificate_that_is_not_trusted_is_named_at_once(azurite_tls: Azurite) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.endswith(("_FILE", "_BUNDLE"))}
    said = subprocess.run(
        [sys.executable, "-c", UNTRUSTING, lake_url("lake-any"), azurite_tls.endpoint],
        env=outside,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "the TLS certificate of 127.0.0.1:" in said.stdout, said.stderr
    assert "SSL_CERT_FILE" in said.stdout
    assert float(said.stdout.rpartition("seconds: ")[2]) < 10, "no retry can help"


class Answers(ThreadingHTTPServer):
    """Answers each request as Azure does where Azurite cannot: status, code, message, clock."""

    status, code, message, clock = 403, "", "", timedelta(0)
    seen = 0


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def answer(self) -> None:
        self.server.seen += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = (
            f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{self.server.code}</Code>'
            f"<Message>{self.server.message}\nRequestId:1\nTime:2</Message></Error>"
        ).encode()
        self.send_response_only(self.server.status)
        self.send_header("Date", format_datetime(datetime.now(UTC) + self.server.clock, usegmt=True))
        self.send_header("x-ms-error-code", self.server.code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = answer

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def answering(
    status: int, code: str, message: str = "", clock: timedelta = timedelta(0), port: int = 0
) -> Iterator[Answers]:
    with Answers(("127.0.0.1", port), _Handler) as server:
        server.status, server.code, server.message, server.clock = status, code, message, clock
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def lake_at(server: Answers, kind: str) -> Lake:
    """Opened by that kind of credential; a token here goes over plain http only in this test's address."""
    endpoint = f"http://127.0.0.1:{server.server_port}/{ACCOUNT}"
    if kind == "sas":
        sas = f"sv=2024-11-04&se=2099-01-01&sp=rl&sig={SIGNATURE}"
        auth = LakeAuth(kind="sas", sas="env:HELD", endpoint=endpoint)
        return open_lake(lake_url("lake-refused"), Path("/"), auth, lambda _: sas.encode())
    if kind == "key":
        held = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}".encode()
        auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
        return open_lake(lake_url("lake-refused"), Path("/"), auth, lambda _: held)
    return open_lake(lake_url("lake-refused"), Path("/"), LakeAuth(kind="none", endpoint=endpoint))


DOCUMENTED = [
    (
        "key",
        403,
        "AuthorizationFailure",
        "This request is not authorized.",
        "firewall",
    ),
    (
        "sas",
        403,
        "AuthorizationFailure",
        "This request is not authorized.",
        "firewall",
    ),
    (
        "key",
        403,
        "AuthenticationFailed",
        "Server failed to authenticate it.",
        "account key is wrong",
    ),
    ("sas", 403, "AuthenticationFailed", "Signature did not match.", "the SAS is not accepted"),
    ("key", 400, "InvalidAuthenticationInfo", "", "account key is wrong"),
    ("sas", 403, "AuthorizationPermissionMismatch", "", "the SAS does not allow this"),
    ("sas", 403, "AuthorizationResourceTypeMismatch", "", "made for something else"),
    ("key", 403, "KeyBasedAuthenticationNotPermitted", "", "takes no account keys"),
    ("none", 409, "PublicAccessNotPermitted", "", "not open to everyone"),
    ("none", 401, "NoAuthenticationInformation", "", "not open to everyone"),
    ("key", 403, "AccountIsDisabled", "", "is disabled"),
    ("key", 409, "BlobImmutableDueToPolicy", "", "policy of the container"),
    ("key", 400, "SomethingNew", "with words", "HTTP 400 SomethingNew"),
]


@pytest.mark.parametrize(("kind", "status", "code", "message", "words"), DOCUMENTED)
def test_each_documented_refusal_is_said_in_words_with_advice(
    kind: str, status: int, code: str, message: str, words: str
) -> None:
    """Codes and statuses as in Microsoft's "Blob service error codes"; Azurite gives only a few of them."""
    with answering(status, code, f"{message} {SIGNATURE}") as server:
        with pytest.raises(LakeError) as found:
            lake_at(server, kind).put_new("hosp_a/fact.json", b"1")
        assert words in found.value.cause
        assert found.value.advice
        assert SIGNATURE not in str(found.value)
        assert "sig=" not in str(found.value)
        assert server.seen == 1, "a refusal is not tried again"


@pytest.mark.parametrize("ahead", [-20, 20])
def test_a_clock_that_is_wrong_is_said_before_anything_else(ahead: int) -> None:
    old = answering(403, "AuthenticationFailed", "Request date header too old", timedelta(minutes=-ahead))
    with old as server, pytest.raises(LakeError) as found:
        lake_at(server, "key").read("a")
    assert f"clock is 20 minutes {'ahead of' if ahead > 0 else 'behind'} the storage's" in found.value.cause
    assert "NTP" in found.value.advice


def test_a_busy_storage_is_asked_again() -> None:
    with answering(503, "ServerBusy") as server, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lake_at(server, "key").read, "a")
        while not server.seen:
            time.sleep(0.02)
        server.status, server.code = 404, "BlobNotFound"
        assert reading.result(30) is None
        assert server.seen == 2


class Failing(Identity):
    """An identity whose answer from Entra is an error, as azure-identity raises it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def get_token(self, *scopes: str, **options: object) -> object:  # type: ignore[override]
        raise self.error


class AsyncFailing(AsyncIdentity):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def get_token(self, *scopes: str, **options: object) -> object:  # type: ignore[override]
        raise self.error


def entra_says(code: str) -> Exception:
    from azure.core.exceptions import ClientAuthenticationError

    return ClientAuthenticationError(
        f"Authentication failed: AADSTS{code}: Something about app 'x'. Trace ID: 1 https://host/?s={SIGNATURE}"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("700016", "client id in this tenant"),
        ("7000215", "client secret is wrong"),
        ("7000222", "client secret has expired"),
        ("90002", "check tenant_id"),
        ("700213", "federated credential"),
        ("99999", "Look its AADSTS number up"),
    ],
)
def test_what_entra_refuses_is_said_in_words_for_files_and_tables(
    azurite_tls: Azurite, code: str, words: str
) -> None:
    error = entra_says(code)
    access = BlobAccess(ACCOUNT, azurite_tls.endpoint, LakeAuth(kind="managed-identity"))
    account = BlobAccount(access, Failing(error), AsyncFailing(error))
    lake = AzureLake(parse_address(lake_url("lake-refused")), lambda: account)
    for act in (lambda: lake.read("a"), lambda: lake.storage_options):
        with pytest.raises(LakeError) as found:
            act()
        assert words in found.value.advice
        assert f"AADSTS{code}" in found.value.cause
        assert SIGNATURE not in str(found.value)


def test_a_machine_without_the_configured_identity_says_what_to_assign(
    azurite_tls: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real azure-identity, on a machine that has no token file."""
    for name in ("AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    auth = LakeAuth(kind="workload-identity", endpoint=azurite_tls.endpoint)
    lake = open_lake(lake_url("lake-any"), Path("/"), auth)
    with pytest.raises(ConfigError, match="no workload-identity can be used") as found:
        lake.read("a")
    assert "AZURE_FEDERATED_TOKEN_FILE" in found.value.advice
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AZURE_CLIENT_ID", "00000000-0000-0000-0000-000000000001")
    monkeypatch.setenv("AZURE_TENANT_ID", "00000000-0000-0000-0000-000000000002")
    with pytest.raises(LakeError, match="no token for the storage account") as unreadable:
        lake.read("a")
    assert "AZURE_FEDERATED_TOKEN_FILE" in unreadable.value.advice
