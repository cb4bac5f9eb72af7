"""A lake in a local folder: every file durable before its name is there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError, LakeError
from pipeline.lake.lake import UNFINISHED, Lake, Stored, Version
from pipeline.lake.spool import is_wiped


def open_local(url: str, base: Path, *, wipe: bool = False) -> LocalLake:
    """The lake in a folder; a relative one starts at `base`. Raises `ConfigError`."""
    parts = urlsplit(url)
    if parts.netloc:
        raise ConfigError(f"lake {url} names a host", "A local lake is written file:///path")
    root = Path(os.path.abspath(base / unquote(parts.path)))  # noqa: PTH100 - resolve() follows links
    return LocalLake(root, wipes=wipe)


@dataclass(frozen=True)
class LocalLake(Lake):
    """Files below one folder."""

    local_root: Path
    wipes: bool = False

    @property
    def root(self) -> str:
        return str(self.local_root)

    @property
    def place(self) -> str:
        return self.root

    @property
    def folder(self) -> Path:
        return self.local_root

    def table_uri(self, relative: str) -> str:
        return self.full(relative)

    @property
    def storage_options(self) -> dict[str, str]:
        return {}

    def read(self, relative: str) -> bytes | None:
        path = Path(self.full(relative))
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LakeError(f"{relative} cannot be read from the lake: {_reason(error)}") from None

    def read_version(self, relative: str) -> Version | None:
        data = self.read(relative)
        return None if data is None else Version(data, _etag(data))

    def open(self, relative: str) -> BinaryIO:
        path = Path(self.full(relative))
        try:
            return path.open("rb")
        except OSError as error:
            raise LakeError(f"{relative} cannot be read from the lake: {_reason(error)}") from None

    def put_new(self, relative: str, data: bytes) -> bool:
        path = Path(self.full(relative))
        try:
            _create_durably(path, data)
        except FileExistsError:
            return self.read(relative) == data
        except OSError as error:
            raise _unwritable(relative, error) from None
        return True

    def put_file(self, local: Path, relative: str) -> None:
        path = Path(self.full(relative))
        try:
            _link_durably(local, path)
        except OSError as error:
            raise LakeError(f"{relative} cannot be written to the lake: {_reason(error)}") from None

    def replace_if(self, relative: str, data: bytes, etag: str) -> bool:
        path = Path(self.full(relative))
        try:
            with _alone(path.parent):
                found = self.read_version(relative)
                if found is None or found.etag != etag:
                    return False
                _replace_durably(path, data)
        except OSError as error:
            raise _unwritable(relative, error) from None
        return True

    def sizes(self, relative: str) -> dict[str, int]:
        base = Path(self.full(relative))
        try:
            return dict(_walk(base))
        except OSError as error:
            raise LakeError(f"{relative} cannot be listed in the lake: {_reason(error)}") from None

    def stored(self, relative: str) -> dict[str, Stored]:
        base = Path(self.full(relative))
        try:
            return {name: _stored(found) for name, found in _stats(base)}
        except OSError as error:
            raise LakeError(f"{relative} cannot be listed in the lake: {_reason(error)}") from None

    def names(self, relative: str) -> list[str]:
        base = Path(self.full(relative))
        try:
            return sorted(name for name in os.listdir(base) if not name.startswith(UNFINISHED))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise LakeError(f"{relative} cannot be listed in the lake: {_reason(error)}") from None

    def remove(self, relative: str) -> None:
        path = Path(self.full(relative))
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise LakeError(f"{relative} cannot be removed from the lake: {_reason(error)}") from None

    @contextmanager
    def local_copy(self, relative: str) -> Iterator[Path]:
        yield Path(self.full(relative))


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _unwritable(relative: str, error: OSError) -> LakeError:
    return LakeError(
        f"{relative} cannot be written to the lake: {_reason(error)}",
        "Check that the lake exists, has space, and that this process may write there",
    )


def _walk(base: Path) -> Iterator[tuple[str, int]]:
    for name, found in _stats(base):
        if not name.rpartition("/")[2].startswith(UNFINISHED):
            yield name, found.st_size


def _stats(base: Path) -> Iterator[tuple[str, os.stat_result]]:
    for folder, _, names in os.walk(base, onerror=_unless_gone):
        for name in sorted(names):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # removed since the folder was read
                yield path.relative_to(base).as_posix(), path.stat()


def _stored(found: os.stat_result) -> Stored:
    return Stored(found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process and thread at a time, for those who replace files in that folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _draft(path: Path, data: bytes) -> Iterator[Path]:
    """A file with that content beside `path`, on the disk already."""
    temporary = path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _create_durably(path: Path, data: bytes) -> None:
    """A temporary file, fsync, link, fsync of the folder: fsspec's own mode="create" is not atomic here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _draft(path, data) as temporary:
        os.link(temporary, path)
    _sync_folder(path.parent)


def _replace_durably(path: Path, data: bytes) -> None:
    with _draft(path, data) as temporary:
        temporary.replace(path)
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
    else:
        if is_wiped(local) and path.stat().st_nlink < 2:
            # A filesystem that does not count its links: the spool would overwrite what is the lake's now.
            path.unlink()
            _copy_durably(local, path)
    _sync_folder(path.parent)


def _copy_durably(local: Path, path: Path) -> None:
    temporary = path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
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
