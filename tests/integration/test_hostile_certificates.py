"""Certificates that prove nothing, and TLS of the last century: nobody is sent anything, the host is named.

Each server is real TLS on loopback, of an authority that is trusted here: only the one thing is wrong. What
it reads behind the handshake is what reached it.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from raw_server import RawServer, sending

from pipeline.auth.keys import generate_key
from pipeline.azure.keyvault import read_secret
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.parameters import KickoffParameters
from pipeline.config import Config, KeyVaultAuth, LakeAuth
from pipeline.errors import ExportError, LakeError
from pipeline.exports.connection import (
    connect,
    download_policy,
    http_client,
    known_hosts,
    storage_access_of,
)
from pipeline.lake.lake import open_lake
from pipeline.notify.bodies import BODIES
from pipeline.notify.notice import Notice
from pipeline.notify.webhook import TRIES, Webhook

HERE = "127.0.0.1"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MOST_TRIES = 4
"""Connections that one question may cost: a token request is tried four times, all others fewer."""

CAUSES = {
    "expired": "expired",
    "another host": "mismatch",
    "self-signed": "self-signed",
    "tls 1.1": "TLS failed",
}


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ssl.SSLContext]:
    """A server's TLS by what is wrong with it, `good` beside them; `trusting` trusts all but one."""
    folder = tmp_path_factory.mktemp("hostile-tls")
    authority, now = trustme.CA(), datetime.now(UTC)
    (folder / "bundle.pem").write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    made: dict[str, ssl.SSLContext] = {}

    def serve(name: str, certificate: trustme.LeafCert) -> ssl.SSLContext:
        made[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(made[name])
        return made[name]

    serve("good", authority.issue_cert("localhost", HERE))
    long_ago, yesterday = now - timedelta(days=90), now - timedelta(days=1)
    serve("expired", authority.issue_cert("localhost", HERE, not_before=long_ago, not_after=yesterday))
    serve("another host", authority.issue_cert("fhir.other.example", "127.0.0.2"))
    old = serve("tls 1.1", authority.issue_cert("localhost", HERE))
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    made["self-signed"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made["self-signed"].load_cert_chain(self_signed(folder / "own.pem"))
    made["trusting"] = ssl.create_default_context(cafile=str(folder / "bundle.pem"))
    return made


def self_signed(path: Path) -> Path:
    """Its own authority, for this very host: everything is right but who says so."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HERE))]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@pytest.fixture(autouse=True)
def _trusted(contexts: dict[str, ssl.SSLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority of these servers is trusted by httpx and by requests."""
    bundle = tmp_path / "bundle.pem"
    trusted = contexts["trusting"].get_ca_certs(binary_form=True)
    bundle.write_text("".join(map(ssl.DER_cert_to_PEM_cert, trusted)))
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(bundle))


@pytest.fixture(params=["expired", "another host", "self-signed", "tls 1.1"])
def hostile(
    request: pytest.FixtureRequest, contexts: dict[str, ssl.SSLContext]
) -> Iterator[tuple[RawServer, str]]:
    """A server whose TLS is wrong, and what must be said of it."""
    with RawServer(sending(NOT_FOUND), contexts[request.param]) as server:
        if request.param == "tls 1.1" and not speaks_old_tls(server.port):
            pytest.skip("this machine's OpenSSL does not even serve TLS 1.1")
        server.connections = 0
        server.requests.clear()
        yield server, CAUSES[request.param]


def speaks_old_tls(port: int) -> bool:
    """Whether who wants to can speak to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    with (
        suppress(OSError),
        socket.create_connection((HERE, port), 10) as connection,
        context.wrap_socket(connection) as secured,
    ):
        return secured.version() == "TLSv1.1"
    return False


# --- the parties: each asks its server one question, on the ways of the product ---------------------------


def config_of(folder: Path, fhir: str, **source: object) -> Config:
    (folder / "key.pem").write_bytes(generate_key("ES384"))
    entry = {
        "name": "hosp",
        "fhir_url": fhir,
        "auth": {"kind": "none"},
        "export": {"level": "system"},
        **source,
    }
    return Config.model_validate({"lake": "lake", "sources": [entry], "folder": folder})


def fhir_server(server: RawServer, folder: Path) -> None:
    config = config_of(folder, server.fhir)
    connect(config, config.source(None)).client.kick_off(KickoffParameters(level="system"))


def token_endpoint(server: RawServer, folder: Path) -> None:
    auth = {
        "client_id": "me",
        "private_key": "file:key.pem",
        "algorithm": "ES384",
        "token_url": f"{server.origin}/token",
    }
    config = config_of(folder, "https://fhir.hospital.example/r4", auth=auth)
    connect(config, config.source(None)).sign_in()


def discovered(server: RawServer, folder: Path) -> None:
    auth = {"client_id": "me", "private_key": "file:key.pem", "algorithm": "ES384"}
    config = config_of(folder, server.fhir, auth=auth)
    connect(config, config.source(None)).sign_in()


def entra(server: RawServer, folder: Path) -> None:
    (folder / "secret").write_text("S3CRET-OF-ENTRA")
    auth = {
        "kind": "entra-secret",
        "tenant_id": "contoso.example",
        "client_id": "me",
        "client_secret": "file:secret",
        "authority": server.origin,
        "audience": "https://fhir.hospital.example",
    }
    config = config_of(folder, "https://fhir.hospital.example/r4", auth=auth)
    connect(config, config.source(None)).sign_in()


def download_from(config: Config, url: str, folder: Path) -> None:
    source = config.source(None)
    with http_client(known_hosts(config, source), source.timeouts) as http:
        BulkClient(
            source.fhir_url,
            http,
            connect(config, source).client.profile,
            download_policy(config, source),
            sleep=lambda _: None,
        ).download(ManifestFile("output", 0, "Patient", url), False, folder / "f")


def download_host(server: RawServer, folder: Path) -> None:
    config = config_of(folder, "https://fhir.hospital.example/r4", downloads={"allow_hosts": [server.origin]})
    download_from(config, f"{server.origin}/f?sig=S3CRET", folder)


def azure_storage(server: RawServer, folder: Path) -> None:
    (folder / "sas").write_text("sv=2023-11-03&sig=S3CRET")
    storage = {"account": "contoso", "kind": "sas", "sas": "file:sas", "endpoint": f"{server.origin}/contoso"}
    config = config_of(folder, "https://fhir.hospital.example/r4", downloads={"storage": storage})
    download_from(config, f"{server.origin}/contoso/c/f.ndjson", folder)


def key_vault(server: RawServer, folder: Path) -> None:
    (folder / "secret").write_text("S3CRET-OF-THE-VAULT")
    auth = KeyVaultAuth.model_validate(
        {
            "kind": "service-principal",
            "tenant_id": "contoso.example",
            "client_id": "me",
            "client_secret": "file:secret",
        }
    )
    read_secret(f"{server.origin}/secrets/key", auth, folder)


def azure_identity(server: RawServer, folder: Path) -> None:
    (folder / "secret").write_text("S3CRET-OF-ENTRA")
    storage = {
        "account": "contoso",
        "kind": "service-principal",
        "tenant_id": "contoso.example",
        "client_id": "me",
        "client_secret": "file:secret",
        "authority": server.origin,
        "endpoint": "https://contoso.blob.core.windows.net",
    }
    config = config_of(folder, "https://fhir.hospital.example/r4", downloads={"storage": storage})
    access = storage_access_of(config, config.source(None))
    assert access is not None
    access.prepare("https://contoso.blob.core.windows.net/c/f.ndjson")


def webhook(server: RawServer, folder: Path) -> None:
    notice = Notice("held", "hosp", "held", "disk full", "make room", datetime.now(UTC))
    Webhook(lambda: f"{server.origin}/S3CRET?sig=S3CRET", BODIES["json"], "env:HOOK").tell(notice)


PARTIES: dict[str, Callable[[RawServer, Path], None]] = {
    "FHIR server": fhir_server,
    "token endpoint": token_endpoint,
    "discovery": discovered,
    "Entra": entra,
    "download host": download_host,
    "Azure Storage": azure_storage,
    "Key Vault": key_vault,
    "Azure's identity": azure_identity,
    "webhook": webhook,
}
parties = pytest.mark.parametrize("ask", PARTIES.values(), ids=PARTIES.keys())


@parties
def test_who_proves_nothing_is_sent_nothing_and_named(
    ask: Callable[[RawServer, Path], None], hostile: tuple[RawServer, str], tmp_path: Path
) -> None:
    """Protocol 1: TLS 1.2 or later, verified, everywhere."""
    server, cause = hostile
    with pytest.raises(ExportError) as refused:
        ask(server, tmp_path)
    said = str(refused.value)
    assert server.requests == []
    assert HERE in said, "it names the host"
    assert cause in said
    assert refused.value.advice
    assert "S3CRET" not in said
    assert 1 <= server.connections <= MOST_TRIES, "no storm of tries"


@parties
def test_the_same_question_arrives_where_the_certificate_is_good(
    ask: Callable[[RawServer, Path], None], contexts: dict[str, ssl.SSLContext], tmp_path: Path
) -> None:
    """Else the tests above would prove nothing."""
    with RawServer(sending(NOT_FOUND), contexts["good"]) as server:
        with pytest.raises(ExportError) as refused:
            ask(server, tmp_path)
        assert server.requests
        assert "certificate" not in str(refused.value)


def test_a_lake_whose_certificate_is_its_own_is_sent_nothing(
    contexts: dict[str, ssl.SSLContext], tmp_path: Path
) -> None:
    """azure-and-aidbox E: by adlfs, whose TLS is another library's."""
    with RawServer(sending(NOT_FOUND), contexts["self-signed"]) as server:
        key = base64.b64encode(b"S3CRET").decode()
        held = f"AccountName=contoso;AccountKey={key};BlobEndpoint={server.origin}/contoso;"
        auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
        lake = open_lake(
            "abfss://lake@contoso.dfs.core.windows.net/x", tmp_path, auth, lambda _: held.encode()
        )
        with pytest.raises(LakeError, match="certificate") as refused:
            lake.read("a")
        assert server.requests == []
        assert f"{HERE}:{server.port}" in str(refused.value)
        assert 1 <= server.connections <= MOST_TRIES


def test_the_tries_of_a_webhook_are_counted() -> None:
    assert TRIES <= MOST_TRIES
