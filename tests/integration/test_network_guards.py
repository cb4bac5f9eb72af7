"""What a server does below the level of bodies, and a proxy that cannot be used: bounded, told in words."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import httpx
import pytest
from raw_server import Answer, RawServer, sending

from pipeline.auth.bearer import BearerAuth
from pipeline.auth.tokens import Token
from pipeline.azure.keyvault import read_secret
from pipeline.azure.storage_access import storage_access
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.profiles import PROFILES
from pipeline.config import DownloadStorage, KeyVaultAuth, Timeouts
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable
from pipeline.exports.connection import http_client
from pipeline.network.guarded import guarded_client
from pipeline.network.known_hosts import KnownHosts

LINE = b'{"resourceType":"Patient","id":"1"}\n'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(LINE), LINE)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"%x\r\n%s\r\n0\r\n" % (len(LINE), LINE)


def dripping(first: bytes, piece: bytes, seconds: float = 10.0) -> Answer:
    """For a while only, so that a client without patience's end fails too, and does not hang."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(int(seconds / 0.02)):
            connection.sendall(piece)
            time.sleep(0.02)

    return answer


def file_at(server: RawServer) -> ManifestFile:
    return ManifestFile("output", 0, "Patient", f"{server.origin}/f?sig=S3CRET")


@pytest.mark.parametrize(
    ("first", "piece"),
    [(b"1;", b"x"), (b"%x\r\n%s\r\n1;" % (len(LINE), LINE), b"x"), (LAST_CHUNK, b"X"), (b"", b"0")],
    ids=["extension", "extension after a line", "trailer", "size"],
)
@pytest.mark.parametrize("slowest", [0, 1024])
def test_a_file_that_drips_below_its_body_is_given_up(
    first: bytes, piece: bytes, slowest: int, tmp_path: Path
) -> None:
    """RFC 9112, 7.1: extensions and trailers are no bytes of the body, and each read brings some."""
    with (
        RawServer(dripping(CHUNKED + first, piece)) as server,
        guarded_client(KnownHosts.of([server.fhir]), timeout=0.3) as http,
    ):
        bulk = BulkClient(
            server.fhir, http, PROFILES["smart"], download_tries=1, slowest=slowest, slow_window=0.1
        )
        with pytest.raises(Unreachable, match="in time"):
            bulk.download(file_at(server), None, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_silence_that_the_timeouts_allow_is_no_drip(tmp_path: Path) -> None:
    """However short the window is over which a rate is averaged."""

    def pausing(connection: socket.socket) -> None:
        connection.sendall(CHUNKED + b"%x\r\n%s\r\n" % (len(LINE), LINE))
        time.sleep(1.0)
        connection.sendall(LAST_CHUNK + b"\r\n")

    with RawServer(pausing) as server, guarded_client(KnownHosts.of([server.fhir]), timeout=20) as http:
        bulk = BulkClient(server.fhir, http, PROFILES["smart"], download_tries=1, slow_window=0.1)
        assert bulk.download(file_at(server), None, tmp_path / "f").lines == 2


def test_a_files_head_may_take_as_long_as_a_pause_in_its_body() -> None:
    """`timeouts.answer_seconds` is for answers that are no file."""

    def slowly(connection: socket.socket) -> None:
        time.sleep(1.5)
        connection.sendall(OK)

    timeouts = Timeouts(answer_seconds=0.5, read_seconds=60)
    with RawServer(slowly) as server, http_client(KnownHosts.of([server.fhir]), timeouts) as http:
        assert http.get(f"{server.fhir}/f").content == LINE


class FixedToken:
    """A token source without a server."""

    token_origin: str | None = None

    def fetch(self, _http: httpx.Client) -> Token:
        return Token("t0ken", expires_at=float("inf"))


def test_a_401_without_end_is_not_read_before_the_token_is_renewed(tmp_path: Path) -> None:
    """httpx reads the whole answer, unpacked, before it asks with a new token."""
    sent = 0

    def for_long(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\n\r\n")
        for _ in range(400):
            connection.sendall(b"x" * (1 << 18))
            sent += 1 << 18

    with RawServer(for_long) as server, guarded_client(KnownHosts.of([server.fhir]), timeout=20) as http:
        http.auth = BearerAuth(FixedToken(), http, [server.origin])
        bulk = BulkClient(server.fhir, http, PROFILES["smart"], download_tries=1)
        with pytest.raises(AuthError):
            bulk.download(file_at(server), True, tmp_path / "f")
        assert [b"Bearer t0ken" in each for each in server.requests] == [True, True]
    assert sent < 32 << 20


@pytest.mark.parametrize("encoding", [b"gzip", b"gzip, gzip", b"br", b""])
def test_the_words_of_a_401_are_kept_where_they_can_be_read(encoding: bytes) -> None:
    """Of an answer in an encoding that nobody asked for the status stands."""
    body = json.dumps({"error": "no"}).encode()
    server_says = b"HTTP/1.1 401 No\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s"
    with (
        RawServer(sending(server_says % (encoding, len(body), body))) as server,
        guarded_client(KnownHosts.of([server.fhir]), timeout=20) as http,
    ):
        answer = http.get(server.fhir)
    assert (answer.status_code, answer.content) == (401, b"" if encoding else body)


# --- a proxy that cannot be used --------------------------------------------------------------------------


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxy at all until the test names one."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    "proxy",
    ["socks5://me:S3CRET@proxy.example:1080", "socks5h://proxy.example", "socks4://p", "ftp://S3CRET@p"],
)
def test_a_proxy_that_cannot_be_used_is_told_with_what_to_do(
    variable: str, proxy: str, proxied: pytest.MonkeyPatch
) -> None:
    """httpx speaks SOCKS with a package only that is not among ours."""
    proxied.setenv(variable, proxy)
    url = "https://fhir.hospital.example/r4"
    with (
        http_client(KnownHosts.of([url])) as http,
        pytest.raises(ConfigError, match="NO_PROXY") as refused,
    ):
        BulkClient(url, http, PROFILES["smart"]).capability()
    assert "fhir.hospital.example" in str(refused.value)
    assert ("SOCKS" in refused.value.cause) == proxy.startswith("socks")
    assert "S3CRET" not in str(refused.value)


@pytest.mark.parametrize("asked", ["vault", "authority"])
def test_a_proxy_that_azures_library_cannot_use_is_told_too(
    asked: str, proxied: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """requests speaks SOCKS with a package only that is not among ours either."""
    proxied.setenv("ALL_PROXY", "socks5://me:S3CRET@proxy.example:1080")
    (tmp_path / "secret").write_text("s")
    identity = {
        "kind": "service-principal",
        "tenant_id": "contoso.example",
        "client_id": "me",
        "client_secret": "file:secret",
    }
    with pytest.raises(ExportError, match="SOCKS") as refused:
        if asked == "vault":
            auth = KeyVaultAuth.model_validate(identity)
            read_secret("https://contoso.vault.azure.net/secrets/key", auth, tmp_path)
        else:
            storage = DownloadStorage.model_validate({"account": "contoso", **identity})
            access = storage_access(storage, lambda _: b"s")
            access.prepare("https://contoso.blob.core.windows.net/c/f")
    assert "S3CRET" not in str(refused.value)


def test_what_goes_past_a_proxy_that_cannot_be_used_goes(proxied: pytest.MonkeyPatch) -> None:
    proxied.setenv("ALL_PROXY", "socks5://proxy.example:1080")
    proxied.setenv("NO_PROXY", "127.0.0.1")
    with RawServer(sending(OK)) as server, http_client(KnownHosts.of([server.fhir])) as http:
        assert http.get(server.fhir).content == LINE
