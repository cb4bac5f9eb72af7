"""What can be next for an export run, and what the configuration says about it: the words of the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from pipeline.exports.facts import Cause
from pipeline.exports.owner import Owner


@dataclass(frozen=True)
class Policy:
    """What the configuration says about one source's exports."""

    max_attempts: int = 3
    deadline: timedelta = timedelta(hours=24)
    release: bool = True
    keep_raw: bool = True
    ask_again: Mapping[str, int] = field(default_factory=dict)
    """Cause of an end without data -> further export runs in a chain; none for a cause that is not named."""


@dataclass(frozen=True)
class KickOff:
    """Send the kick-off request, now or at `not_before`; `number` is the intent's."""

    number: int
    reason: str
    not_before: datetime | None = None


@dataclass(frozen=True)
class Poll:
    """Ask the server how far it is; past the deadline the answer 'not yet' ends the export."""

    overdue: bool
    attempt: int = 1
    """The attempt to start when it is ready."""


@dataclass(frozen=True)
class Ingest:
    """Start this attempt, now or at `not_before`."""

    attempt: int
    reason: str
    not_before: datetime | None = None


@dataclass(frozen=True)
class Hold:
    """Write `held`: the attempts are used up."""

    reason: str


@dataclass(frozen=True)
class Reject:
    """Write `rejected`: the kick-off cannot be done."""

    reason: str
    advice: str


@dataclass(frozen=True)
class AskAgain:
    """Open a further export run; `number` is its place in the chain, from 1."""

    number: int
    cause: Cause | Literal["supplement"]


@dataclass(frozen=True)
class Tidy:
    """Published; the job on the server or the raw bytes are still to be given back."""

    release: bool
    drop_raw: bool


@dataclass(frozen=True)
class Busy:
    """Somebody works on it: nothing to do."""

    owner: Owner
    what: Literal["kick-off", "ingest"]


@dataclass(frozen=True)
class Closed:
    """Over: `state` is published, held, gone, rejected, cancelled, withdrawing or withdrawn."""

    state: str


@dataclass(frozen=True)
class Damaged:
    """Facts that cannot be read; nothing is done until somebody mends or restores them."""

    names: tuple[str, ...]


Step = KickOff | Poll | Ingest | Hold | Reject | AskAgain | Tidy | Busy | Closed | Damaged
