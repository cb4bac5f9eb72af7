"""Blocks: whole lines of one or more source files, as the kernel wants them, and where each came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import VerificationFailed
from pipeline.tables import codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_LINE = 512 << 20
"""Bytes; positions in a block must fit the kernel's 30 bits."""
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Segment:
    """Lines of a block, from its line `first` (from 0) on, that came from one file, where the first of them
    has `number` (from 1)."""

    first: int
    source_file: str
    number: int


@dataclass(frozen=True)
class Block:
    """Whole lines, each with its newline, followed by at least `codes.PADDING` zero bytes."""

    data: NDArray[np.uint8]
    size: int
    """Bytes of the lines."""
    segments: tuple[Segment, ...]

    def origin(self, line: int) -> tuple[str, int]:
        """(source file, physical line number) of a line of this block."""
        segment = self.segments[bisect_right(self.segments, line, key=attrgetter("first")) - 1]
        return segment.source_file, segment.number + line - segment.first


class BlockCutter:
    """Cuts the bytes of many files into blocks of about `block_bytes`; a longer line makes a longer block."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._data = np.empty(0, np.uint8)
        self._size = 0
        self._whole = 0
        """Bytes up to the end of the last whole line."""
        self._lines = 0
        self._segments: list[Segment] = []
        self._spare: list[NDArray[np.uint8]] = []

    def add(self, chunks: Iterable[bytes], source_file: str) -> Iterator[Block]:
        """The blocks that are full while a file's bytes, cut anywhere, are taken from its beginning."""
        self._segments.append(Segment(self._lines, source_file, 1))
        head: bytes | None = b""
        for chunk in chunks:
            taken = chunk
            if head is not None:
                taken = head + chunk
                if len(taken) < len(BOM) and BOM.startswith(taken):
                    head = taken
                    continue
                head, taken = None, taken.removeprefix(BOM)
            self._hold(np.frombuffer(taken, np.uint8))
            if self._size >= self._block_bytes:
                yield from self._cut(source_file)
        if head:
            self._hold(np.frombuffer(head, np.uint8))
        if self._size and self._data[self._size - 1] != codes.NEWLINE:
            self._hold(_END)

    def add_line(self, line: bytes, source_file: str, number: int) -> Iterator[Block]:
        """The same for one line (without newline in it) of any file."""
        last = self._segments[-1] if self._segments else None
        if last is None or (last.source_file, last.number + self._lines - last.first) != (
            source_file,
            number,
        ):
            self._segments.append(Segment(self._lines, source_file, number))
        self._hold(np.frombuffer(line + b"\n", np.uint8))
        if self._size >= self._block_bytes:
            yield self._take(self._size)

    def rest(self) -> Iterator[Block]:
        """What is left."""
        if self._size:
            yield self._take(self._size)

    def recycle(self, block: Block) -> None:
        """Gives back the memory of a block that nobody will look into again: fresh memory costs more."""
        if len(block.data) == self._room:
            self._spare.append(block.data)

    @property
    def _room(self) -> int:
        # A chunk more than a block is held before it is cut.
        return self._block_bytes + self._block_bytes // 8 + codes.PADDING

    def _hold(self, taken: NDArray[np.uint8]) -> None:
        end = self._size + len(taken)
        if end - self._whole > LONGEST_LINE:
            raise VerificationFailed(
                f"a line is longer than {LONGEST_LINE >> 20} MB",
                "That is hardly NDJSON; nothing was converted",
            )
        if end + codes.PADDING > len(self._data):
            room = self._room if end + codes.PADDING <= self._room else 2 * end + codes.PADDING
            larger = self._spare.pop() if room == self._room and self._spare else np.empty(room, np.uint8)
            larger[: self._size] = self._data[: self._size]
            self._data = larger
        self._data[self._size : end] = taken
        self._size = end
        # Three times as fast as `bytes.count` and `rfind`.
        ends = taken == codes.NEWLINE
        if found := int(np.count_nonzero(ends)):
            self._lines += found
            self._whole = end - int(np.argmax(ends[::-1]))

    def _cut(self, source_file: str) -> Iterator[Block]:
        end = self._whole
        if end == 0:
            # A line longer than a block.
            return
        last = self._segments[-1]
        number = last.number + self._lines - last.first
        yield self._take(end)
        self._segments.append(Segment(0, source_file, number))

    def _take(self, end: int) -> Block:
        rest = self._data[end : self._size].copy()
        self._data[end : end + codes.PADDING] = 0
        block = Block(self._data, end, tuple(self._segments))
        self._data, self._size, self._whole = np.empty(0, np.uint8), 0, 0
        self._lines, self._segments = 0, []
        if len(rest):
            self._hold(rest)
        return block


_END: Final = np.array([codes.NEWLINE], np.uint8)
