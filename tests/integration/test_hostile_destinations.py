"""A server that points elsewhere leads us to no neighbour: files, redirects, pages, sign-in, DNS, proxies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_server import RawServer, sending

from pipeline.auth.discovery import discover
from pipeline.auth.keys import generate_key
from pipeline.auth.signers import PemSigner
from pipeline.auth.tokens import SmartTokenSource
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.bulkdata.profiles import PROFILES
from pipeline.errors import AuthError, DownloadRefused, ExportError, ServerRefused, Unreachable
from pipeline.network.guarded import guarded_client
from pipeline.network.known_hosts import KnownHosts

LINE = b'{"resourceType":"Patient","id":"1"}\n'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(LINE), LINE)
ELSEWHERE = "https://fhir.hospital.example/r4"


@pytest.fixture
def neighbour() -> Iterator[RawServer]:
    """What must not be asked: it notes each connection."""
    with RawServer(sending(OK)) as server:
        yield server


def redirecting(target: str, status: str = "302 Found") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )


def answering(content: str) -> bytes:
    body = content.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def resolving(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[list[str]]]) -> list[str]:
    """The system's resolver gives these addresses, one list after the other. Returns the names asked for."""
    real, asked = socket.getaddrinfo, list[str]()

    def look_up(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in names:
            return real(host, port, *more, **options)
        asked.append(name)
        found = names[name].pop(0) if len(names[name]) > 1 else names[name][0]
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def client(known: KnownHosts) -> httpx.Client:
    return guarded_client(known, timeout=httpx.Timeout(5, connect=0.5))


def test_a_file_elsewhere_on_this_machine_is_never_connected_to(neighbour: RawServer, tmp_path: Path) -> None:
    with client(KnownHosts.of([ELSEWHERE])) as http:
        bulk = BulkClient(ELSEWHERE, http, PROFILES["smart"], DownloadPolicy())
        file = ManifestFile("output", 0, "Patient", f"{neighbour.origin}/f?sig=S3CRET")
        with pytest.raises(DownloadRefused, match=r"downloads\.allow_hosts") as refused:
            bulk.download(file, False, tmp_path / "f")
    assert "S3CRET" not in str(refused.value)
    assert neighbour.connections == 0
    assert not list(tmp_path.iterdir())


def test_a_name_that_leads_inside_is_not_connected_to(
    neighbour: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, {"files.example.org": [["127.0.0.1"]]})
    with client(KnownHosts.of([ELSEWHERE])) as http, pytest.raises(ServerRefused, match=r"at 127\.0\.0\.1"):
        http.get(f"http://files.example.org:{neighbour.port}/")
    assert neighbour.connections == 0


def test_one_address_inside_among_public_ones_is_enough(
    neighbour: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, {"files.example.org": [["8.8.8.8", "::ffff:127.0.0.1"]]})
    with client(KnownHosts.of([ELSEWHERE])) as http, pytest.raises(ServerRefused, match="inside a network"):
        http.get(f"http://files.example.org:{neighbour.port}/")
    assert neighbour.connections == 0


def test_a_name_that_changes_its_mind_is_connected_to_where_it_was_judged(
    neighbour: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is judged, this machine when it would be asked again."""
    asked = resolving(monkeypatch, {"files.example.org": [["192.88.99.1"], ["127.0.0.1"]]})
    with client(KnownHosts.of([ELSEWHERE])) as http, pytest.raises((httpx.TransportError, ServerRefused)):
        http.get(f"http://files.example.org:{neighbour.port}/")
    assert asked == ["files.example.org"]
    assert neighbour.connections == 0


def test_a_name_that_the_configuration_names_may_be_anywhere(
    neighbour: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, {"fhir.hospital.example": [["127.0.0.1"]], "files.example.org": [["127.0.0.1"]]})
    known = KnownHosts.of([ELSEWHERE], [f"http://files.example.org:{neighbour.port}"])
    with client(known) as http:
        assert http.get(f"http://fhir.hospital.example:{neighbour.port}/").content == LINE
        assert http.get(f"http://files.example.org:{neighbour.port}/").content == LINE


@pytest.mark.parametrize(
    "target",
    [
        "https://169.254.169.254/latest/meta-data/",
        "https://[fd00:ec2::254]/latest/",
        "https://metadata.google.internal/computeMetadata/v1/",
        "https://168.63.129.16/machine",
        "https://10.0.0.1/f",
        "https://2130706433/f",
        "//169.254.169.254/f",
        "https://user:S3CRET@files.example.org/f",
        "file:///etc/passwd",
        "ftp://files.example.org/f",
        "gopher://127.0.0.1/_x",
        "data:text/plain,x",
        "https://\\169.254.169.254/f",
        "https://[::1/f",
    ],
)
@pytest.mark.parametrize("hops", [1, 2])
def test_a_redirect_inside_is_refused_at_each_hop(target: str, hops: int, tmp_path: Path) -> None:
    """Protocol 9, 28."""
    with RawServer(sending(b"")) as server:
        answers = [redirecting(f"{server.origin}/again")] * (hops - 1) + [redirecting(target)]
        server.answer = lambda connection: connection.sendall(answers[(len(server.requests) - 1) % hops])
        with client(KnownHosts.of([server.fhir])) as http:
            bulk = BulkClient(server.fhir, http, PROFILES["smart"], sleep=lambda _: None)
            file = ManifestFile("output", 0, "Patient", f"{server.origin}/f?sig=S3CRET")
            with pytest.raises(DownloadRefused) as refused:
                bulk.download(file, False, tmp_path / "f")
    assert len(server.requests) == hops
    assert "S3CRET" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "location",
    ["https://169.254.169.254/status", "file:///etc/passwd", "https://10.0.0.1/x", "//10.0.0.1/s"],
)
def test_a_status_url_inside_is_never_asked(location: str) -> None:
    """Protocol 17."""
    with RawServer(sending(OK)) as server, client(KnownHosts.of([server.fhir])) as http:
        with pytest.raises(ServerRefused):
            BulkClient(server.fhir, http, PROFILES["smart"]).status(location)
        assert server.connections == 0


@pytest.mark.parametrize("link", ["https://169.254.169.254/p2", "https://10.0.0.1/p2", "file:///p2"])
def test_a_page_of_the_manifest_inside_is_never_asked(link: str) -> None:
    """Protocol 27."""
    page = (
        '{"transactionTime":"2026-01-01T00:00:00Z","requiresAccessToken":false,"output":[],'
        f'"link":[{{"relation":"next","url":"{link}"}}]}}'
    )
    with (
        RawServer(sending(answering(page))) as server,
        client(KnownHosts.of([server.fhir])) as http,
        pytest.raises(ServerRefused),
    ):
        BulkClient(server.fhir, http, PROFILES["smart"]).status(f"{server.fhir}/status")


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://10.1.2.3/token",
        "https://169.254.169.254/token",
        "https://[::ffff:10.0.0.1]/token",
        "https://metadata.google.internal/token",
        "https://keycloak/token",
        "https://0x0a000001/token",
        "http://login.example.org/token",
        "file:///token",
        "https://me:secret@login.example.org/token",
    ],
)
def test_a_token_endpoint_that_discovery_puts_inside_gets_no_assertion(endpoint: str) -> None:
    """Protocol 5; elsewhere is normal (Entra, Okta), inside is not: `auth.token_url` may name it."""
    smart = f'{{"token_endpoint":"{endpoint}"}}'
    with RawServer(sending(answering(smart))) as server, client(KnownHosts.of([server.fhir])) as http:
        source = SmartTokenSource(
            PemSigner.from_pem(generate_key("ES384"), "ES384"),
            "client",
            "system/*.read",
            fhir_url=server.fhir,
        )
        with pytest.raises(AuthError):
            source.fetch(http)
        assert all(request.startswith(b"GET /fhir/.well-known") for request in server.requests)


def test_a_token_endpoint_elsewhere_on_the_internet_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    smart = '{"token_endpoint":"https://login.example.org/token","issuer":"https://10.0.0.1","jwks_uri":"file:///x"}'
    asked = resolving(monkeypatch, {"login.example.org": [["192.88.99.1"]]})
    with RawServer(sending(answering(smart))) as server, client(KnownHosts.of([server.fhir])) as http:
        source = SmartTokenSource(
            PemSigner.from_pem(generate_key("ES384"), "ES384"),
            "c",
            "s",
            fhir_url=server.fhir,
            sleep=lambda _: None,
        )
        with pytest.raises(ExportError):
            source.fetch(http)
    assert "login.example.org" in asked


def test_issuer_and_keys_of_the_server_are_told_and_never_asked() -> None:
    """The pipeline verifies no token of the server's: `issuer` and `jwks_uri` are words to it."""
    with RawServer(sending(b"")) as server, client(KnownHosts.of([server.fhir])) as http:
        server.answer = sending(
            answering(
                f'{{"token_endpoint":"{server.origin}/token","issuer":"https://169.254.169.254",'
                f'"jwks_uri":"{server.origin}/keys"}}'
            )
        )
        found = discover(http, server.fhir)
        assert found.jwks_uri == f"{server.origin}/keys"
        assert len(server.requests) == 1


def test_a_proxy_is_not_asked_for_what_lies_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(sending(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.origin)
        monkeypatch.setenv("https_proxy", proxy.origin)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        with client(KnownHosts.of([ELSEWHERE])) as http:
            for inside in ("169.254.169.254", "metadata.google.internal", "localhost", "0x7f.1", "[::1]"):
                with pytest.raises(ServerRefused):
                    http.get(f"https://{inside}/")
            assert proxy.connections == 0
            with pytest.raises(httpx.ProxyError):
                http.get("https://files.example.org/f")
        assert proxy.requests[0].startswith(b"CONNECT files.example.org:443")


def test_what_goes_past_the_proxy_is_judged_as_well(
    neighbour: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, {"files.example.org": [["127.0.0.1"]]})
    with RawServer(sending(b"")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.origin)
        monkeypatch.setenv("NO_PROXY", "files.example.org")
        monkeypatch.setenv("no_proxy", "files.example.org")
        with (
            client(KnownHosts.of([ELSEWHERE])) as http,
            pytest.raises(ServerRefused, match="inside a network"),
        ):
            http.get(f"http://files.example.org:{neighbour.port}/")
        assert (proxy.connections, neighbour.connections) == (0, 0)


def test_a_sources_client_is_made_with_what_its_configuration_names(tmp_path: Path) -> None:
    from pipeline.config import load_config
    from pipeline.exports.connection import connect

    (tmp_path / "exports.yaml").write_text(
        f"""
lake: lake
sources:
  - name: hosp
    fhir_url: {ELSEWHERE}
    auth: {{kind: none}}
    export: {{level: system}}
    downloads: {{allow_hosts: ["10.0.0.7:8443"]}}
"""
    )
    config = load_config(tmp_path / "exports.yaml")
    bulk = connect(config, config.source("hosp")).client
    file = ManifestFile("output", 0, "Patient", "https://10.0.0.8:8443/f")
    with pytest.raises(DownloadRefused, match=r"add 10\.0\.0\.8:8443 to downloads\.allow_hosts"):
        bulk.download(file, False, tmp_path / "f")
    with pytest.raises(ServerRefused, match="allow_hosts"):  # the client's own judgement, behind the policy's
        bulk._exchange.fetch("GET", "https://10.0.0.8:8443/f", {}, bearer=False)


def test_a_name_that_nobody_knows_is_unreachable_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        client(KnownHosts.of([ELSEWHERE])) as http,
        pytest.raises(Unreachable, match="host name is not known"),
    ):
        BulkClient(ELSEWHERE, http, PROFILES["smart"]).status(f"{ELSEWHERE}/s")
