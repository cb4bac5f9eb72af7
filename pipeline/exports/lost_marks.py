"""Exports that moved the watermark once, and are not complete any more since they were ingested again.

Those that came later began where they ended. What they lack now nobody asks for, until there is a full
export: a note beside the exports says so.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.errors import LakeError
from pipeline.exports.facts import Fact
from pipeline.exports.identity import is_export_id

if TYPE_CHECKING:
    from pipeline.exports.ledger import Facts
    from pipeline.exports.session import Session


def note_lost_mark(session: Session, facts: Facts, attempt: int) -> None:
    """Before the receipt that takes the watermark back, so that a kill in between loses nothing."""
    if any(receipt.watermark for receipt in facts.receipts):
        name = f"{session.source.name}/resync/{facts.export_id}-{attempt:04d}.json"
        session.lake.put_new(name, Fact(at=session.now()).model_dump_json().encode())


def why_full_again(session: Session, line: str, last_full: datetime | None) -> str:
    """Why the next export of that line is to be full; empty: there is no such note, or a full one came since.

    `last_full`: when the newest complete full export was asked for. Raises `LakeError`.
    """
    folder = f"{session.source.name}/resync"
    for name in session.lake.names(folder):
        export_id = name.rpartition("-")[0]
        data = session.lake.read(f"{folder}/{name}") if is_export_id(export_id) else None
        if data is None:
            continue
        try:
            noted = Fact.model_validate_json(data).at
        except ValidationError:
            raise LakeError(
                f"{folder}/{name} cannot be read",
                "Run one export with `since: never`; when it is published and complete, remove that file",
            ) from None
        if last_full is not None and last_full > noted:
            continue
        facts = session.ledger.read(export_id)
        lost = facts.receipt is None or facts.receipt.watermark is None
        if lost and "withdrawn" not in facts.closings and (facts.asked is None or facts.asked.line == line):
            return f"{facts.label} is not complete any more since it was ingested again"
    return ""
