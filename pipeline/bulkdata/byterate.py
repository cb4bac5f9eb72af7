"""Whether a body comes too slowly: one that drips breaks no timeout of a single read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

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
