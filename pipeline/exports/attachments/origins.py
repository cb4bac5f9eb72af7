"""Whether the servers that attachments lie on still answer: each for itself, and for the time of a run.

One that does not is asked no more, and what lies there has `failed`; all others go on.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pipeline.bulkdata.attachment_fetching import AskedToWait, SignInRefused
from pipeline.bulkdata.attachment_rules import NotTaken
from pipeline.errors import AuthError, Unreachable

MOST_IN_A_ROW = 10
"""Attachments of one origin that fail one after the other: then it is the server, not they."""


@dataclass(frozen=True)
class GivenUp:
    """An origin that is asked no more, and why: safe to print, for it is the FHIR server's or configured."""

    origin: str
    reason: str
    kind: type[AuthError] | type[Unreachable] = Unreachable


class Origins:
    """Of one run; it may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row: dict[str, int] = {}
        self._given_up: dict[str, GivenUp] = {}

    @property
    def given_up(self) -> tuple[GivenUp, ...]:
        with self._lock:
            return tuple(self._given_up.values())

    def is_given_up(self, origin: str) -> bool:
        with self._lock:
            return origin in self._given_up

    def well(self, origin: str) -> None:
        """It has answered, if only with a no."""
        with self._lock:
            self._in_a_row[origin] = 0

    def failed(self, origin: str, error: NotTaken) -> None:
        """For a reason that may pass."""
        with self._lock:
            self._in_a_row[origin] = in_a_row = self._in_a_row.get(origin, 0) + 1
            if in_a_row >= MOST_IN_A_ROW:
                kind = AuthError if isinstance(error, SignInRefused) else Unreachable
                what = f"{MOST_IN_A_ROW} attachments in a row could not be fetched from {origin}"
                self._given_up.setdefault(origin, GivenUp(origin, f"{what}: {error.reason}", kind))

    def waits(self, origin: str, error: AskedToWait) -> None:
        """It asks for a longer pause than anyone waits for here."""
        with self._lock:
            why = f"{origin}: {error.cause}. {error.advice}"
            self._given_up.setdefault(origin, GivenUp(origin, why))
