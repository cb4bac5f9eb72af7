"""The contents of attachments: `<lake>/<source>/attachments/<sha256>`, each once, whole or not at all."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from pipeline.errors import LakeError
from pipeline.exports.session import Session

FOLDER = "attachments"

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """The contents of one source; listed once. It may be used by several threads."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()

    @property
    def folder(self) -> str:
        return f"{self._session.source.name}/{FOLDER}"

    @cached_property
    def _sizes(self) -> dict[str, int]:
        found = self._session.lake.sizes(self.folder)
        return {name: size for name, size in found.items() if _SHA256.fullmatch(name)}

    def has(self, sha256: str, size: int) -> bool:
        """Whether that content lies there whole."""
        with self._lock:
            return self._sizes.get(sha256) == size

    def lacks_any(self, contents: Iterable[str]) -> bool:
        """Whether one of these is not there."""
        return any(each not in self._sizes for each in contents)

    def put(self, sha256: str, size: int, local: Path) -> None:
        """Keeps the content of a local file that is not changed any more. Raises `LakeError`."""
        if self.has(sha256, size):
            return
        path = f"{self.folder}/{sha256}"
        try:
            self._session.lake.put_file(local, path)
        except LakeError:
            there = self._session.lake.sizes(self.folder).get(sha256)
            if there is None:
                raise
            if there != size:  # its name says what it was
                raise LakeError(
                    f"{path} is damaged: it has {there} bytes and not {size}",
                    "Remove it, then run this again",
                ) from None
        with self._lock:
            self._sizes[sha256] = size
