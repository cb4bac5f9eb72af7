"""Which exports of a source stand in the way of the next scheduled one."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.exports.session import Session
from pipeline.exports.state import describe, is_open

_NEWEST = 30
"""An open export keeps the schedule from opening more: older ones than these are over."""


@dataclass(frozen=True)
class OpenExport:
    """An export run that is not over, its state and why."""

    export_id: str
    state: str
    reason: str


def open_exports(session: Session) -> list[OpenExport]:
    """The open exports of a source, oldest first. Raises `LakeError`."""
    found = []
    for export_id in session.ledger.export_ids()[-_NEWEST:]:
        facts = session.ledger.read(export_id)
        step = session.next_step(facts)
        if is_open(facts, step):
            found.append(OpenExport(export_id, *describe(facts, step, session.now())))
    return found
