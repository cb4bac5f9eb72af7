"""Asking again: a further export run in the place of one that ended without data, or as its supplement.

Two facts make the chain: `successor.json` in the old one, then `succeeds.json` in the new one. Whoever is
killed between them is finished by the next one who looks, and nobody opens two.
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.exports.facts import SUPPLEMENT, Lacks, Succeeds, Successor
from pipeline.exports.identity import unscheduled_id
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.exports.state import AskAgain, is_open

_TRIES = 5
"""Ids of which somebody else was quicker."""


def open_successor(session: Session, export_id: str) -> str:
    """The export run that asks again for this one, opened where it is not yet; returns its id.

    An export run that was opened later and has not failed is taken for it: what it asks for is the same. Not
    so for a supplement: what it asks for nobody else does.
    Raises `ConfigError` when this one is not to be asked again, `LakeError`.
    """
    facts = session.ledger.read(export_id)
    step = session.next_step(facts)
    if not isinstance(step, AskAgain):
        if facts.successor is not None:
            return facts.successor.export_id
        raise ConfigError(f"{facts.label} is not to be asked again", "Start a new export run")
    for _ in range(_TRIES):
        _name(session, facts, step)
        facts = session.ledger.read(export_id)
        if facts.successor is None:
            raise ConfigError(f"{facts.label} names no successor that can be read", "Restore successor.json")
        if not _is_elses(session, facts, step):
            session.ledger.write(facts.successor.export_id, "succeeds.json", _succeeds(session, facts, step))
            facts = session.ledger.read(export_id)
        if facts.successor is not None and facts.successor_opened:
            return facts.successor.export_id
    raise ConfigError(f"{facts.label}: others were quicker to take the ids of its successors")


def _name(session: Session, facts: Facts, step: AskAgain) -> None:
    """Writes down which export run it is to be; the one that was named before stays where that can be."""
    known = facts.successor
    if known is not None and not _is_elses(session, facts, step):
        return
    number = known.number + 1 if known else 1
    name = "successor.json" if number == 1 else f"successor-{number:04d}.json"
    fact = Successor(
        at=session.now(), export_id=_its_id(session, facts, step), number=number, cause=step.cause
    )
    session.ledger.write(facts.export_id, name, fact)


def _is_alone(facts: Facts, step: AskAgain) -> bool:
    """Whether it asks for what no other export run asks for."""
    return step.cause == SUPPLEMENT or bool(facts.supplement_of)


def _is_elses(session: Session, facts: Facts, step: AskAgain) -> bool:
    """Whether the id that was named is by now that of an export run which asks for something else."""
    if facts.successor is None or not _is_alone(facts, step):
        return False
    there = session.ledger.read(facts.successor.export_id)
    return bool(there.intents) if there.succeeds is None else there.succeeds.export_id != facts.export_id


def _succeeds(session: Session, of: Facts, step: AskAgain) -> Succeeds:
    if step.cause == SUPPLEMENT:
        root = of.supplement_of or of.export_id
        return Succeeds(
            at=session.now(),
            export_id=of.export_id,
            number=step.number,
            reason=f"what the _since of {root} has left out",
            supplement_of=root,
            lacks=_left(of),
        )
    closing = next(closing for closing in of.closings.values() if closing.cause == step.cause)
    return Succeeds(
        at=session.now(),
        export_id=of.export_id,
        number=step.number,
        reason=f"{of.export_id}: {closing.reason}",
        supplement_of=of.supplement_of,
        lacks=of.succeeds.lacks if of.succeeds else Lacks(),
    )


def _left(of: Facts) -> Lacks:
    """What is still to be asked for: behind the supplement of types, that of patients."""
    if of.succeeds is not None and of.supplement_of:
        return Lacks(patients=of.succeeds.lacks.patients)
    return of.asked.lacks if of.asked else Lacks()


def _its_id(session: Session, of: Facts, step: AskAgain) -> str:
    known = session.ledger.export_ids()
    for later in known if not _is_alone(of, step) else ():
        if later > of.export_id:
            facts = session.ledger.read(later)
            if facts.receipt or is_open(facts, session.next_step(facts)):
                return later
    return unscheduled_id(session.now(), known)
