"""Who is in the group that is exported, night by night (protocol fact 15).

Before the kick-off the members are looked up and remembered as digests (`members-0001.json`); when the export
is published they are looked up again, and who was there both times stands in `_members`. A later `_since`
holds for those only: the server saw them as members for certain.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ExportError, VerificationFailed
from pipeline.exports.connection import fhir_base_of
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from pipeline.exports.attempt import Attempt

MEMBERS = "_members"
STAYED, JOINED, LEFT = "member", "joined", "left"
_DIGEST = 16


@dataclass(frozen=True)
class Member:
    """A patient, as the Group has them."""

    patient: str
    standing: str
    """`active`, `inactive`, `ended` or `pending`: who becomes active again counts as new."""
    period: str = ""
    """Of the membership, as the Group has it: whose changes counts as new, too."""

    @property
    def digest(self) -> str:
        text = "\n".join(each for each in (self.patient, self.standing, self.period) if each).encode()
        return b64encode(hashlib.sha256(text).digest())[:_DIGEST].decode()


def members_schema() -> pa.Schema:
    """Columns of `_members`: one row for each patient who was in the group at the kick-off and at the end.

    `state`: `member`; `joined` since the export that this one began where it ended: their history is in a
    supplement, or in this one if it is full; `left` since then. `standing`: `active`, `inactive`, `ended` or
    `pending`; `period`: of the membership, as text.
    """
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("patient", "standing", "period", "state")])


def look_up(session: Session) -> dict[str, Member]:
    """digest -> member, as the server lists them now. Raises `ExportError` where it does not."""
    from pipeline.bulkdata.group import patients_of

    answer = session.client.read(f"Group/{session.source.export.group}")
    if not answer.ok or answer.resource is None:
        raise VerificationFailed(f"the Group cannot be read (HTTP {answer.http_status})")
    found = patients_of(answer.resource, fhir_base_of(session.source), session.now())
    members = (Member(patient, *membership) for patient, membership in found.items())
    return {each.digest: each for each in members}


def joined_digests(digests: Iterable[str]) -> str:
    """As the fact holds them."""
    return "".join(sorted(digests))


def split_digests(text: str) -> set[str]:
    return {text[start : start + _DIGEST] for start in range(0, len(text), _DIGEST)}


def write_members(session: Session, attempt: Attempt) -> None:
    """Replaces this export's rows of `_members`, where it was looked up who is in the group.

    Who it was when the export came is not looked up again when it is ingested again. Where the server does
    not tell it this time, there are none, and the next export is a full one.
    """
    intent = attempt.facts.asked
    fact = session.ledger.members(attempt.export_id, intent.number) if intent else None
    if intent is None or fact is None:
        return
    if there := read_members(session, attempt.export_id):
        _replace(session, attempt, [_row(member, state) for member, state in there])
        return
    try:
        now = look_up(session)
    except ExportError as error:
        session.log(f"who is in the group cannot be told, so the next export is a full one: {error.cause}")
        return
    _replace(session, attempt, _rows(session, attempt.facts, now, fact.digests, fact.joined))


def _rows(
    session: Session, facts: Facts, now: Mapping[str, Member], then: str, joined: str
) -> list[dict[str, Any]]:
    new = split_digests(joined)
    both = [now[digest] for digest in sorted(split_digests(then) & now.keys())]
    rows = [_row(each, JOINED if each.digest in new else STAYED) for each in both]
    if facts.supplement_of:
        return rows
    here = {each.patient for each in now.values()}
    before = _members_before(session, facts.export_id)
    return rows + [_row(each, LEFT) for each in before if each.patient not in here]


def _row(member: Member, state: str) -> dict[str, Any]:
    return {**asdict(member), "state": state}


def _members_before(session: Session, export_id: str) -> list[Member]:
    """Of the newest earlier export that has them."""
    from pipeline.tables.delta import published_parts

    known = published_parts(session.table_uri(MEMBERS), session.lake.storage_options)
    for earlier in sorted(known, reverse=True):
        if earlier < export_id and not session.ledger.read(earlier).supplement_of:
            return [member for member, state in read_members(session, earlier) or () if state != LEFT]
    return []


def _replace(session: Session, attempt: Attempt, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    from pipeline.tables.delta import live_parts, write_small_partition

    uri, options = session.table_uri(MEMBERS), session.lake.storage_options
    if not rows and not live_parts(uri, attempt.export_id, options):
        return
    schema = members_schema()

    def put(local: Path, path: str) -> None:
        session.lake.put_file(local, f"{session.table(MEMBERS)}/{path}")

    with session.lake.spool() as spool:
        write_small_partition(
            uri,
            export_id=attempt.export_id,
            attempt=attempt.number,
            replaces_after=attempt.facts.settled_attempt,
            tables=[pa.Table.from_pylist(rows, schema=schema)],
            schema=schema,
            put=put,
            spool=spool,
            storage_options=options,
        )


def read_members(session: Session, export_id: str) -> list[tuple[Member, str]] | None:
    """(member, state) of a published export; None where nothing is known of its group."""
    import pyarrow.parquet as pq

    from pipeline.tables.delta import live_parts

    parts = live_parts(session.table_uri(MEMBERS), export_id, session.lake.storage_options)
    if not parts:
        return None
    found: list[tuple[Member, str]] = []
    for part in parts:
        with session.lake.open(f"{session.table(MEMBERS)}/{part.path}") as file:
            rows = pq.read_table(file, partitioning=None).to_pylist()
        found += [
            (Member(row["patient"], row["standing"], row.get("period") or ""), row["state"]) for row in rows
        ]
    return found


def left_after(session: Session, export_id: str) -> set[str]:
    """Patients whom a later export, complete or not, did not find in the group any more."""
    from pipeline.tables.delta import published_parts

    known = published_parts(session.table_uri(MEMBERS), session.lake.storage_options)
    later = (read_members(session, each) or () for each in known if each > export_id)
    return {member.patient for rows in later for member, state in rows if state == LEFT}
