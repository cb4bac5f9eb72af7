"""A lake in a container of Azure storage, flat or with a hierarchical namespace.

adlfs reads; what must be atomic goes to the SDK's client below it. adlfs's own `put_file` cannot tell its own
retried request from somebody else's file, its listings walk into neighbours and take a missing container for
an empty one, and its `open(..., "wb")` publishes half a file (azure-and-aidbox E).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from pipeline.azure.environment import refuse_overrides
from pipeline.config import LakeAuth
from pipeline.errors import ConfigError, ExportError, LakeError
from pipeline.lake.blob_account import BlobAccount, open_account
from pipeline.lake.blob_address import BlobAddress, parse_address
from pipeline.lake.blob_errors import error_code, explain
from pipeline.lake.blob_reader import BlobReader
from pipeline.lake.blob_upload import Upload
from pipeline.lake.lake import UNFINISHED, Lake, ReadSecret, Stored, Version

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient, ContainerClient


def open_azure(
    url: str, auth: LakeAuth | None, secret: ReadSecret | None, *, wipe: bool = False
) -> AzureLake:
    """The lake at `abfs(s)://container@account.dfs.<cloud>/path`; contacts nothing.

    Raises `ConfigError`, for environment variables that would replace the credential too.
    """
    address = parse_address(url)
    auth = auth or LakeAuth()
    references = (auth.sas, auth.connection_string, auth.client_secret, auth.certificate)
    refuse_overrides([each[4:] for each in references if each and each.startswith("env:")])
    return AzureLake(address, partial(open_account, address, auth, secret or _no_secret), wipes=wipe)


def _no_secret(reference: str) -> bytes:
    raise ConfigError(f"{reference} cannot be resolved here")


class AzureLake(Lake):
    """Blobs below one prefix. `account` opens the account in whichever process asks; `page`: names that a
    listing asks for at a time."""

    def __init__(
        self,
        address: BlobAddress,
        account: Callable[[], BlobAccount],
        page: int = 5000,
        wipes: bool = False,
    ) -> None:
        self.address = address
        self.wipes = wipes
        self._page = page
        self._open_account = account
        self._opened: tuple[int, BlobAccount] | None = None

    def __reduce__(
        self,
    ) -> tuple[type[AzureLake], tuple[BlobAddress, Callable[[], BlobAccount], int, bool]]:
        return AzureLake, (self.address, self._open_account, self._page, self.wipes)

    def __repr__(self) -> str:
        return f"AzureLake({self.place!r})"

    @property
    def account(self) -> BlobAccount:
        """As opened in this process. Raises `ConfigError`, and what reading a secret raises."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._opened = (os.getpid(), self._open_account())
        return opened[1]

    @property
    def root(self) -> str:
        return f"{self.address.container}/{self.address.prefix}".rstrip("/")

    @property
    def place(self) -> str:
        return self.address.place

    def table_uri(self, relative: str) -> str:
        return f"az://{self.full(relative)}"

    @property
    def storage_options(self) -> dict[str, str]:
        with self._in_words("the lake's tables cannot be opened"):
            return self.account.storage_options

    def read(self, relative: str) -> bytes | None:
        found = self.read_version(relative)
        return None if found is None else found.data

    def read_version(self, relative: str) -> Version | None:
        from azure.core.exceptions import ResourceNotFoundError

        async def work() -> Version | None:
            try:
                stream = await blob.download_blob(max_concurrency=account.fs.max_concurrency)
            except ResourceNotFoundError as error:
                if error_code(error) == "BlobNotFound":
                    return None
                raise
            return Version(await stream.readall(), str(stream.properties.etag))

        with self._in_words(f"{relative} cannot be read from the lake"):
            account, blob = self.account, self._blob(relative)
            return account.run(work)

    def open(self, relative: str) -> BinaryIO:
        doing = f"{relative} cannot be read from the lake"
        path = self.full(relative)
        with self._in_words(doing):
            file = self.account.fs.open(path, "rb")
        return cast("BinaryIO", io.BufferedReader(BlobReader(file, partial(self._in_words, doing)), 1 << 16))

    def put_new(self, relative: str, data: bytes) -> bool:
        from azure.core.exceptions import ResourceExistsError

        with self._in_words(f"{relative} cannot be written to the lake"):
            account, blob = self.account, self._blob(relative)
            try:
                account.run(
                    lambda: blob.upload_blob(
                        data, overwrite=False, max_concurrency=account.fs.max_concurrency
                    )
                )
            except ResourceExistsError as error:
                if error_code(error) != "BlobAlreadyExists":
                    raise
                return self.read(relative) == data
        return True

    def put_file(self, local: Path, relative: str) -> None:
        with self._in_words(f"{relative} cannot be written to the lake"):
            account, blob = self.account, self._blob(relative)
            put = Upload(blob, local, account.fs.max_concurrency)
            account.run(put.work)

    def replace_if(self, relative: str, data: bytes, etag: str) -> bool:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        with self._in_words(f"{relative} cannot be written to the lake"):
            account, blob = self.account, self._blob(relative)
            try:
                account.run(
                    lambda: blob.upload_blob(
                        data,
                        overwrite=True,
                        etag=etag,
                        match_condition=MatchConditions.IfNotModified,
                        max_concurrency=account.fs.max_concurrency,
                    )
                )
            except ResourceModifiedError:
                # A retried request of ours may have done it already.
                return self.read(relative) == data
            except ResourceNotFoundError as error:
                if error_code(error) == "BlobNotFound":
                    return False
                raise
        return True

    def sizes(self, relative: str) -> dict[str, int]:
        found = self.stored(relative)
        return {name: each.bytes for name, each in found.items() if not _is_unfinished(name)}

    def stored(self, relative: str) -> dict[str, Stored]:
        prefix = self._prefix(relative)

        async def work() -> dict[str, Stored]:
            blobs = self._container().list_blobs(
                name_starts_with=prefix, include=["metadata"], results_per_page=self._page
            )
            return {
                each.name[len(prefix) :]: Stored(int(each.size or 0), each.last_modified)
                async for each in blobs
                if not _is_folder(each)
            }

        with self._in_words(f"{relative} cannot be listed in the lake"):
            return dict(sorted(self.account.run(work).items()))

    def names(self, relative: str) -> list[str]:
        prefix = self._prefix(relative)

        async def work() -> set[str]:
            entries = self._container().walk_blobs(
                name_starts_with=prefix, delimiter="/", include=["metadata"], results_per_page=self._page
            )
            return {each.name[len(prefix) :].rstrip("/") async for each in entries}

        with self._in_words(f"{relative} cannot be listed in the lake"):
            found = self.account.run(work)
        return sorted(name for name in found if name and not _is_unfinished(name))

    def remove(self, relative: str) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        with self._in_words(f"{relative} cannot be removed from the lake"):
            account, blob = self.account, self._blob(relative)
            try:
                account.run(blob.delete_blob)
            except ResourceNotFoundError as error:
                if error_code(error) != "BlobNotFound":
                    raise

    @contextmanager
    def local_copy(self, relative: str) -> Iterator[Path]:
        path = self.full(relative)
        with self.spool() as folder:
            copy = folder / "copy"
            with self._in_words(f"{relative} cannot be read from the lake"):
                self.account.fs.get_file(path, str(copy))
            yield copy

    def _container(self) -> ContainerClient:
        return self.account.service.get_container_client(self.address.container)

    def _blob(self, relative: str) -> BlobClient:
        name = self.full(relative).removeprefix(f"{self.address.container}/")
        return self._container().get_blob_client(name)

    def _prefix(self, relative: str) -> str:
        return self.full(relative).removeprefix(f"{self.address.container}/").rstrip("/") + "/"

    @contextmanager
    def _in_words(self, doing: str) -> Iterator[None]:
        """What the libraries raise, as a `LakeError` that says what to do."""
        try:
            yield
        except ExportError:
            raise
        except Exception as error:  # noqa: BLE001 - adlfs and the SDK raise of every kind; their texts stay here
            self._raise_in_words(error, doing)

    def _raise_in_words(self, error: Exception, doing: str) -> NoReturn:
        why, advice = explain(error, self.address, self._opened[1].access if self._opened else None)
        raise LakeError(f"{doing}: {why}", advice) from None


def _is_folder(entry: Any) -> bool:
    """Of a hierarchical namespace, or the empty blob by which other tools mark one."""
    metadata = {str(name).lower(): value for name, value in (entry.metadata or {}).items()}
    marked = "true" in (metadata.get("hdi_isfolder"), metadata.get("is_directory"))
    return marked or entry.name.endswith("/")


def _is_unfinished(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(UNFINISHED)
