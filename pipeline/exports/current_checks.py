"""What must hold of a current table, counted from the lake alone: nothing is lost without a deletion, and
every row comes from an export.

Both are exact, no samples: ids and lineage columns of the chunks, and of the exports that they name, are put
side by side. What an export brought since the last merge, or was taken back since, is no fault of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import LakeError
from pipeline.exports.current import places_of
from pipeline.exports.current_scan import IDS, Scan, scanning
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name

if TYPE_CHECKING:
    from pipeline.tables.current.chunks import Chunk, ChunkTable
    from pipeline.tables.delta import StagedPart, StorageOptions

Parts = Mapping[str, tuple[int, tuple["StagedPart", ...]]]
"""Export -> the attempt that committed it last, and its files."""
_PLACE = ("id", "_source_file", "_source_line")
_KEY = "id, _source_file, CAST(_source_line AS BIGINT)"
"""Rows are compared by a hash of eight bytes, with a fifth of the work: one that comes from no export passes
as another with a chance of about rows over 10**19."""


# --- what went away ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lost:
    """The ids of a current table that went away without a deletion."""

    version: int | None
    """The Delta version that was looked at; None: there is no table yet."""
    since: int | None
    """The version that it was compared with; None: there is none, or its files are gone."""
    rows: int
    rows_before: int
    lost: int
    """Ids that were there, and are now neither there nor among the deleted."""

    @property
    def share(self) -> float:
        """Of the rows before."""
        return self.lost / self.rows_before if self.rows_before else 0.0


def lost_rows(session: Session, resource_type: str, previous: tuple[int, int | None] | None = None) -> Lost:
    """Compares a current table with what it was when somebody looked last, else with the version before.

    `previous`: `version` and `since` of then. No merge goes unseen so, also of several in between; and a look
    at an unchanged table says what the last one said.
    By ids, since numbers of rows hide a loss behind what is new: what is in the chunks of then that are no
    longer there, and neither in those that came nor in `<type>_deleted`. Chunks that stayed are not read, so
    it costs what the merge has changed. Raises LakeError.
    """
    from pipeline.tables.current.chunks import ChunkTable
    from pipeline.tables.delta import open_table

    places, options = places_of(session, resource_type), session.lake.storage_options
    uri = session.lake.table_uri(places.current)
    table = open_table(uri, options)
    if table is None:
        return Lost(None, None, 0, 0, 0)
    now, version = ChunkTable(table), int(table.version())
    since = version_before(version, previous)
    then = None if since is None else _at(uri, since, options)
    if then is None:
        return Lost(version, None, now.rows, 0, 0)
    with scanning(session.lake) as scan:
        scan.make("gone", IDS)
        scan.make("kept", IDS)
        try:
            scan.load("gone", _paths(places.current, _without(then, now)), IDS)
        except LakeError:  # vacuumed
            return Lost(version, None, now.rows, 0, 0)
        lost = 0
        if scan.number("SELECT count(*) FROM gone"):
            buried = ChunkTable.at(session.lake.table_uri(places.deleted), options)
            scan.load("kept", _paths(places.current, _without(now, then)), IDS)
            scan.load("kept", _paths(places.deleted, buried.chunks), IDS)
            lost = scan.number(
                "SELECT count(DISTINCT id) FROM gone WHERE id IS NOT NULL"
                " AND NOT EXISTS (SELECT 1 FROM kept WHERE kept.id = gone.id)"
            )
    return Lost(version, since, now.rows, then.rows, lost)


def version_before(version: int, previous: tuple[int, int | None] | None) -> int | None:
    """Which version to compare with; None where there is none."""
    looked, since = previous or (None, None)
    base = since if looked == version else looked
    if base is not None and 0 <= base < version:
        return base
    return version - 1 if version else None


def _at(uri: str, version: int, options: StorageOptions) -> ChunkTable | None:
    """The table at that version; None where the log has it no longer."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    from pipeline.tables.current.chunks import ChunkTable

    try:
        return ChunkTable(DeltaTable(uri, version=version, storage_options=options))
    except (DeltaError, OSError):
        return None


