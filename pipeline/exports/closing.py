"""Writing down that an export is over without a receipt, or waits for an operator."""

from __future__ import annotations

from pipeline.exports.facts import ClosingFact
from pipeline.exports.session import Session
from pipeline.exports.state import Hold, Reject


def hold(session: Session, export_id: str, step: Hold) -> None:
    """The attempts are used up: visible, repairable, not released, and out of the schedule's way."""
    advice = f"Repair the cause, then materialize export_manifest and what follows of partition {export_id}"
    close(session, export_id, "held", step.reason, advice)


def reject(session: Session, export_id: str, step: Reject) -> None:
    """The kick-off cannot be done."""
    close(session, export_id, "rejected", step.reason, step.advice)


def close(session: Session, export_id: str, state: str, reason: str, advice: str = "") -> None:
    """Writes `<state>.json`; the first one stays."""
    fact = ClosingFact(at=session.now(), reason=reason, advice=advice)
    session.ledger.write(export_id, f"{state}.json", fact)
