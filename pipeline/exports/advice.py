"""What is next for an export run, in words for the person on duty."""

from __future__ import annotations

from datetime import UTC, datetime

from pipeline.exports.ledger import Facts
from pipeline.exports.steps import (
    AskAgain,
    Busy,
    Closed,
    Damaged,
    Hold,
    Ingest,
    KickOff,
    Poll,
    Reject,
    Step,
    Tidy,
)


def in_words(step: Step, now: datetime, facts: Facts) -> str:
    """What is next: a command in backquotes is for the operator, the rest comes by itself."""
    match step:
        case Damaged():
            return "restore the damaged facts from a backup"
        case KickOff(number, _, at):
            return f"kick-off request {number}{_when(at, now)}"
        case Poll(overdue):
            return "ask the server once more, then cancel" if overdue else "ask the server how far it is"
        case Busy(owner, what):
            return f"wait for run {owner.run_id} ({what})"
        case Ingest(attempt, _, at):
            return f"ingest, attempt {attempt}{_when(at, now)}"
        case Hold():
            return "hold it, so that the schedule goes on"
        case Reject(_, advice):
            return f"give it up. {advice}" if advice else "give it up"
        case AskAgain(number, cause):
            return f"open a further export run, number {number} in a row, because of: {cause}"
        case Tidy(release, drop_raw):
            work = ["release the job on the server"] * release + ["drop the raw bytes"] * drop_raw
            return " and ".join(work)
        case Closed(state):
            return _after_closing(state, facts)


def _after_closing(state: str, facts: Facts) -> str:
    label = facts.label
    if facts.successor and state in ("gone", "cancelled"):
        return f"nothing here; `fhir-export show {facts.source}/{facts.successor.export_id}` asks again"
    match state:
        case "held":
            return (
                f"remove the cause, then `fhir-export retry {label}`, or `fhir-export withdraw {label}`; the "
                "schedule goes on without it"
            )
        case "gone" | "rejected" | "cancelled":
            return f"`fhir-export run {facts.source} --wait`, or the schedule, asks for everything again"
        case "withdrawing":
            return f"`fhir-export withdraw {label}` again: it was interrupted"
        case "published" if facts.receipt and facts.receipt.partial and not facts.taken_as_it_is:
            return (
                f"nothing; if so little data is right, `fhir-export retry {label} --accept-partial`, so that "
                "later exports are measured by it"
            )
        case _:
            return "nothing"


def _when(at: datetime | None, now: datetime) -> str:
    return f" at {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if at is not None and at > now else ""
