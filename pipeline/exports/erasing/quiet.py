"""Who is at work on a source: nothing is erased beside a run, for it brings back what it has read before."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import ConfigError, LakeError, StillRunning
from pipeline.exports.attachments.at_work import those_at_work
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import Owner
from pipeline.exports.session import Session
from pipeline.exports.state import Busy, Damaged, Step, is_open


def require_there(session: Session) -> None:
    """Raises `ConfigError` when the lake has nothing of the source: that would prove nothing."""
    if not session.lake.names(session.source.name):
        raise ConfigError(
            f"nothing of the source {session.source.name} is in the lake {session.lake.place}",
            "Check `lake` in the configuration",
        )


def require_quiet(session: Session, *, dry_run: bool) -> None:
    """No run is at work, and no export has bytes that are still to be published.

    Raises `StillRunning`, `ConfigError`, `LakeError`.
    """
    for facts, step in _steps(session):
        if isinstance(step, Damaged):
            raise LakeError(
                f"{facts.label} has damaged facts: {', '.join(facts.damaged)}", "Restore them first"
            )
        if dry_run:
            continue
        owner = _owner(session, facts, step)
        if owner is not None:
            raise StillRunning(
                f"run {owner.run_id} works on {facts.label}", "Wait for its end, or stop it; then erase"
            )
        waits = facts.receipt is None and (is_open(facts, step) or "held" in facts.closings)
        if waits and facts.claims:
            raise ConfigError(
                f"{facts.label} has bytes that are still to be published",
                f"Let it be ingested, or `fhir-export withdraw {facts.label}`; then erase",
            )
    for owner in [] if dry_run else those_at_work(session):
        raise StillRunning(
            f"run {owner.run_id} fetches attachments of {session.source.name}",
            "Wait for its end, or stop it; then erase",
        )


def runs_at_work(session: Session) -> int:
    """How many runs ingest, or fetch attachments, at this moment. Raises `LakeError`."""
    ingesting = sum(_owner(session, facts, step) is not None for facts, step in _steps(session))
    return ingesting + len(those_at_work(session))


def _steps(session: Session) -> Iterator[tuple[Facts, Step]]:
    for export_id in session.ledger.export_ids():
        facts = session.ledger.read(export_id)
        yield facts, session.next_step(facts)


def _owner(session: Session, facts: Facts, step: Step) -> Owner | None:
    if isinstance(step, Busy):
        return step.owner
    claim = facts.last_claim
    if claim is None or claim.number <= facts.settled_attempt or claim.number in facts.attempt_errors:
        return None
    return None if session.is_dead(claim.owner) else claim.owner
