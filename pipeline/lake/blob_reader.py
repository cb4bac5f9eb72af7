"""A file in a container as Python reads files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO


class BlobReader(io.RawIOBase):
    """An adlfs file whose errors are in words."""

    def __init__(self, file: BinaryIO, in_words: Callable[[], Any]) -> None:
        self._file = file
        self._in_words = in_words

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._in_words():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
