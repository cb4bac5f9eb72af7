"""Whether a file comes too slowly: one that drips breaks no timeout of a single read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from pipeline.network.allowance import allowed

WINDOW = 60.0
"""Seconds over which the rate is averaged."""


@dataclass
class ByteRate:
    """Counts what arrives. `slowest` is in bytes per second, 0: nothing is too slow."""

    slowest: int
    window: float = WINDOW
    clock: Callable[[], float] = time.monotonic
    _since: float = field(init=False)
    _bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._since = self.clock()

    def too_slow_after(self, size: int) -> bool:
        """Takes a piece; True where the window that it ends has brought too little."""
        if not self.slowest:
            return False
        self._bytes += size
        passed = self.clock() - self._since
        if passed < self.window:
            return False
        slow = self._bytes < self.slowest * passed
        self._since, self._bytes = self._since + passed, 0
        return slow


def in_time(answer: httpx.Response, window: float) -> Iterator[bytes]:
    """The bytes of a body as they come: gathered into blocks a slow one would hang.

    Chunk sizes, their extensions and trailers are no bytes of the body: who drips them shows nothing to a
    `ByteRate`. So each piece has a time, longer than any silence that is allowed. Raises `httpx.ReadTimeout`.
    """
    silence = answer.request.extensions.get("timeout", {}).get("read") or 0.0
    body = answer.iter_raw()
    while True:
        with allowed(2 * max(window, silence)):
            piece = next(body, None)
        if piece is None:
            return
        yield piece
