"""Azurite, Azure Storage's own emulator, as a process of the test: plain, or over TLS with bearer tokens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from authority import Authority
from azure.core.credentials import AccessToken
from azure.storage.blob import (
    AccountSasPermissions,
    BlobServiceClient,
    ContainerClient,
    ResourceTypes,
    generate_account_sas,
)

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's published key; it opens nothing else."""

_NODE = Path(sys.executable).with_name("node")
_AZURITE = (
    Path(__file__).parent / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
)
_LISTENS = re.compile(rb"listens? (?:on|at) (https?)://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Azurite:
    """One account, `devstoreaccount1`, at `endpoint` (`http://127.0.0.1:PORT/devstoreaccount1`)."""

    endpoint: str
    process: subprocess.Popen[bytes]
    log: Path
    """Azurite's access log: one line per request with method, path and status; no headers."""
    headers_log: Path
    """Azurite's debug log, which has every request's headers; empty unless it was asked for."""

    @property
    def connection_string(self) -> str:
        scheme = self.endpoint.split(":", 1)[0]
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={self.endpoint};"
        )

    def service(self) -> BlobServiceClient:
        """A client with the account key, for the test's own looks (plain http only, or with the CA in the
        environment)."""
        return BlobServiceClient.from_connection_string(self.connection_string)

    def new_container(self, prefix: str = "lake") -> str:
        """Makes a container of a name that is not taken."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self.service().create_container(name)
        return name

    def container(self, name: str) -> ContainerClient:
        return self.service().get_container_client(name)

    def names(self, container: str, prefix: str = "") -> list[str]:
        """The blobs of a container."""
        return sorted(self.container(container).list_blob_names(name_starts_with=prefix))

    def sas(self, permission: str = "rwdlac", minutes: float = 60) -> str:
        """An account SAS without the question mark."""
        return generate_account_sas(
            ACCOUNT,
            KEY,
            ResourceTypes(service=True, container=True, object=True),
            AccountSasPermissions.from_string(permission),
            datetime.now(UTC) + timedelta(minutes=minutes),
            start=datetime.now(UTC) - timedelta(minutes=5),
        )

    def requests(self) -> list[str]:
        """Azurite's log so far, lines such as `... "PUT /devstoreaccount1/c/b HTTP/1.1" 201 -`."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if " HTTP/1" in line]


@contextmanager
def start_azurite(
    folder: Path, authority: Authority | None = None, *, port: int = 0, headers: bool = False
) -> Iterator[Azurite]:
    """Runs until the end of the block. With `authority` over TLS, where it takes bearer tokens too.

    `headers`: every request's headers are written to `headers_log`.

    Everything it holds is in memory and ends with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, headers_log = folder / "azurite.log", folder / "azurite-headers.log"
    command = [str(_NODE), str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry"]
    if authority is not None:
        command += ["--cert", str(authority.certificate), "--key", str(authority.key), "--oauth", "basic"]
    if headers:
        command += ["--debug", str(headers_log)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        endpoint = _endpoint(process, log)
        yield Azurite(endpoint, process, log, headers_log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _endpoint(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = _LISTENS.search(log.read_bytes())
        if found:
            return f"{found[1].decode()}://127.0.0.1:{found[2].decode()}/{ACCOUNT}"
        threading.Event().wait(0.05)
    raise AssertionError(f"Azurite did not start: {log.read_text()[-2000:]}")


def storage_token(
    audience: str = "https://storage.azure.com", seconds: float = 3600, **claims: object
) -> str:
    """A bearer token that Azurite's `--oauth basic` accepts: it looks at claims, not at the signature."""
    now = int(time.time())
    return jwt.encode(
        {
            "aud": audience,
            "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
            "iat": now - 10,
            "nbf": now - 10,
            "exp": now + int(seconds),
            "tid": "ab1f708d-50f6-404c-a006-d71b2ac7a606",
            "oid": "9e5d6f4a-0000-4000-8000-1d5c8b6a7f00",
            **claims,
        },
        "not-verified-by-azurite-in-basic-mode",
        algorithm="HS256",
    )


class FixedToken:
    """A credential that gives one token, for looks with the SDK."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **options: object) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)
