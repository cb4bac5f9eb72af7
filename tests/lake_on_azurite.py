"""Lakes in the tests' own Azurite, opened as a configuration opens them."""

from __future__ import annotations

import time
from pathlib import Path

from azure.core.credentials import AccessToken
from azure_storage import ACCOUNT, Azurite, storage_token

from pipeline.config import LakeAuth
from pipeline.lake.azure import AzureLake
from pipeline.lake.blob_account import BlobAccess, BlobAccount
from pipeline.lake.blob_address import parse_address
from pipeline.lake.lake import Lake, open_lake

SUFFIX = "dfs.core.windows.net"


def lake_url(container: str, prefix: str = "night", account: str = ACCOUNT) -> str:
    return f"abfs://{container}@{account}.{SUFFIX}/{prefix}"


def lake_by_key(azurite: Azurite, container: str | None = None, prefix: str = "night") -> Lake:
    """By connection string, in a container of its own unless one is named."""
    held = azurite.connection_string.encode()
    auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
    return open_lake(lake_url(container or azurite.new_container(), prefix), Path("/"), auth, lambda _: held)


def lake_by_sas(azurite: Azurite, sas: str, container: str | None = None) -> Lake:
    auth = LakeAuth(kind="sas", sas="env:HELD", endpoint=azurite.endpoint)
    return open_lake(lake_url(container or azurite.new_container()), Path("/"), auth, lambda _: sas.encode())


def logged(azurite: Azurite, text: str, expected: int) -> list[str]:
    """The requests so far that hold `text`. Azurite writes its log a little late: `expected` are waited for,
    and then a moment for any that should not be there."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and len(_holding(azurite, text)) < expected:
        time.sleep(0.02)
    time.sleep(0.2)
    return _holding(azurite, text)


def _holding(azurite: Azurite, text: str) -> list[str]:
    return [line for line in azurite.requests() if text in line]


class Identity:
    """A credential that makes the tokens which Azurite believes; for blocking callers."""

    def __init__(self, seconds: float = 3600) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, ...]] = []

    def get_token(self, *scopes: str, **options: object) -> AccessToken:
        self.asked.append(scopes)
        return AccessToken(storage_token(seconds=self.seconds), int(time.time() + self.seconds))


class AsyncIdentity(Identity):
    """The same for adlfs."""

    async def get_token(self, *scopes: str, **options: object) -> AccessToken:  # type: ignore[override]
        return super().get_token(*scopes, **options)

    async def close(self) -> None:
        return None


def lake_by_token(
    azurite_tls: Azurite,
    container: str | None = None,
    seconds: float = 3600,
    identity: Identity | None = None,
) -> AzureLake:
    """By bearer token, over TLS."""
    address = parse_address(lake_url(container or azurite_tls.new_container()))
    access = BlobAccess(ACCOUNT, azurite_tls.endpoint, LakeAuth(kind="managed-identity"))
    account = BlobAccount(access, identity or Identity(seconds), AsyncIdentity(seconds))
    return AzureLake(address, lambda: account)