def _without(some: ChunkTable, others: ChunkTable) -> list[Chunk]:
    known = {chunk.path for chunk in others.chunks}
    return [chunk for chunk in some.chunks if chunk.path not in known]


def _paths(folder: str, chunks: Sequence[Chunk]) -> list[str]:
    return [f"{folder}/{chunk.path}" for chunk in chunks]


# --- where rows come from ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origins:
    """Whether the rows of a current table come from exports."""

    rows: int
    exports: int
    """That the rows name."""
    unlisted: int
    """Rows that name an export which was never whole, or none."""
    strangers: int
    """Rows that are not in the partition of the export that they name: by id, source file and line."""
    behind: int
    """Rows of exports that were ingested again or taken back since the last merge: not judged."""

    @property
    def wrong(self) -> int:
        return self.unlisted + self.strangers

    @property
    def sound(self) -> bool:
        return not self.wrong


def origins(session: Session, resource_type: str) -> Origins:
    """Looks up every row of a current table in the export that it names. Raises LakeError."""
    from pipeline.tables.current.chunks import ChunkTable
    from pipeline.tables.delta import published_parts

    places, options = places_of(session, resource_type), session.lake.storage_options
    # In this order: what is withdrawn leaves `_exports` first, what is ingested again comes there last.
    table = ChunkTable.at(session.lake.table_uri(places.current), options)
    parts = published_parts(session.table_uri(table_name(resource_type)), options)
    whole = published_parts(session.table_uri("_exports"), options)
    with scanning(session.lake) as scan:
        scan.make("held", {"export_id": "VARCHAR", "key": "UBIGINT"})
        columns, select = ("_export_id", *_PLACE), f"_export_id, hash(_export_id, {_KEY})"
        scan.load("held", _paths(places.current, table.chunks), columns, select)
        rows = {
            export_id: int(count)
            for export_id, count in scan.ask("SELECT export_id, count(*) FROM held GROUP BY ALL")
        }
        judged, unlisted, behind = [], 0, 0
        for export_id, count in rows.items():
            standing = _standing(session, resource_type, table, export_id, parts, whole)
            unlisted += count if standing == "unlisted" else 0
            behind += count if standing == "behind" else 0
            judged += [export_id] if standing == "merged" else []
        strangers = _strangers(session, resource_type, scan, judged, parts)
    return Origins(sum(rows.values()), len(rows), unlisted, strangers, behind)


def _standing(
    session: Session, resource_type: str, table: ChunkTable, export_id: str | None, parts: Parts, whole: Parts
) -> str:
    """`merged`: the table holds the export as it is now; `behind`: as it was; `unlisted`: it cannot."""
    from pipeline.tables.current.chunks import NEVER
    from pipeline.tables.current.shares import number_of
    from pipeline.tables.delta import committed_attempt

    if export_id is None or (number := number_of(table, export_id)) == NEVER:
        return "unlisted"
    if export_id not in whole or whole[export_id][0] != number:
        return "behind"
    committed = parts[export_id][0] if export_id in parts else None
    if committed is None:
        uri = session.table_uri(table_name(resource_type))
        committed = committed_attempt(uri, export_id, session.lake.storage_options) or 0
    return "merged" if committed <= number else "behind"


def _strangers(
    session: Session, resource_type: str, scan: Scan, export_ids: Sequence[str], parts: Parts
) -> int:
    folder = session.table(table_name(resource_type))
    scan.make("origin", {"key": "UBIGINT"})
    for export_id in export_ids:
        _, own = parts.get(export_id, (0, ()))
        paths = [f"{folder}/{part.path}" for part in own]
        scan.load("origin", paths, _PLACE, f"hash(?, {_KEY})", [export_id])
    return scan.number(
        "SELECT count(*) FROM held WHERE list_contains(?, export_id)"
        " AND NOT EXISTS (SELECT 1 FROM origin WHERE origin.key = held.key)",
        [list(export_ids)],
    )
