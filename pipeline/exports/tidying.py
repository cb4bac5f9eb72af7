"""After the receipt: giving back the job on the server, then the raw bytes where they are not kept."""

from __future__ import annotations

from pipeline.errors import ExportError, LakeError
from pipeline.exports.facts import ClosingFact
from pipeline.exports.ledger import Facts
from pipeline.exports.request import require_request
from pipeline.exports.session import Session
from pipeline.exports.state import Tidy


def tidy(session: Session, export_id: str) -> list[str]:
    """Does what the rules say is still to be given back, and nothing else; returns it in words."""
    done: list[str] = []
    for _ in range(2):  # the raw bytes are next only when the job is released (design, Facts)
        facts = session.ledger.read(export_id)
        step = session.next_step(facts)
        if not isinstance(step, Tidy):
            break
        if step.release:
            if not _release(session, facts):
                return [*done, "the job could not be released on the server yet"]
            done.append("the job is released on the server")
        elif step.drop_raw:
            done.append(f"{drop_raw(session, export_id)} raw files removed")
    return done


def release(session: Session, export_id: str) -> bool:
    """Gives the job back to the server (protocol fact 35), where that is next; False: not, or not yet."""
    facts = session.ledger.read(export_id)
    step = session.next_step(facts)
    if isinstance(step, Tidy) and step.release:
        return _release(session, facts)
    return facts.released is not None


def _release(session: Session, facts: Facts) -> bool:
    problem = give_back(session, facts)
    if problem is not None:
        session.log(f"the job could not be released on the server yet: {problem}")
    return problem is None


def give_back(session: Session, facts: Facts) -> ExportError | None:
    """DELETEs the job and writes that down; returns why the server did not confirm, if it did not.

    Raises `LakeError`.
    """
    try:
        session.client.delete(require_request(facts).status_url)
    except LakeError:
        raise
    except ExportError as error:
        return error
    fact = ClosingFact(at=session.now(), reason="deleted on the server")
    session.ledger.write(facts.export_id, "released.json", fact)
    return None


def drop_raw(session: Session, export_id: str) -> int:
    """Removes the raw bytes, then says so; killed in the middle it is done again. Raises `LakeError`."""
    folder = f"{session.source.name}/raw/{export_id}"
    names = sorted(session.lake.sizes(folder))
    for name in names:
        session.lake.remove(f"{folder}/{name}")
    fact = ClosingFact(at=session.now(), reason=f"{len(names)} files removed")
    session.ledger.write(export_id, "raw-dropped.json", fact)
    return len(names)
