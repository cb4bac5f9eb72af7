"""Private folders for files on their way; what a killed process left in one is removed by the next that asks.

They hold patients' data. A folder is locked for as long as its process lives, so that nobody takes one away
that is in use; the lock ends with the process, however that ends. Where the configuration wishes it
(`spool.wipe`) each file is overwritten before it is removed; the folder's name says so, so that every
process that removes something there knows it, also after a crash.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "fhir-export-spool-"

WIPED_PREFIX = f"{PREFIX}wiped-"
"""Of folders whose files are overwritten before they are removed."""

ABANDONED_SECONDS = 60.0
"""On this machine's own disk: between a folder's making and its lock."""

ABANDONED_ON_SHARED_SECONDS = 48 * 3600.0
"""In a lake's folder: other machines may share it, whose locks are not always seen. Longer than any run."""

_ZEROS = bytes(1 << 20)


@contextmanager
def private_folder(shared: Path | None = None, *, wipe: bool = False) -> Iterator[Path]:
    """An empty folder (mode 0700), removed at the end: below `shared`, else where temporary files go.

    `wipe`: its files are overwritten first; so is what killed processes have left, whoever finds it.
    """
    parent = Path(tempfile.gettempdir()) if shared is None else shared
    _remove_abandoned(parent, ABANDONED_SECONDS if shared is None else ABANDONED_ON_SHARED_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix=WIPED_PREFIX if wipe else PREFIX, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield folder
    finally:
        _remove(folder)
        os.close(descriptor)


def discard(path: Path) -> None:
    """Removes one file, as the folder that it lies in wishes it; that it is gone already is fine.

    Everything that removes files of a spool one by one calls this. Raises `OSError`.
    """
    if is_wiped(path):
        _wipe(path)
    path.unlink(missing_ok=True)


def is_wiped(path: Path) -> bool:
    """Whether it lies in a folder whose files are overwritten."""
    return any(parent.name.startswith(WIPED_PREFIX) for parent in path.parents)


def is_in_use(folder: Path) -> bool:
    """Whether a process of this machine works in that spool."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _wipe(path: Path) -> None:
    """Zeros over the whole file, forced to the disk, then nothing.

    A file with another name is left alone: `Lake.put_file` has linked it, it is the lake's own now.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, a link, or nothing that is written to: it is unlinked all the same
        return
    try:
        found = os.fstat(descriptor)
        if found.st_nlink != 1 or not stat.S_ISREG(found.st_mode):
            return
        left = found.st_size
        while left > 0:
            left -= os.write(descriptor, memoryview(_ZEROS)[: min(left, len(_ZEROS))])
        os.fsync(descriptor)
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """The folder with all that it holds; what cannot be overwritten is removed nevertheless."""
    if folder.name.startswith(WIPED_PREFIX):
        for place, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    _wipe(Path(place, name))
    shutil.rmtree(folder, ignore_errors=True)


def _lock(descriptor: int) -> bool:
    """False where somebody else holds it, and where the filesystem has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_unlocked(parent: Path) -> None:
    """At once what killed processes have left, in a lake's folder too: for whoever knows that nobody else
    works there."""
    _remove_abandoned(parent, ABANDONED_SECONDS)


def _remove_abandoned(parent: Path, after: float) -> None:
    with suppress(OSError):
        for folder in list(parent.glob(f"{PREFIX}*")):
            with suppress(OSError):  # of another user, or gone in the meantime
                _remove_if_abandoned(folder, after)


def _remove_if_abandoned(folder: Path, after: float) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(descriptor)
        old = time.time() - found.st_mtime > after
        if old and found.st_uid == os.getuid() and _lock(descriptor):
            _remove(folder)
    finally:
        os.close(descriptor)
