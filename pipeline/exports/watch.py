"""One look at the status of an export that runs on the server; it decides nothing, and notes trouble."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ExportError, LakeError, Unreachable, VerificationFailed
from pipeline.exports.facts import LookFact
from pipeline.exports.ledger import Facts
from pipeline.exports.request import require_request
from pipeline.exports.session import Session

_NOTED = 5


@dataclass(frozen=True)
class NotYet:
    """Look again in so many seconds; `progress` is the server's own text (protocol fact 20), if any."""

    wait: float
    progress: str | None
    problem: str | None = None
    """Why there was no proper answer, where there was none."""


@dataclass(frozen=True)
class Ready:
    """The export is over, with a manifest or without one: the ingest run finds out which."""

    outcome: str


def look(session: Session, facts: Facts, looks: int) -> NotYet | Ready:
    """Polls once, at the server's pace (protocol fact 18). `looks`: how many looks brought no news before.

    Never raises for the server's sake: what is wrong with one look may be right at the next, and what stays
    wrong ends at the deadline.
    """
    seen = _look(session, facts, looks)
    if isinstance(seen, NotYet) and seen.problem:
        _note(session, facts, seen.problem)
    return seen


def _note(session: Session, facts: Facts, problem: str) -> None:
    """Writes each kind of trouble down once, so that `show` says why nothing happens; a handful at most."""
    if len(facts.looks) < _NOTED and all(each.reason != problem for each in facts.looks):
        fact = LookFact(at=session.now(), reason=problem)
        try:
            session.ledger.write(facts.export_id, f"looks/{len(facts.looks) + 1:04d}.json", fact)
        except LakeError as error:
            session.log(f"the failed look could not be written down: {error}")


def _look(session: Session, facts: Facts, looks: int) -> NotYet | Ready:
    from pipeline.bulkdata.answers import Failed, Gone, InProgress, RetryLater

    try:
        answer = session.client.status(require_request(facts).status_url)
    except Unreachable as error:
        return NotYet(session.profile.next_poll(looks, error.retry_after), None, str(error))
    except VerificationFailed as error:  # asked again it would be the same: the ingest run shows why
        return Ready(str(error))
    except ExportError as error:
        return NotYet(session.profile.next_poll(looks + 4, None), None, str(error))
    match answer:
        case InProgress(retry_after, progress):
            return NotYet(session.profile.next_poll(looks, retry_after), progress)
        case RetryLater(retry_after, reason):
            return NotYet(session.profile.next_poll(looks, retry_after), None, reason)
        case Gone() | Failed():
            return Ready("the job is over without a result")
        case _:
            return Ready("the export is ready")
