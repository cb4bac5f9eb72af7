"""What of the tables belongs to a patient: rows, by part; and how the rest of a part is written again."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import LakeError
from pipeline.exports.attachments.links import LINKS
from pipeline.exports.deletions import DELETES
from pipeline.exports.erasing.compartment import Patient, Standing
from pipeline.exports.erasing.mentions import Needle, batches_of, resource_in
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name, type_of_table
from pipeline.tables.schema import EXPORT_ID, PARTITION_COLUMN, SOURCE_FILE, SOURCE_LINE

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.tables.parts import LocalPart

_ATTEMPT = re.compile(r"/part-(\d{4,})-")
Identity = tuple[str, str]
"""Resource type and id."""
Line = tuple[str, str, int]
"""Export, source file and line."""
CURRENT, DELETED = "_current", "_deleted"
NAMING: Mapping[str, tuple[str | None, str]] = {
    DELETES: ("resource_type", "id"),
    LINKS: ("resource_type", "resource_id"),
    "_members": (None, "patient"),
}
"""Tables that name resources: their columns of type and id; without a type it is a Patient."""


@dataclass
class Owned:
    """The resources that are the patient's, and which of their ids are somebody else's, too."""

    patient: Patient
    ids: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    others: set[Identity] = field(default_factory=set)
    """Of which another version is not the patient's."""
    mentions: Counter[str] = field(default_factory=Counter)
    """Rows that name the patient and stay, by table."""

    def weigh(self, resource: Mapping[str, Any] | None) -> bool:
        """Whether a resource goes, as far as it says so itself; what it is is remembered."""
        if resource is None:
            return False
        kind, identifier = resource.get("resourceType"), resource.get("id")
        if self.patient.standing(resource) is not Standing.OWN:
            return False
        if isinstance(kind, str) and isinstance(identifier, str):
            self.ids[kind].add(identifier)
        return True

    def weigh_again(self, resource: Mapping[str, Any] | None) -> bool:
        """Whether one goes that has the id of one that goes: where it names no patient at all."""
        if resource is None:
            return False
        standing = self.patient.standing(resource)
        if standing is Standing.OTHERS:
            self.others.add((str(resource.get("resourceType")), str(resource.get("id"))))
        return standing is Standing.NOBODY

    def gone(self, resource_type: str) -> set[str]:
        """Ids of a type of which no version is left."""
        own = {self.patient.id} if resource_type == "Patient" else set()
        return own | {each for each in self.ids[resource_type] if (resource_type, each) not in self.others}


@dataclass
class TableRows:
    """A table, and which of its rows go."""

    name: str
    folder: str
    """From the lake's root."""
    resource_type: str | None
    parts: tuple[str, ...]
    """All live ones, from the table's root."""
    rows: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Part -> positions of the rows that go."""

    @property
    def count(self) -> int:
        return sum(len(each) for each in self.rows.values())

    def add(self, part: str, rows: Iterable[int]) -> None:
        found = np.unique(np.array([*self.rows.get(part, ()), *rows], np.int64))
        if len(found):
            self.rows[part] = found

    def path(self, part: str) -> str:
        return f"{self.folder}/{part}"


@contextmanager
def readable(session: Session, path: str) -> Iterator[Path]:
    """A part as a local file; what goes wrong while it is read raises `LakeError`."""
    import pyarrow as pa

    try:
        with session.lake.local_copy(path) as local:
            yield local
    except (OSError, pa.ArrowException) as bad:
        raise LakeError(
            f"{path} is missing or damaged ({type(bad).__name__})",
            "Nothing is certain without it: restore it, or ingest its export again from the raw bytes "
            "(`fhir-export doctor` tells which; a current table: `fhir-export rebuild`); then erase again",
        ) from None


def open_tables(session: Session, kind: str) -> list[TableRows]:
    """Every Delta table below `tables` or `current`. Raises `LakeError`."""
    from pipeline.tables.erased import files_of

    found = []
    root = f"{session.source.name}/{kind}"
    for name in session.lake.names(root):
        uri, options = session.lake.table_uri(f"{root}/{name}"), session.lake.storage_options
        files = files_of(uri, options)
        if files is None:
            continue
        bare = name.removesuffix(CURRENT).removesuffix(DELETED) if kind == "current" else name
        found.append(TableRows(name, f"{root}/{name}", type_of_table(bare), tuple(sorted(files.shown))))
    return found


# --- whole resources ---------------------------------------------------------------------------------


def find_resources(session: Session, owned: Owned, needle: Needle, table: TableRows) -> None:
    """The rows of a table of whole resources that say themselves that they are the patient's."""
    for part in table.parts:
        with readable(session, table.path(part)) as path:
            for begin, batch in batches_of(path):
                mask = needle.in_rows(batch)
                if not mask.any():
                    continue
                goes = [owned.weigh(resource) for resource in _resources(batch, mask, table.resource_type)]
                at = np.flatnonzero(mask)
                table.add(part, (begin + at[np.array(goes, np.bool_)]).tolist())
                owned.mentions[table.folder.partition("/")[2]] += goes.count(False)


