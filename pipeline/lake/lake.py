"""The lake: immutable files under one root, written whole or not at all. What it does, how it is opened."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, LakeError
from pipeline.lake.spool import private_folder

if TYPE_CHECKING:
    from pipeline.config import LakeAuth

ReadSecret = Callable[[str], bytes]
"""Reference -> secret, such as `Config.secret`."""

SPOOL = ".spool"
"""In a local lake's root: the folders of files on their way."""

UNFINISHED = ".unfinished-"
"""Names that begin so are files on their way: never listed, never counted."""


@dataclass(frozen=True)
class Version:
    """A file as it was at one moment."""

    data: bytes
    etag: str
    """Opaque: goes back into `Lake.replace_if`."""


@dataclass(frozen=True)
class Stored:
    """A file in the lake, as a listing has it."""

    bytes: int
    modified: datetime
    """When it was written, by the lake's own clock, UTC."""


class Lake(ABC):
    """A place for files. Paths given to its methods are relative to its root, with `/`.

    It may be used by several threads, is cheap to open and to pickle, and holds no connection itself.
    """

    wipes: bool = False
    """Whether files in its spools are overwritten before they are removed (`spool.wipe`)."""

    @property
    @abstractmethod
    def root(self) -> str:
        """The root, as `full` has it: a folder, or `container/path`."""

    @property
    @abstractmethod
    def place(self) -> str:
        """The root in words for people: a folder, or a URL without credentials."""

    @property
    def folder(self) -> Path | None:
        """The root as a local folder; None when the lake is remote."""
        return None

    def full(self, relative: str) -> str:
        """The whole path. Raises `LakeError` for one that leaves the lake."""
        parts = PurePosixPath(relative).parts
        if not parts or relative.startswith("/") or ".." in parts:
            raise LakeError(f"{relative!r} is not a path inside the lake")
        return f"{self.root}/{relative}"

    @abstractmethod
    def table_uri(self, relative: str) -> str:
        """What delta-rs is given for the table at `relative`."""

    @property
    @abstractmethod
    def storage_options(self) -> dict[str, str]:
        """What delta-rs needs besides the URI. Ask anew for each use: a token in it does not live long.

        Raises `ConfigError`, `LakeError`.
        """

    @abstractmethod
    def read(self, relative: str) -> bytes | None:
        """The whole file, or None when there is none. Raises `LakeError`."""

    @abstractmethod
    def read_version(self, relative: str) -> Version | None:
        """The whole file with what `replace_if` needs, or None when there is none. Raises `LakeError`."""

    @abstractmethod
    def open(self, relative: str) -> BinaryIO:
        """The file, opened for reading. Raises `LakeError`, when it is read too."""

    @abstractmethod
    def put_new(self, relative: str, data: bytes) -> bool:
        """Creates the file if it is absent, atomically; False when other content is already there.

        The same content counts as ours: a write that was answered by a lost connection may have been done
        (design, Facts). Raises `LakeError`.
        """

    @abstractmethod
    def put_file(self, local: Path, relative: str) -> None:
        """Puts a finished local file under a name that is not taken; the local one stays readable.

        Nothing is visible before all of it is there. It must not be changed afterwards: on the lake's own
        disk it is linked, not copied. Raises `LakeError`, when the name is taken too.
        """

    @abstractmethod
    def replace_if(self, relative: str, data: bytes, etag: str) -> bool:
        """Compare-and-swap: replaces the file only while it is still the `Version` with that `etag`.

        False when it has changed or is gone. Raises `LakeError`.
        """

    @abstractmethod
    def sizes(self, relative: str) -> dict[str, int]:
        """Every file below a folder: path relative to that folder -> bytes. Empty when there is none.

        Raises `LakeError`.
        """

    @abstractmethod
    def stored(self, relative: str) -> dict[str, Stored]:
        """As `sizes`, with ages and with unfinished files, for those who clean up. Raises `LakeError`."""

    @abstractmethod
    def names(self, relative: str) -> list[str]:
        """The names directly below a folder, sorted. Empty when there is none. Raises `LakeError`."""

    @abstractmethod
    def remove(self, relative: str) -> None:
        """Removes one file; that it is gone already is fine. Raises `LakeError`."""

    @abstractmethod
    def local_copy(self, relative: str) -> AbstractContextManager[Path]:
        """The file as a local path to read from: itself in a local lake, else a copy for a while.

        Raises `LakeError`.
        """

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """An empty private folder (mode 0700) for files on their way, removed at the end.

        It lies on the lake's own disk when the lake is local, so that a finished file is linked, not copied.
        Those that killed processes have left are removed. One by one, files in it are removed by `discard`.
        """
        parent: Path | None = None
        with _full_disk_in_words():
            if self.folder is not None:
                parent = self.folder / SPOOL
                parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with private_folder(parent, wipe=self.wipes) as folder:
                yield folder


_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))


@contextmanager
def _full_disk_in_words() -> Iterator[None]:
    """Whoever writes into a spool learns in words that the disk takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise LakeError(
            f"a file on its way to the lake cannot be written: {os.strerror(error.errno)}",
            "Check that the disk of the spool has space: the lake's own, or where temporary files go",
        ) from None


def open_lake(
    url: str,
    base: Path,
    auth: LakeAuth | None = None,
    secret: ReadSecret | None = None,
    *,
    wipe: bool = False,
) -> Lake:
    """Opens the lake that the configuration names; `base` is where relative folders start.

    A folder, `file:///path`, or `abfss://container@account.dfs.core.windows.net/path` with `auth`, whose
    references `secret` resolves; `wipe`: files in its spools are overwritten before they are removed. Nothing
    is contacted, created or resolved yet. Raises `ConfigError`.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("", "file"):
        from pipeline.lake.local import open_local

        return open_local(url, base, wipe=wipe)
    if scheme in ("abfs", "abfss"):
        from pipeline.lake.azure import open_azure

        return open_azure(url, auth, secret, wipe=wipe)
    raise ConfigError(
        f"a lake on {scheme}: is not supported",
        "Use a folder (file:///path) or abfss://container@account.dfs.core.windows.net/path",
    )
