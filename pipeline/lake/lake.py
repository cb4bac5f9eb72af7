"""The lake: immutable files under one root, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError, LakeError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@dataclass(frozen=True)
class Lake:
    """A filesystem and a root in it. Paths given to its methods are relative to the root, with `/`."""

    fs: AbstractFileSystem
    root: str
    folder: Path | None = None
    """The root as a local folder; None when the lake is remote."""

    def full(self, relative: str) -> str:
        """The path that the filesystem knows."""
        parts = PurePosixPath(relative).parts
        if not parts or relative.startswith("/") or ".." in parts:
            raise LakeError(f"{relative!r} is not a path inside the lake")
        return f"{self.root}/{relative}"

    def table_uri(self, relative: str) -> str:
        """What delta-rs is given for the table at `relative`."""
        return self.full(relative)

    @property
    def storage_options(self) -> dict[str, str]:
        """What delta-rs needs besides the URI; nothing on a local disk."""
        return {}

    def read(self, relative: str) -> bytes | None:
        """The whole file, or None when there is none. Raises `LakeError`."""
        try:
            return cast("bytes", self.fs.cat_file(self.full(relative)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LakeError(f"{relative} cannot be read from the lake: {_reason(error)}") from None

    def open(self, relative: str) -> BinaryIO:
        """The file, opened for reading. Raises `LakeError`."""
        try:
            return cast("BinaryIO", self.fs.open(self.full(relative), "rb"))
        except OSError as error:
            raise LakeError(f"{relative} cannot be read from the lake: {_reason(error)}") from None

    def put_new(self, relative: str, data: bytes) -> bool:
        """Creates the file if it is absent, atomically; False when other content is already there.

        The same content counts as ours: a write that was answered by a lost connection may have been done
        (design, Facts). Raises `LakeError`.
        """
        path = self.full(relative)
        try:
            if self.folder is not None:
                _create_durably(Path(path), data)
            else:
                self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return self.read(relative) == data
        except OSError as error:
            raise LakeError(
                f"{relative} cannot be written to the lake: {_reason(error)}",
                "Check that the lake exists, has space, and that this process may write there",
            ) from None
        return True

    def put_file(self, local: Path, relative: str) -> None:
        """Puts a finished local file under a name that is not taken; the local one stays readable.

        On the lake's own disk it is linked, not copied: it must not be changed afterwards.
        Raises `LakeError`.
        """
        path = self.full(relative)
        try:
            if self.folder is not None:
                _link_durably(local, Path(path))
            else:
                self.fs.put_file(str(local), path, overwrite=False)
        except OSError as error:
            raise LakeError(f"{relative} cannot be written to the lake: {_reason(error)}") from None

    def sizes(self, relative: str) -> dict[str, int]:
        """Every file below a folder: path relative to that folder -> bytes. Empty when there is none."""
        base = self.full(relative)
        try:
            found = cast("dict[str, dict[str, Any]]", self.fs.find(base, detail=True))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise LakeError(f"{relative} cannot be listed in the lake: {_reason(error)}") from None
        prefix = f"{base.rstrip('/')}/"
        return {
            path[path.index(prefix) + len(prefix) :]: int(info["size"])
            for path, info in found.items()
            if prefix in path and not path.rsplit("/", 1)[-1].startswith(_UNFINISHED)
        }

    def names(self, relative: str) -> list[str]:
        """The names directly below a folder, sorted. Empty when there is none."""
        try:
            entries = cast("list[str]", self.fs.ls(self.full(relative), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise LakeError(f"{relative} cannot be listed in the lake: {_reason(error)}") from None
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(name for name in names if not name.startswith(_UNFINISHED))

    def remove(self, relative: str) -> None:
        """Removes one file; that it is gone already is fine. Raises `LakeError`."""
        try:
            self.fs.rm_file(self.full(relative))
        except FileNotFoundError:
            return
        except OSError as error:
            raise LakeError(f"{relative} cannot be removed from the lake: {_reason(error)}") from None

    @contextmanager
    def local_copy(self, relative: str) -> Iterator[Path]:
        """The file as a local path to read from: itself in a local lake, else a copy for a while."""
        if self.folder is not None:
            yield Path(self.full(relative))
            return
        with self.spool() as folder:
            copy = folder / "copy"
            self.fs.get_file(self.full(relative), str(copy))
            yield copy

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """An empty private folder (mode 0700) for files on their way, removed at the end.

        It lies on the lake's own disk when the lake is local, so that a finished file is linked, not copied.
        """
        parent: Path | None = None
        if self.folder is not None:
            parent = self.folder / ".spool"
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="spool-", dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_UNFINISHED = ".unfinished-"


def open_lake(url: str, base: Path) -> Lake:
    """Opens the lake that the configuration names; `base` is where relative folders start.

    Nothing is contacted or created yet. Raises `ConfigError`.
    """
    from fsspec.implementations.local import LocalFileSystem

    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        if parts.netloc:
            raise ConfigError(f"lake {url} names a host", "A local lake is written file:///path")
        folder = Path(os.path.abspath(base / unquote(parts.path)))  # noqa: PTH100 - resolve() follows links
        return Lake(LocalFileSystem(), str(folder), folder)
    raise ConfigError(
        f"a lake on {parts.scheme}: is not supported by this version", "Use a folder (file:///path) for now"
    )


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _create_durably(path: Path, data: bytes) -> None:
    """A temporary file, fsync, link, fsync of the folder: fsspec's own mode="create" is not atomic here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _link_durably(local: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with local.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(local, path)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        _copy_durably(local, path)  # another disk, or a filesystem without links
    _sync_folder(path.parent)


def _copy_durably(local: Path, path: Path) -> None:
    temporary = path.parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
    try:
        with local.open("rb") as source, temporary.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        if path.exists():
            raise FileExistsError(17, "File exists", str(path))
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
