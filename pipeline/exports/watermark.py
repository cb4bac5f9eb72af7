"""From where on the next `_since` may ask: what is published, complete and of the same line.

Exports of one *line* have all parameters but the types in common. Each type goes on from the newest complete
export that has it, and at level group each patient from the exports that had them as a member (design,
Facts; protocol facts 15 and 26).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.exports.facts import Intent, Receipt
from pipeline.exports.ledger import Facts
from pipeline.exports.members import JOINED, LEFT, left_after, read_members
from pipeline.exports.partial import is_full
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pipeline.bulkdata.profiles import Profile
    from pipeline.config import Source

WHATEVER = ""
"""In the place of a type, where `export.types` names none."""


@dataclass(frozen=True)
class Since:
    """The `_since` to send, or none, and why in words."""

    value: str | None
    reason: str


@dataclass(frozen=True)
class Mark:
    """How far a type is published."""

    facts: Facts
    """The newest export that has it."""
    instant: str
    """Up to when all changes are published, deletes too: a full export names none that came before it."""


def is_sound(source: Source, profile: Profile) -> bool:
    """Whether `_since` finds every change at the level that is exported (protocol section 6)."""
    return source.export.level in profile.since_levels


def moves_a_watermark(source: Source, profile: Profile) -> bool:
    """Whether a later export of this source may begin where this one ends."""
    return source.export.since == "auto" and is_sound(source, profile)


def complete_exports(session: Session, line: str, fingerprint: str) -> Iterator[Facts]:
    """Exports of that line which move a watermark, newest first.

    Years of exports are not read through each night: the caller stops when it knows enough. Not one whose
    watermark is later than what the server said after it: its clock went back, and what it wrote before it
    is that late again would never be asked for. `fingerprint` tells those that were made before there were
    lines.
    """
    now: datetime | None = None
    for export_id in sorted(session.ledger.export_ids(), reverse=True):
        facts = session.ledger.read(export_id)
        receipt = facts.receipt
        if (
            receipt
            and receipt.watermark
            and _is_of(facts, receipt, line, fingerprint)
            and not facts.closings.keys() & {"withdrawing", "withdrawn"}
            and not facts.damaged  # it may be the withdrawal that cannot be read
            and (now is None or datetime.fromisoformat(receipt.watermark) <= now)
        ):
            yield facts
        said = _said(facts)
        now = min(now, said) if now and said else now or said


def _said(facts: Facts) -> datetime | None:
    """The server's time, as its manifest gave it."""
    from pipeline.bulkdata.manifest import instant_of

    said = facts.receipt or facts.manifest
    text = said.transaction_time if said else None
    instant = instant_of(text) if text else None
    try:
        moment = datetime.fromisoformat(instant) if instant else None
    except ValueError:
        return None
    return moment if moment and moment.tzinfo else None


def _is_of(facts: Facts, receipt: Receipt, line: str, fingerprint: str) -> bool:
    intent = facts.asked
    if intent is not None and intent.patients is not None:
        return False
    if intent is None or not intent.line:
        return receipt.fingerprint == fingerprint
    return intent.line == line


def marks_of(exports: Iterable[Facts], types: Sequence[str], *, deletes: bool = True) -> dict[str, Mark]:
    """Type -> its mark, for those that have one; `types` empty: the one of `WHATEVER`. `exports` newest
    first. `deletes`: a full export does not tell what was deleted, so the mark is that of the one before."""
    found: dict[str, Mark] = {}
    wanted = set(types or (WHATEVER,))
    for facts in exports:
        receipt, intent = facts.receipt, facts.asked
        assert receipt is not None and receipt.watermark is not None  # noqa: S101 - `complete_exports`
        asked = intent.parameters.get("types") if intent else types
        deletes_from = intent.deletes_from if intent else None
        for each in wanted & set(asked or (WHATEVER,)):
            newest = found[each].facts if each in found else facts
            found[each] = Mark(newest, deletes_from or receipt.watermark)
            if not deletes or deletes_from or not is_full(facts):
                wanted.remove(each)
        if not wanted:
            break
    return found


def earliest(marks: Iterable[Mark]) -> str:
    """The mark that all of them have reached, as the server wrote it."""
    return min((each.instant for each in marks), key=datetime.fromisoformat)


def with_overlap(instant: str, seconds: float) -> str:
    """The `_since` so much before a mark."""
    if not seconds:
        return instant
    moment = datetime.fromisoformat(instant) - timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def last_full(exports: Iterable[Facts]) -> datetime | None:
    """When the newest full export was asked for; a supplement is none."""
    fulls = (each for each in exports if is_full(each) and not each.supplement_of)
    return next((facts.intents[0].at for facts in fulls), None)


def covered_members(session: Session, marks: Iterable[Mark]) -> set[str] | None:
    """Digests of the members whose whole history up to their marks is published; None: nobody knows."""
    covered: set[str] | None = None
    for facts in {mark.facts.export_id: mark.facts for mark in marks}.values():
        rows = read_members(session, facts.export_id)
        if rows is None:
            return None
        full, healed, away = is_full(facts), _healed(session, facts), left_after(session, facts.export_id)
        there = {
            member.digest
            for member, state in rows
            if state != LEFT
            and member.patient not in away
            and (state != JOINED or full or member.digest in healed)
        }
        covered = there if covered is None else covered & there
    return covered


def _healed(session: Session, facts: Facts) -> set[str]:
    """Digests of those who joined, and of whom supplements have brought all that this export asked for."""
    healed: set[str] = set()
    for supplement in supplements(session, facts):
        receipt = supplement.receipt
        if (
            receipt
            and receipt.watermark
            and not supplement.closings.keys() & {"withdrawing", "withdrawn"}
            and _has_what(supplement.asked, facts.asked)
        ):
            rows = read_members(session, supplement.export_id) or []
            healed |= {member.digest for member, state in rows if state != LEFT}
    return healed


def _has_what(supplement: Intent | None, main: Intent | None) -> bool:
    """Whether the one asked of its patients for all that the other did."""
    if supplement is None or main is None or supplement.patients is None or supplement.line != main.line:
        return False
    types = [{*(each.parameters.get("types") or (WHATEVER,))} for each in (supplement, main)]
    return types[0] >= types[1]


def supplements(session: Session, facts: Facts) -> Iterator[Facts]:
    """The export runs that complete this one, and those that ask again for them."""
    seen = {facts.export_id}
    while facts.successor is not None and facts.successor.export_id not in seen:
        facts = session.ledger.read(facts.successor.export_id)
        seen.add(facts.export_id)
        if facts.damaged or not facts.supplement_of:
            return
        yield facts
