"""Giving an export run up on request of the person at the terminal."""

from __future__ import annotations

from pipeline.errors import ConfigError, LakeError, StillRunning
from pipeline.exports.session import Session
from pipeline.exports.state import Busy, Closed, Damaged, Tidy, describe

REASON = "by hand, from the command line"


def cancel(session: Session, export_id: str) -> str:
    """Ends an open export run, with a DELETE where the server works on it; returns what came of it, in words.

    Raises `ConfigError` when it is published or over already, `StillRunning` while another run works on it.
    """
    from pipeline.exports.closing import close
    from pipeline.exports.manifests import cancel_export
    from pipeline.exports.repair import take_back

    facts = session.ledger.read(export_id)
    step = session.next_step(facts)
    match step:
        case Closed() | Tidy():
            state, _ = describe(facts, step, session.now())
            raise ConfigError(f"{facts.label} is {state} already", "There is nothing to cancel")
        case Busy(owner, what):
            raise StillRunning(
                f"run {owner.run_id} is doing the {what} of {facts.label}", "Stop that run first, then cancel"
            )
        case Damaged(names):
            raise LakeError(f"{facts.label} has damaged facts: {', '.join(names)}", "Restore them first")
        case _:
            pass
    if facts.request is None:
        lost = any(not error.certain for error in facts.intent_errors.values()) or len(facts.intents) > len(
            facts.intent_errors
        )
        advice = "A request brought no answer: its job may run on the server" if lost else ""
        close(session, export_id, "cancelled", REASON, advice)
        return f"{facts.label} is cancelled; the server had accepted no request. {advice}".rstrip(" .")
    problem = cancel_export(session, export_id, REASON)
    for table in take_back(session, facts):  # of a publish that was killed half-way
        session.log(f"{table}: the rows of this export are taken back")
    if problem is None:
        return f"{facts.label} is cancelled, and the job on the server is deleted"
    return f"{facts.label} is cancelled here. The job may still run on the server: {problem.cause}"
