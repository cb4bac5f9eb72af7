"""What is told, and who can tell it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from pipeline.config import Occasion
from pipeline.redaction import clean

Event = Occasion | Literal["test"]

_LONGEST = 600


@dataclass(frozen=True)
class Notice:
    """One thing to tell. Its words are cleaned once more: they leave the house."""

    event: Event
    source: str
    state: str
    reason: str
    next_step: str
    at: datetime
    """When it happened, UTC."""
    export_id: str | None = None
    run_id: str | None = None
    job: str | None = None
    instance: str = ""
    """What tells it from an earlier one of the same event and export: the same is told once."""

    def __post_init__(self) -> None:
        for name in ("state", "reason", "next_step"):
            object.__setattr__(self, name, clean(getattr(self, name), _LONGEST))

    @property
    def label(self) -> str:
        return f"{self.source}/{self.export_id}" if self.export_id else self.source

    @property
    def title(self) -> str:
        """One line: what has happened to what."""
        match self.event:
            case "run-failed":
                return f"{self.label}: a run of {self.job or 'a job'} failed"
            case "incomplete":
                return f"{self.label} is published, but incomplete"
            case "test":
                return f"{self.label}: a test, nothing has happened"
        return f"{self.label} is {self.state}"

    @property
    def key(self) -> str:
        """The same for the same thing, in every process and after every restart."""
        told = "\n".join((self.event, self.label, self.instance))
        return f"{self.event}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def as_json(self) -> dict[str, object]:
        """All members, for programs."""
        return {
            "event": self.event,
            "title": self.title,
            "source": self.source,
            "export_id": self.export_id,
            "state": self.state,
            "reason": self.reason,
            "next_step": self.next_step,
            "run_id": self.run_id,
            "job": self.job,
            "at": self.at.astimezone(UTC).isoformat(timespec="seconds"),
        }


class Notifier(Protocol):
    """Brings a notice to people."""

    @property
    def name(self) -> str:
        """Whom it tells, in words that may be printed: a host, never the whole URL."""

    def tell(self, notice: Notice, /) -> None:
        """Returns when the other side has taken it. Takes at most some 20 seconds.

        Raises `ConfigError`, `ServerRefused`, `Unreachable` (with `retry_after` where it was told).
        """
