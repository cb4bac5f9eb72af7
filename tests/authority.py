"""A certificate authority for the tests, and the environment in which every client trusts it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import certifi
import trustme


@dataclass(frozen=True)
class Authority:
    """Files in `folder`: `ca.pem`, `bundle.pem` (ca and the public ones), `server.pem`, `server.key`."""

    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.pem"

    @property
    def certificate(self) -> Path:
        """The server's certificate, for localhost and 127.0.0.1."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"

    @property
    def environment(self) -> dict[str, str]:
        """What makes OpenSSL (httpx, aiohttp), requests (azure-identity) and rustls (delta-rs) trust it."""
        return {"SSL_CERT_FILE": str(self.bundle), "REQUESTS_CA_BUNDLE": str(self.bundle)}

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.bundle))


def make_authority(folder: Path) -> Authority:
    """A new one; nothing outside `folder` is touched."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1", "::1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "bundle.pem").write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    for blob in server.cert_chain_pems:
        blob.write_to_path(str(folder / "server.pem"), append=True)
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    (folder / "server.key").chmod(0o600)
    return Authority(folder)
