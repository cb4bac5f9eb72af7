"""One storage account as this process uses it: who we are there, its connections, and delta-rs's options.

Connections and event loops do not survive a fork, so there is one `BlobAccount` per configuration and
process; a secret that has changed (a renewed SAS in its file) makes another one when a lake is opened next.
"""

from __future__ import annotations

import os
import threading
import weakref
from asyncio import AbstractEventLoop, run_coroutine_threadsafe
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from pipeline.azure.credentials import async_token_credential, token_credential
from pipeline.azure.endpoint import other_account
from pipeline.config import LakeAuth, StorageAuth
from pipeline.errors import ConfigError
from pipeline.lake.blob_address import BlobAddress, parse_connection_string
from pipeline.lake.blob_identity import AsyncIdentity, Identity
from pipeline.lake.lake import ReadSecret
from pipeline.redaction import remember

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.storage.blob.aio import BlobServiceClient

    from pipeline.lake.blob_filesystem import BlobFileSystem

T = TypeVar("T")

LONGEST_CLOSING = 5.0
"""Seconds that the end of a process waits for its connections to be closed."""


@dataclass(frozen=True)
class BlobAccess:
    """Where an account is and what opens it: a key, a SAS, an identity, or nothing."""

    account: str
    endpoint: str
    auth: StorageAuth
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)
    identity_secret: bytes = field(default=b"", repr=False)
    """Of the service principal: one with a new secret is another access."""

    def __post_init__(self) -> None:
        for secret in (self.key, self.sas, self.identity_secret):
            if secret:
                remember(secret, lasting=True)

    @property
    def by_token(self) -> bool:
        return self.key is None and self.sas is None and self.auth.kind != "none"


def find_access(address: BlobAddress, auth: LakeAuth, secret: ReadSecret) -> BlobAccess:
    """Resolves what the configuration refers to. Raises `ConfigError`, and what `secret` raises."""
    access = _resolved(address, auth, secret)
    other = other_account(access.endpoint, address.account)
    if other is not None:
        raise ConfigError(
            f"wrong account: lake names {address.account}, the endpoint in lake_auth {other}",
            "Make lake and lake_auth (endpoint, or the connection string's BlobEndpoint) name one account",
        )
    return access


def _resolved(address: BlobAddress, auth: LakeAuth, secret: ReadSecret) -> BlobAccess:
    endpoint = auth.endpoint or address.endpoint
    if auth.kind == "connection-string":
        found = parse_connection_string(_text(secret, auth.connection_string))
        if found.account != address.account:
            raise ConfigError(
                f"wrong account: lake names {address.account}, the connection string {found.account}",
                "Make lake and lake_auth.connection_string name the same storage account",
            )
        where = auth.endpoint or found.endpoint
        return BlobAccess(address.account, where, auth, key=found.key, sas=found.sas)
    if auth.kind == "sas":
        sas = _text(secret, auth.sas).removeprefix("?")
        if "sig=" not in sas or "://" in sas:
            raise ConfigError(
                "lake_auth.sas is no shared access signature",
                "It is the part after the ? of a SAS URL: sv=...&sig=...",
            )
        return BlobAccess(address.account, endpoint, auth, sas=sas)
    if auth.kind != "none" and not endpoint.startswith("https:"):
        raise ConfigError(
            f"lake_auth.endpoint is plain http, where kind {auth.kind} may not send its token",
            "Use https there, or kind connection-string or sas with an emulator on this machine",
        )
    reference = auth.client_secret or auth.certificate if auth.kind == "service-principal" else None
    held = secret(reference) if reference else b""
    return BlobAccess(address.account, endpoint, auth, identity_secret=held)


def _text(secret: ReadSecret, reference: str | None) -> str:
    try:
        return secret(reference or "").decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"what {reference} names is not text") from None


class BlobAccount:
    """The open account. Threads may share it; another process may not.

    `identity` and `async_identity` are the same one, for delta-rs and for adlfs; None with a key or a SAS.
    """

    def __init__(
        self,
        access: BlobAccess,
        identity: TokenCredential | None = None,
        async_identity: AsyncTokenCredential | None = None,
    ) -> None:
        from pipeline.lake.blob_filesystem import BlobFileSystem, service_client

        self.access = access
        self._identity = None if identity is None else Identity(identity, access.account)
        told = None if async_identity is None else AsyncIdentity(async_identity, access.account)
        self.fs: BlobFileSystem = BlobFileSystem(access.account, lambda: service_client(access, told))

        weakref.finalize(self, _close, os.getpid(), self.fs.loop, self.service, told)

    @property
    def service(self) -> BlobServiceClient:
        client: BlobServiceClient = self.fs.service_client
        return client

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Runs it on the filesystem's event loop and waits."""
        from fsspec.asyn import sync

        result: T = sync(self.fs.loop, work)
        return result

    @cached_property
    def _addressing(self) -> dict[str, str]:
        """What delta-rs would otherwise take from the environment or guess."""
        return {
            "azure_storage_account_name": self.access.account,
            "azure_storage_endpoint": self.access.endpoint,
            "azure_storage_use_emulator": "false",
            "azure_use_fabric_endpoint": "false",
            "azure_allow_http": "false" if self.access.endpoint.startswith("https:") else "true",
        }

    @property
    def storage_options(self) -> dict[str, str]:
        """For delta-rs, with a token that lives for two minutes at least.

        Raises `LakeError` when the identity gives none, or only shorter ones.
        """
        if self.access.key is not None:
            return {**self._addressing, "azure_storage_account_key": self.access.key}
        if self.access.sas is not None:
            return {**self._addressing, "azure_storage_sas_token": self.access.sas}
        if self._identity is None:
            # The second one keeps delta-rs from looking for a credential in the environment.
            return {**self._addressing, "azure_skip_signature": "true", "azure_use_azure_cli": "false"}
        return {**self._addressing, "azure_storage_token": self._identity.fresh_token()}


_open: dict[tuple[int, BlobAccess], BlobAccount] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a lock that was held in the parent would stay locked here
    _lock = threading.Lock()


def _close(
    process: int, loop: AbstractEventLoop, service: BlobServiceClient, identity: AsyncIdentity | None
) -> None:
    """When an account is no longer used, and at the end of the process."""
    if process != os.getpid():
        return  # the event loop of a parent does not run here: it would be waited for

    async def work() -> None:
        await service.close()
        if identity is not None:
            await identity.close()

    from fsspec.asyn import iothread

    closing = run_coroutine_threadsafe(work(), loop)
    if threading.current_thread() is not iothread[0]:
        with suppress(TimeoutError):
            closing.result(LONGEST_CLOSING)


os.register_at_fork(after_in_child=_after_fork)


def open_account(address: BlobAddress, auth: LakeAuth, secret: ReadSecret) -> BlobAccount:
    """The account for this configuration in this process: the same one each time.

    Contacts nothing. Raises `ConfigError`, and what `secret` raises.
    """
    access = find_access(address, auth, secret)
    key = (os.getpid(), access)
    with _lock:
        if key not in _open:
            _open[key] = _sign_in(access, secret) if access.by_token else BlobAccount(access)
        return _open[key]


def _sign_in(access: BlobAccess, secret: ReadSecret) -> BlobAccount:
    return BlobAccount(
        access, token_credential(access.auth, secret), async_token_credential(access.auth, secret)
    )
