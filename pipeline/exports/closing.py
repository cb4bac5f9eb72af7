"""Writing down that an export is over without a receipt, or waits for an operator."""

from __future__ import annotations

from pipeline.exports.facts import Cause, ClosingFact
from pipeline.exports.session import Session
from pipeline.exports.steps import Hold, Reject


def hold(session: Session, export_id: str, step: Hold) -> None:
    """The attempts are used up: visible, repairable, not released, and out of the schedule's way."""
    label = f"{session.source.name}/{export_id}"
    advice = f"Remove the cause, then `fhir-export retry {label}`; `fhir-export withdraw {label}` gives it up"
    close(session, export_id, "held", step.reason, advice)


def reject(session: Session, export_id: str, step: Reject) -> None:
    """The kick-off cannot be done."""
    close(session, export_id, "rejected", step.reason, step.advice)


def close(
    session: Session, export_id: str, state: str, reason: str, advice: str = "", cause: Cause = ""
) -> None:
    """Writes `<state>.json`; the first one stays. `held` is written anew when a retry has answered it."""
    fact = ClosingFact(at=session.now(), reason=reason, advice=advice, cause=cause)
    name = _held_name(session, export_id) if state == "held" else f"{state}.json"
    if name is not None:
        session.ledger.write(export_id, name, fact)


def _held_name(session: Session, export_id: str) -> str | None:
    facts = session.ledger.read(export_id)
    if "held" in facts.closings:
        return None
    number = max([0, *facts.helds, *facts.retries]) + 1
    return "held.json" if number == 1 else f"held-{number:04d}.json"
