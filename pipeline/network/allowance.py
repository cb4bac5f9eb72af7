"""How long, and how much, the exchange that this thread is in may still take on the wire.

A server that drips, or sends interim answers (1xx), chunk extensions or trailers without end, breaks no
timeout of a single read and shows nothing to the code that waits for its answer: so the socket itself looks
at the clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Allowance:
    """`ends` in seconds of the monotonic clock; `bytes_left` to be received."""

    ends: float
    bytes_left: float

    def seconds_left(self) -> float:
        return self.ends - time.monotonic()


class _Held(threading.local):
    def __init__(self) -> None:
        self.allowances: tuple[Allowance, ...] = ()


_held = _Held()


@contextmanager
def allowed(seconds: float, most_bytes: float = float("inf")) -> Iterator[None]:
    """Within this block, reads of this thread end after so long and so much; an outer block holds too."""
    before = _held.allowances
    _held.allowances = (*before, Allowance(time.monotonic() + seconds, most_bytes))
    try:
        yield
    finally:
        _held.allowances = before


def seconds_left(timeout: float | None) -> float | None:
    """`timeout`, or less where an allowance ends sooner; zero or below: it is over. None: no limit."""
    limits = [each.seconds_left() for each in _held.allowances]
    if timeout is not None:
        limits.append(timeout)
    return min(limits, default=None)


def spent(size: int) -> bool:
    """Count bytes that were received; True when they are more than is allowed."""
    for each in _held.allowances:
        each.bytes_left -= size
    return any(each.bytes_left < 0 for each in _held.allowances)
