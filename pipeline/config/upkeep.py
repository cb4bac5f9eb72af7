"""What keeps the pipeline in order: cleaning up, files on their way, telling people."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from pipeline.config.model import SecretReference, Strict

Occasion = Literal["run-failed", "held", "rejected", "gone", "incomplete", "damaged"]
"""What somebody is told of: a red run; an export that ended without data, or without all of it."""


class Spool(Strict):
    """Files on their way between server and lake: patients' data, for a moment."""

    wipe: bool = False
    """Overwrite each file before it is removed."""


class Retention(Strict):
    """What the retention job removes, and when. What is referenced is never touched."""

    orphans_days: Annotated[float, Field(ge=1, le=3650)] = 7
    """Files that no fact and no table names are kept so long: longer than any run or reader takes."""
    raw_days: Annotated[float, Field(ge=1, le=36500)] | None = None
    """Raw bytes of published exports are kept so long after the receipt; None: for ever."""
    schedule: str | None = "30 4 * * 0"
    """Cron, UTC; None: only by hand."""

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        return None if value is None else checked_cron(value)


class Notifier(Strict):
    """One address that is told."""

    kind: str = "webhook"
    """`webhook`, or one that is plugged in (entry point group `fhir_export.notifiers`)."""
    url: SecretReference
    """By reference: whoever knows a webhook's URL may post there."""
    format: Literal["text", "adaptive-card", "json"] = "text"
    """`{"text": ...}` (Slack, Teams' older connectors), an Adaptive Card (Teams workflows), all members."""
    events: tuple[Occasion, ...] = ("run-failed", "held", "rejected", "gone", "incomplete", "damaged")
    sources: tuple[str, ...] = ()
    """Only of these; empty: of all."""


def checked_cron(value: str) -> str:
    """The expression itself. Raises ValueError for one that is not cron's five fields."""
    try:
        if len(value.split()) != 5:
            raise CronSimError("not five fields")
        CronSim(value, datetime(2026, 1, 1))
    except CronSimError:
        raise ValueError('must be a cron expression of five fields, such as "0 2 * * *"') from None
    return value
