"""Private folders for files on their way; what a killed process left in one is removed by the next that asks.

They hold patients' data. A folder is locked for as long as its process lives, so that nobody takes one away
that is in use; the lock ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "fhir-export-spool-"

ABANDONED_SECONDS = 60.0
"""On this machine's own disk: between a folder's making and its lock."""

ABANDONED_ON_SHARED_SECONDS = 48 * 3600.0
"""In a lake's folder: other machines may share it, whose locks are not always seen. Longer than any run."""


@contextmanager
def private_folder(shared: Path | None = None) -> Iterator[Path]:
    """An empty folder (mode 0700), removed at the end: below `shared`, else where temporary files go."""
    parent = Path(tempfile.gettempdir()) if shared is None else shared
    _remove_abandoned(parent, ABANDONED_SECONDS if shared is None else ABANDONED_ON_SHARED_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """False where somebody else holds it, and where the filesystem has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
