"""Attempts to ingest: claimed before the work starts, so that two runs never do it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from pipeline.errors import ExportError, JobGone, LakeError, StillRunning, Unreachable, VerificationFailed
from pipeline.exports.facts import AttemptError, Claim, LandedBatch
from pipeline.exports.ledger import CLOSINGS, Facts
from pipeline.exports.request import require_request
from pipeline.exports.session import Session


@dataclass(frozen=True)
class Attempt:
    """This run's claim on an export, and the facts as they were when it was looked at."""

    number: int
    facts: Facts

    @property
    def export_id(self) -> str:
        return self.facts.export_id


def claim_attempt(session: Session, export_id: str) -> Attempt:
    """The attempt of this run: the one it has, or the next one where that is free to take.

    Every step calls it: a run that is executed again from the middle takes a new number by itself.
    Raises `StillRunning` while another run lives, or when the attempt that this run is for was taken;
    `VerificationFailed` when the bytes of an export that is to be ingested again are gone, `JobGone` when it
    ended without bytes: nothing is changed then.
    """
    for _ in range(8):
        facts = session.ledger.read(export_id)
        if facts.damaged:
            raise LakeError(f"{facts.label} has damaged facts: {', '.join(facts.damaged)}", "Restore them")
        require_request(facts)
        _require_not_cancelled(facts)
        last = facts.last_claim
        if last is not None and last.owner.run_id == session.owner.run_id:
            return Attempt(last.number, facts)
        if last is not None and not session.is_dead(last.owner):
            raise StillRunning(f"run {last.owner.run_id} is ingesting {facts.label} at this moment")
        number = last.number + 1 if last else 1
        if session.attempt not in (None, number):
            raise StillRunning(f"attempt {session.attempt} of {facts.label} was made by another run")
        if facts.receipt or facts.closings.keys() - {"held"}:
            _require_bytes(session, facts)
        claim = Claim(at=session.now(), number=number, owner=session.owner)
        if session.ledger.write(export_id, f"attempts/{number:04d}.json", claim):
            attempt = Attempt(number, session.ledger.read(export_id))
            with recorded(session, attempt):  # a failure before the claim would never be counted
                _require_bytes(session, facts)
            return attempt
    raise StillRunning(f"other runs keep claiming {export_id}", "Look at the runs of this source")


def require_claim(session: Session, attempt: Attempt) -> None:
    """Raises `StillRunning` when another run has taken the export over: this one must not publish."""
    facts = session.ledger.read(attempt.export_id)
    _require_not_cancelled(facts)
    last = facts.last_claim
    if last is None or last.number != attempt.number:
        raise StillRunning(f"{attempt.facts.label} was taken over by another run", "That run goes on")


@contextmanager
def recorded(session: Session, attempt: Attempt) -> Iterator[None]:
    """Whatever goes wrong inside is written down as the end of the attempt, then raised on."""
    try:
        yield
    except BaseException as error:
        _record(session, attempt, error)
        raise


def _record(session: Session, attempt: Attempt, error: BaseException) -> None:
    wait = error.retry_after if isinstance(error, Unreachable) else None
    fact = AttemptError(
        at=session.now(),
        # An unexpected error's own text may hold content: only its kind is written down.
        reason=error.cause if isinstance(error, ExportError) else f"unexpected {type(error).__name__}",
        advice=error.advice if isinstance(error, ExportError) else "The run's log shows where",
        kind=type(error).__name__,
        # Asked too early, or stopped by an operator: no failure of the export.
        counts=isinstance(error, Exception) and not isinstance(error, StillRunning),
        transient=isinstance(error, Unreachable | LakeError),  # a full disk passes, too
        retry_at=session.now() + timedelta(seconds=wait) if wait else None,
    )
    try:
        session.ledger.write(attempt.export_id, f"attempts/{attempt.number:04d}.error.json", fact)
    except LakeError as problem:
        session.log(f"the failed attempt could not be written down: {problem}")


def landed_whole(session: Session, facts: Facts) -> bool:
    """Whether every file of the stored manifest that can be had lies in the lake, by the facts."""
    if facts.manifest is None:
        return False
    from pipeline.exports.foreign_files import foreign_files
    from pipeline.exports.manifests import stored_manifest

    landed = {
        (file.kind, file.index) for batch in session.ledger.landed(facts.export_id) for file in batch.files
    }
    manifest = stored_manifest(session, facts.export_id)
    there = landed | foreign_files(session, manifest).keys()
    return all((file.kind, file.index) in there for file in manifest.files)


def missing_raw(session: Session, source: str, export_id: str, batches: list[LandedBatch]) -> list[str]:
    """Raw files that the facts name and that are not there, or not with their size."""
    folder = f"{source}/raw/{export_id}"
    sizes = session.lake.sizes(folder)
    return [
        batch.raw for batch in batches if sizes.get(batch.raw.removeprefix(f"{folder}/")) != batch.raw_bytes
    ]


def _require_not_cancelled(facts: Facts) -> None:
    if "cancelled" in facts.closings and not facts.receipt:
        raise JobGone(f"{facts.label} was cancelled", "Start a new export run")
    if facts.closings.keys() & {"withdrawing", "withdrawn"}:
        raise JobGone(f"{facts.label} is withdrawn", "Start a new export run")


def _require_bytes(session: Session, facts: Facts) -> None:
    """There is something to ingest from: the bytes in the lake, or a job on the server."""
    batches = session.ledger.landed(facts.export_id)
    missing = missing_raw(session, facts.source, facts.export_id, batches)
    if missing:
        raise VerificationFailed(
            f"{len(missing)} of {len(batches)} raw files of {facts.label} are gone, {missing[0]} for one",
            "What is published stays as it is; start a new export run, or restore the files",
        )
    closing = next((name for name in CLOSINGS if name in facts.closings and name != "held"), None)
    over = "was released" if facts.released else f"is {closing}" if closing else None
    if over and not landed_whole(session, facts):
        raise JobGone(f"{facts.label} {over}, and its bytes are not in the lake", "Start a new export run")
