"""Asking again: a further export run in the place of one that ended without data, or as its supplement.

Two facts make the chain: `successor.json` in the old one, then `succeeds.json` in the new one. Whoever is
killed between them is finished by the next one who looks, and nobody opens two.
"""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.exports.facts import SUPPLEMENT, Succeeds, Successor
from pipeline.exports.identity import export_id_at
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.exports.state import AskAgain, is_open


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
    session.ledger.write(
        export_id, "successor.json", Successor(at=session.now(), export_id=_its_id(session, facts, step))
    )
    successor = session.ledger.read(export_id).successor
    if successor is None:
        raise ConfigError(f"{facts.label} names no successor that can be read", "Restore successor.json")
    if step.cause == SUPPLEMENT:
        reason, completes = f"what the _since of {export_id} has left out", export_id
    else:
        closing = next(closing for closing in facts.closings.values() if closing.cause == step.cause)
        reason, completes = f"{export_id}: {closing.reason}", facts.supplement_of
    succeeds = Succeeds(
        at=session.now(), export_id=export_id, number=step.number, reason=reason, supplement_of=completes
    )
    session.ledger.write(successor.export_id, "succeeds.json", succeeds)
    return successor.export_id


def _its_id(session: Session, of: Facts, step: AskAgain) -> str:
    known = session.ledger.export_ids()
    for later in known if step.cause != SUPPLEMENT and not of.supplement_of else ():
        if later > of.export_id:
            facts = session.ledger.read(later)
            if facts.receipt or is_open(facts, session.next_step(facts)):
                return later
    return export_id_at(session.now(), known)
