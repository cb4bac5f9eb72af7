"""What has arrived of a file so far: decoded, looked at, hashed, held against what the server said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.bulkdata.decoding import Decoder
from pipeline.bulkdata.inspection import LineInspector
from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.promises import Digest, Promised
from pipeline.errors import VerificationFailed

_ANEW = "It is fetched anew at the next attempt."


class CutShort(VerificationFailed):
    """Internal: what arrived ends too early or is damaged; asking again may help."""


@dataclass(frozen=True)
class Version:
    """What the first answer promised: one version of the file, and its length in bytes."""

    etag: str
    total: int


class Content:
    """What has arrived: its state allows to go on with the next byte."""

    def __init__(self, limits: Limits, digests: Sequence[Digest] = (), *, sha256: bool = False) -> None:
        self.digests = tuple(digests)
        wanted = {each.algorithm for each in digests} | ({"sha256"} if sha256 else set())
        self.of_wire = {each: hashlib.new(each, usedforsecurity=False) for each in wanted}
        self.decoder = Decoder()
        self.inspector = LineInspector(limits.line_bytes)
        self.limits = limits
        self.sha256 = hashlib.sha256()
        self.decoded_bytes = 0
        self.wire_bytes = 0
        self.version: Version | None = None
        """None where the transfer could not go on."""

    def take(self, chunk: bytes) -> None:
        self.wire_bytes += len(chunk)
        for digest in self.of_wire.values():
            digest.update(chunk)
        self._look(self._blocks(chunk))

    def close(self) -> None:
        self._look(self._blocks(None))
        self.inspector.close()

    def _blocks(self, chunk: bytes | None) -> Iterator[bytes]:
        try:
            yield from self.decoder.close() if chunk is None else self.decoder.feed(chunk)
        except VerificationFailed as error:
            raise CutShort(error.cause, error.advice) from None

    def _look(self, blocks: Iterator[bytes]) -> None:
        for block in blocks:
            self.sha256.update(block)
            self.decoded_bytes += len(block)
            self._check_size()
            self.inspector.feed(block)
        self._check_size()

    def _check_size(self) -> None:
        self.limits.check_file(self.wire_bytes, max(self.decoded_bytes, self.decoder.unpacked_bytes))

    def require(self, promised: Promised) -> None:
        """Raises CutShort where the server said of these bytes what they are not; all have come."""
        for each in self.digests:
            arrived = self.of_wire[each.algorithm].digest()
            if arrived != each.value:
                raise CutShort(
                    f"the server announces {each.algorithm} {each.value.hex()} ({each.header}), and the "
                    f"{self.wire_bytes} bytes that arrived have {arrived.hex()}",
                    _ANEW,
                )
        # Nobody says whether the manifest means the file as it is stored or as it is read: either is right.
        sizes = (self.wire_bytes, self.decoded_bytes)
        if promised.length is not None and promised.length not in sizes:
            raise CutShort(f"the manifest promises {promised.length} bytes, {_either(*sizes)} arrived", _ANEW)
        if promised.sha256 is not None:
            hashes = (self.of_wire["sha256"].hexdigest(), self.sha256.hexdigest())
            if promised.sha256 not in hashes:
                what = f"the manifest promises sha256 {promised.sha256}, and what arrived has"
                raise CutShort(f"{what} {_either(*hashes)}", _ANEW)


def _either(stored: object, decoded: object) -> str:
    return f"{stored}" if stored == decoded else f"{stored} (decoded {decoded})"
