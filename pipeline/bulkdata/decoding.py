"""From the bytes of the wire to the bytes of the NDJSON, and from these to lines; all in bounded memory.

Gzip is told by its magic bytes, never by a header or a file name (protocol fact 29). Splitting is done on
bytes, so a UTF-8 character that lies across two blocks stays whole (section 6).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pipeline.errors import VerificationFailed

Encoding = Literal["identity", "gzip"]

BLOCK = 1 << 18
"""Bytes read, and bytes decoded, at a time."""

MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"

_SLICE = 1 << 13
_DEEPEST = 2  # a gzip file sent with Content-Encoding: gzip once more


class Decoder:
    """Decodes a byte stream that is pushed into it: gzip (also twice, also of several members) or plain.

    `feed` and `close` give decoded blocks of at most about `BLOCK` bytes or as long as what was fed.
    Both raise VerificationFailed for damaged gzip, `close` also for gzip that is cut short.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._head = b""
        self._gunzip: _Gunzip | None = None
        self._inner: Decoder | None = None
        self._plain = False

    @property
    def encoding(self) -> Encoding:
        return "identity" if self._gunzip is None else "gzip"

    @property
    def unpacked_bytes(self) -> int:
        """What gzip has unpacked to so far, at the level where it is most: an inner gzip may hold nothing."""
        if self._gunzip is None or self._inner is None:
            return 0
        return max(self._gunzip.unpacked_bytes, self._inner.unpacked_bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._plain and self._gunzip is None:
            data = self._head + data
            if len(data) < len(MAGIC):
                self._head = data
                return
            self._head = b""
            self._decide(data)
        if self._gunzip is None or self._inner is None:
            if data:
                yield data
            return
        for block in self._gunzip.feed(data):
            yield from self._inner.feed(block)

    def close(self) -> Iterator[bytes]:
        if self._gunzip is not None and self._inner is not None:
            self._gunzip.close()
            yield from self._inner.close()
        elif self._head:
            yield self._head
            self._head = b""

    def _decide(self, data: bytes) -> None:
        if data.startswith(MAGIC) and self._depth < _DEEPEST:
            self._gunzip, self._inner = _Gunzip(), Decoder(self._depth + 1)
        else:
            self._plain = True


class _Gunzip:
    """One gzip stream of one or more members; zero padding at its end is allowed."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._between = False
        self.unpacked_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        # In slices: each of a million empty members copies what lies behind it.
        for start in range(0, len(data), _SLICE):
            yield from self._feed(data[start : start + _SLICE])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._between:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._member, self._between = zlib.decompressobj(wbits=31), False
            yield from self._member_blocks(data)
            data = self._member.unused_data
            self._between = self._member.eof

    def close(self) -> None:
        if not self._between:
            raise VerificationFailed("gzip data are cut short", "They are fetched anew at the next attempt.")

    def _member_blocks(self, data: bytes) -> Iterator[bytes]:
        while not self._member.eof:
            try:
                block = self._member.decompress(data, BLOCK)
            except zlib.error:
                raise VerificationFailed(
                    "gzip data are damaged", "They are fetched anew at the next attempt."
                ) from None
            data = self._member.unconsumed_tail
            if block:
                self.unpacked_bytes += len(block)
                yield block
            if not data and len(block) < BLOCK:
                return


def decoded(chunks: Iterable[bytes], encoding: Encoding) -> Iterator[bytes]:
    """The decoded blocks of stored bytes that come in chunks of any size.

    `encoding` is what `Downloaded.encoding` said of these very bytes. Raises VerificationFailed if they are
    damaged or are not gzip any more.
    """
    if encoding == "identity":
        yield from (chunk for chunk in chunks if chunk)
        return
    decoder = Decoder()
    for chunk in chunks:
        yield from decoder.feed(chunk)
    yield from decoder.close()
    if decoder.encoding != "gzip":
        raise VerificationFailed("stored bytes are not gzip as recorded", "Fetch the file again.")


def decoded_blocks(
    path: Path, encoding: Encoding, offset: int = 0, length: int | None = None
) -> Iterator[bytes]:
    """The decoded NDJSON of one file's stored bytes: `length` bytes (None: all) of `path` from `offset` on.

    Raises VerificationFailed when the file is shorter than that, or damaged.
    """
    return decoded(_stored(path, offset, length), encoding)


def numbered_lines(blocks: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number counting from 1, line) of each line that is not blank, without its line end and without a
    BOM.
    """
    for number, line in enumerate(physical_lines(blocks), start=1):
        whole = (line.removeprefix(BOM) if number == 1 else line).strip()
        if whole:
            yield number, whole


def lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Each line that is not blank, without its line end and without a BOM."""
    return (line for _, line in numbered_lines(blocks))


def physical_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        pending.append(first)
        if others:
            yield b"".join(pending)
            pending = [others.pop()]
            yield from others
    last = b"".join(pending)
    if last:
        yield last


def _stored(path: Path, offset: int, length: int | None) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        left = length
        while left is None or left > 0:
            chunk = file.read(BLOCK if left is None else min(BLOCK, left))
            if not chunk:
                break
            left = None if left is None else left - len(chunk)
            yield chunk
    if left:
        raise VerificationFailed("stored bytes are shorter than recorded", "Fetch the file again.")
