"""adlfs with one client of ours: bounded blocks and connections, no cache, nothing from the environment.

Imported only when a lake on Azure is used: adlfs and the SDK are heavy.
"""

from __future__ import annotations

import socket
import ssl
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from adlfs import AzureBlobFileSystem
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.storage.blob.aio import BlobServiceClient, ExponentialRetry

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError

    from pipeline.lake.blob_account import BlobAccess
    from pipeline.lake.blob_identity import AsyncIdentity

MAX_CONCURRENCY = 4
"""Requests at a time for one file: adlfs's default of thousands holds all of it in memory (E)."""
BLOCK = 8 * 2**20
"""Bytes in one request at most: files up to this size are one Put Blob."""

TRIES = 4
"""After the first one, with 3, 5, 9 and 17 seconds between them."""


def service_client(access: BlobAccess, identity: AsyncIdentity | None) -> BlobServiceClient:
    """The SDK's client: an identity, else the key or the SAS of `access`, else anonymous."""
    credential: Any = identity
    if access.key is not None:
        credential = AzureNamedKeyCredential(access.account, access.key)
    elif access.sas is not None:
        credential = AzureSasCredential(access.sas)
    return BlobServiceClient(
        access.endpoint,
        credential=credential,
        max_single_put_size=BLOCK,
        max_block_size=BLOCK,
        use_byte_buffer=True,  # aiohttp closes a stream that breaks off: it could not be sent again
        max_single_get_size=BLOCK,
        max_chunk_get_size=BLOCK,
        retry_policy=PatientRetry(),
    )


class PatientRetry(ExponentialRetry):
    """About half a minute for busy servers and broken connections; no second try where none can help."""

    def __init__(self) -> None:
        super().__init__(initial_backoff=1, increment_base=2, retry_total=TRIES, random_jitter_range=1)
        self.connect_retries = self.read_retries = self.status_retries = TRIES

    def increment(
        self, settings: dict[str, Any], request: Any, response: Any = None, error: AzureError | None = None
    ) -> bool:
        """Whether to try again (the SDK's hook)."""
        if error is not None and is_hopeless(error):
            return False
        return bool(super().increment(settings, request, response, error))


def is_hopeless(error: BaseException) -> bool:
    """A host that does not exist, a certificate that is not trusted."""
    return any(
        isinstance(each, ssl.SSLCertVerificationError)
        or (isinstance(each, socket.gaierror) and each.errno in (socket.EAI_NONAME, _EAI_NODATA))
        for each in origins(error)
    )


_EAI_NODATA = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)


def origins(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was made of, outermost first."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, *each.args]
            waiting += [getattr(each, name, None) for name in ("inner_exception", "os_error")]
            waiting += [getattr(each, "certificate_error", None)]


class BlobFileSystem(AzureBlobFileSystem):  # type: ignore[misc]
    """An fsspec filesystem whose paths are `container/name`.

    Its client is given, not found: what adlfs has read from the environment is forgotten again (E).
    """

    cachable = False

    def __init__(self, account: str, client: Callable[[], BlobServiceClient]) -> None:
        self._client = client
        super().__init__(
            account_name=account,
            anon=True,
            use_listings_cache=False,
            assume_container_exists=True,
            max_concurrency=MAX_CONCURRENCY,
            blocksize=BLOCK,
        )
        self.account_key = self.connection_string = self.sas_token = None
        self.client_id = self.client_secret = self.tenant_id = None
        self._forget_exit_handlers()

    def _forget_exit_handlers(self) -> None:
        """adlfs's own would keep every filesystem for ever, and wait in a forked child for an event loop that
        only the parent has: the child would never end."""
        for handler in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            alive = handler.peek()
            if alive is not None and alive[0] is self:
                handler.detach()

    def do_connect(self) -> None:
        self.service_client = self._client()
