"""At most so many downloads of one source on this machine, over all processes (`executor: multiprocess`).

Each holds a lock on one of as many files in a private folder; a lock ends with its process, however that
ends. Where there are no such locks, processes are not bound together.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAUSE = 0.02
"""Seconds between two looks for a free slot."""


PATIENCE = 900.0
"""Seconds; after them a download is begun without a slot: a process that is stopped must not stop others."""


def runtime_folder() -> Path | None:
    """This user's own folder (mode 0700) for the locks; None where there is none that is ours alone."""
    folder = Path(tempfile.gettempdir()) / f"fhir-export-slots-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    private = folder.is_dir() and not folder.is_symlink() and found.st_uid == os.getuid()
    return folder if private and not found.st_mode & 0o077 else None


class MachineSlots:
    """`most` slots in `folder` for what `name` names; without a folder there is always one free."""

    def __init__(self, folder: Path | None, most: int, name: str = "") -> None:
        stem = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._paths = [folder / f"{stem}-{number}" for number in range(most)] if folder else []

    @contextmanager
    def one(self) -> Iterator[None]:
        """Waits for a free slot and holds it."""
        descriptor = self._take()
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _take(self) -> int | None:
        give_up = time.monotonic() + PATIENCE
        while self._paths and time.monotonic() < give_up:
            for path in self._paths:
                try:
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                except OSError:
                    return None
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                except OSError:
                    os.close(descriptor)
                    return None
                else:
                    return descriptor
            time.sleep(_PAUSE)
        return None