def find_followers(session: Session, owned: Owned, table: TableRows) -> None:
    """Those that have the id of one that goes, and name no patient: shortened or marked as deleted."""
    ids = owned.ids.get(str(table.resource_type))
    if not ids:
        return
    for part in table.parts:
        with readable(session, table.path(part)) as path:
            known = set(table.rows.get(part, np.array([], np.int64)).tolist())
            wanted = [row for row in _rows_in(path, "id", ids) if row not in known]
            if not wanted:
                continue
            for begin, batch in batches_of(path):
                here = [row - begin for row in wanted if 0 <= row - begin < batch.num_rows]
                mask = np.zeros(batch.num_rows, np.bool_)
                mask[here] = True
                if not here:
                    continue
                found = zip(sorted(here), _resources(batch, mask, table.resource_type), strict=True)
                table.add(part, [begin + row for row, resource in found if owned.weigh_again(resource)])


def _resources(
    batch: pa.RecordBatch, mask: NDArray[np.bool_], resource_type: str | None
) -> Iterator[dict[str, Any] | None]:
    import pyarrow as pa

    from pipeline.tables.ndjson import lines_of

    for line in lines_of(batch.filter(pa.array(mask)), resource_type):
        yield resource_in(line)


def _rows_in(path: Path, column: str, values: Set[str]) -> Iterator[int]:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(values), pa.string())
    for begin, batch in batches_of(path, [column]):
        if batch.num_columns:
            mask = np.asarray(pc.is_in(batch.column(0).cast(pa.string()), value_set=wanted))
            yield from (begin + np.flatnonzero(mask)).tolist()


# --- what follows from them --------------------------------------------------------------------------


def lines_that_go(session: Session, table: TableRows) -> set[Line]:
    """Where the rows came from: flat rows know the same."""
    found: set[Line] = set()
    for part, rows in table.rows.items():
        with readable(session, table.path(part)) as path:
            goes = set(rows.tolist())
            for row, line in _lines(path):
                if row in goes:
                    found.add(line)
    return found


def _lines(path: Path) -> Iterator[tuple[int, Line]]:
    names = [EXPORT_ID, SOURCE_FILE, SOURCE_LINE]
    for begin, batch in batches_of(path, names):
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        if len(columns) == len(names):
            yield from enumerate(zip(*(columns[name] for name in names), strict=True), start=begin)


def find_named(session: Session, owned: Owned, table: TableRows) -> None:
    """The rows of `_deletes`, `_attachments`, `_members`, or of a `<type>_deleted`, that name what goes."""
    typed, named = NAMING.get(table.name, (None, "id"))
    gone: dict[str, set[str]] = {}
    for part in table.parts:
        with readable(session, table.path(part)) as path:
            for begin, batch in batches_of(path, [each for each in (typed, named) if each]):
                ids = batch.column(named).to_pylist()
                same = [table.resource_type or "Patient"] * len(ids)
                types = batch.column(typed).to_pylist() if typed else same
                for kind in {*map(str, types)} - gone.keys():
                    gone[kind] = owned.gone(kind)
                pairs = enumerate(zip(types, ids, strict=True), start=begin)
                table.add(part, [row for row, (kind, each) in pairs if each in gone[str(kind)]])


