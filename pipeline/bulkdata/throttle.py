"""How many files of one source are fetched at a time: fewer at an overloaded server, more when all goes well.

`Pace` is the rule, pure: one more after each whole round of files that went well, half as many after a sign
of overload (429, 503, a timeout, a body that drips). Those that were on their way when the number was halved
say nothing new: one overload is one halving, however many downloads feel it. `Throttle` applies it to the
threads of a process, and holds all of them back while the server's `Retry-After` lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition

from pipeline.bulkdata.slots import MachineSlots

LONGEST_PAUSE = 30.0
"""Seconds; a file whose server asks for a longer wait is left to the next attempt."""


@dataclass(frozen=True)
class Pace:
    """How many requests may run at once, by what has happened so far. Moments are of a monotonic clock."""

    most: int
    allowed: float
    halved_at: float = float("-inf")
    held_until: float = float("-inf")

    @classmethod
    def at_most(cls, most: int) -> Pace:
        """The pace of the beginning: all that the configuration allows."""
        return cls(most, float(most))

    @property
    def slots(self) -> int:
        """From 1 to `most`."""
        return max(1, min(self.most, int(self.allowed)))

    def went_well(self) -> Pace:
        """After a file: `slots` of them make one more."""
        return replace(self, allowed=min(float(self.most), self.allowed + 1 / self.slots))

    def overloaded(self, now: float, asked_at: float, pause: float | None = None) -> Pace:
        """After a sign of overload for a request of `asked_at`; `pause`: seconds that the server wants."""
        held_until = max(self.held_until, now + pause) if pause else self.held_until
        if asked_at <= self.halved_at:
            return replace(self, held_until=held_until)
        return replace(self, allowed=max(1.0, self.slots / 2), halved_at=now, held_until=held_until)


@dataclass
class Turn:
    """One request that may be sent, and how it ended; nothing of it is said where it was refused or broke."""

    asked_at: float
    well: bool = False
    overloaded: bool = False
    pause: float | None = None
    """Seconds that the server asked to wait."""


class Throttle:
    """One per source and process, shared by all threads. `slots`: bounds the machine's processes together.

    A `Retry-After` of a file holds all others back, if it is at most `longest_hold` seconds.
    """

    def __init__(
        self,
        most: int,
        *,
        slots: MachineSlots | None = None,
        longest_hold: float = LONGEST_PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pace = Pace.at_most(most)
        self._slots = slots or MachineSlots(None, 0)
        self._longest_hold = longest_hold
        self._clock = clock
        self._running = 0
        self._changed = Condition()

    @property
    def pace(self) -> Pace:
        """As it is now."""
        return self._pace

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Waits until a request may be sent; what the turn says at its end sets the pace."""
        with self._changed:
            while (wait := self._wait()) is not None:
                self._changed.wait(wait or None)
            self._running += 1
        try:
            with self._slots.one():
                turn = Turn(self._clock())
                try:
                    yield turn
                finally:
                    self._learn(turn)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _wait(self) -> float | None:
        """Seconds to wait, 0 until somebody is done; None: it may be sent now."""
        held = self._pace.held_until - self._clock()
        if held > 0:
            return held
        return 0.0 if self._running >= self._pace.slots else None

    def _learn(self, turn: Turn) -> None:
        with self._changed:
            if turn.overloaded:
                # A longer pause ends the attempt: nothing is held back then, so that its threads can end.
                pause = turn.pause if turn.pause is not None and turn.pause <= self._longest_hold else None
                self._pace = self._pace.overloaded(self._clock(), turn.asked_at, pause)
            elif turn.well:
                self._pace = self._pace.went_well()