# --- writing -----------------------------------------------------------------------------------------


def written_again(path: Path, rows: NDArray[np.int64] | None, spool: Path) -> Iterator[LocalPart]:
    """The other rows of a part in new local files of the same schema; itself where none goes."""
    from pipeline.tables.current.taking import ChunkFiles, taken
    from pipeline.tables.parts import LocalPart, open_part, read_part_schema

    with open_part(path) as part:
        keep = np.ones(part.metadata.num_rows, np.bool_)
    schema = read_part_schema(path)
    if rows is None:
        yield LocalPart(path, len(keep), path.stat().st_size, schema)
        return
    keep[rows] = False
    with ChunkFiles(spool, schema) as files:
        for table in taken(path, keep):
            files.add(table)
        files.cut()
        yield from files.finished


def erase_from_exports(session: Session, table: TableRows) -> None:
    """Takes the rows out of a table of export partitions. Raises `Conflict`, `LakeError`."""
    from pipeline.tables.delta import StagedPart, part_path
    from pipeline.tables.erased import Remainder, leave

    by_export: defaultdict[str, list[str]] = defaultdict(list)
    for part in table.parts:
        by_export[part.partition("/")[0].removeprefix(f"{PARTITION_COLUMN}=")].append(part)
    remainders = {}
    for export_id, parts in by_export.items():
        if not any(part in table.rows for part in parts):
            continue
        left: list[StagedPart] = []
        for part in parts:
            attempt = int(match[1]) if (match := _ATTEMPT.search(part)) else 0
            with readable(session, table.path(part)) as path, session.lake.spool() as spool:
                for local in written_again(path, table.rows.get(part), spool):
                    new = part_path(export_id, attempt)
                    session.lake.put_file(local.path, table.path(new))
                    left.append(StagedPart(new, local.bytes, local.rows))
        erased = sum(len(table.rows.get(part, ())) for part in parts)
        remainders[export_id] = Remainder(tuple(parts), tuple(left), erased)
    if remainders:
        uri = session.lake.table_uri(table.folder)
        leave(uri, remainders, session.lake.storage_options)


def erase_from_chunks(session: Session, table: TableRows) -> None:
    """Takes the rows out of a current table, and what thinned chunks remember of rows that went before.

    Without any, a commit all the same: a merge that has read what went must begin again. Raises `Conflict`,
    `LakeError`.
    """
    from pipeline.tables.current.chunks import Chunk, ChunkTable, new_chunk
    from pipeline.tables.delta import Conflict
    from pipeline.tables.erased import MARK

    uri, options = session.lake.table_uri(table.folder), session.lake.storage_options
    standing = ChunkTable.at(uri, options)
    if {chunk.path for chunk in standing.chunks} != set(table.parts):
        raise Conflict("erasing: a current table has changed")
    out = [
        chunk
        for chunk in standing.chunks
        if chunk.path in table.rows or _is_thinned(session, table.path(chunk.path))
    ]
    added = []
    nothing = np.array([], np.int64)
    for chunk in out:
        with readable(session, table.path(chunk.path)) as path, session.lake.spool() as spool:
            for local in written_again(path, table.rows.get(chunk.path, nothing), spool):
                name, new = new_chunk(chunk.name.rpartition("-")[0])
                session.lake.put_file(local.path, table.path(new))
                added.append(Chunk(name, new, local.rows, local.bytes))
    standing.replace(out, added, {MARK: max(0, standing.number(MARK)) + 1} if out else {}, "erased")


def _is_thinned(session: Session, path: str) -> bool:
    from pipeline.tables.parts import open_part
    from pipeline.tables.thinning import is_thinned

    with session.lake.open(path) as file, open_part(file) as part:
        return is_thinned(part)


def tables_of(found: Iterable[TableRows], names: Iterable[str]) -> list[TableRows]:
    """Those of these names."""
    wanted = set(names)
    return [each for each in found if each.name in wanted]


def is_of_resources(table: TableRows) -> bool:
    """Whether its rows are whole resources."""
    return table.resource_type is not None and table.name in (
        table_name(table.resource_type),
        f"{table_name(table.resource_type)}{CURRENT}",
    )
