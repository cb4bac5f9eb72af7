"""The flat tables of an export, made from the live parts of its published tables and from nothing else.

Each has a partition `export_id=` beside that of its deep table. The number of a flat partition's Delta
transaction tells which commit of the deep table it was made from, so what is stale is known by the two logs
alone, and a making that is killed, repeated or done twice at once leaves one copy.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Source
from pipeline.errors import ExportError, LakeError, StillRunning, VerificationFailed
from pipeline.exports.facts import TableCounts
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name
from pipeline.tables.flat import FLAT_SUFFIX
from pipeline.tables.overtaking import Overtaken

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.tables.flat import FlatTable
    from pipeline.tables.flat.column import Branch
    from pipeline.tables.flat.place import Place
    from pipeline.tables.parts import LocalPart

_MAKINGS = 1_000_000
"""A flat partition's transaction is `attempt of the deep table's commit * _MAKINGS + making`."""
_MEMORY_MB = 1024
"""For DuckDB, over all tables that are made at the same time."""
_WITH_ITEMS = ("claim", "explanationofbenefit")
_MAX_TRIES = 10
"""Of a making that erasures overtake."""


@dataclass(frozen=True)
class FlatPartition:
    """One export's share of a flat table, current."""

    table: str
    resource_type: str
    attempt: int
    """Of the deep table's commit that it was made from."""
    rows: int
    parts: int
    bytes: int
    """Of Parquet."""
    version: int | None
    """Of the Delta table, where it was committed now; None: it was current already."""

    @property
    def made(self) -> bool:
        return self.version is not None


@dataclass(frozen=True)
class NotMade:
    """The flat tables of a resource type that could not be made, and why."""

    resource_type: str
    error: ExportError


# --- which ---------------------------------------------------------------------------------------------


def flat_names(resource_type: str) -> tuple[str, ...]:
    """The names of the flat tables of a type, told without the definitions: for loading (tested against
    `pipeline.tables.flat.flat_tables`)."""
    name = table_name(resource_type)
    items = (f"{name}_item{FLAT_SUFFIX}",) if name in _WITH_ITEMS else ()
    return (f"{name}{FLAT_SUFFIX}", *items)


def wants_flat(source: Source, resource_type: str) -> bool:
    """Whether the configuration asks for the flat tables of a type."""
    return source.flat if isinstance(source.flat, bool) else resource_type in source.flat


def published(session: Session, export_id: str) -> Mapping[str, TableCounts]:
    """What the newest publish of an export committed. Raises `VerificationFailed` when there is none."""
    facts = session.ledger.read(export_id)
    if not facts.publications:
        raise VerificationFailed(
            f"{facts.label} has no tables yet", "Ingest it first: flat tables are made from the others"
        )
    return facts.publications[-1].tables


def wanted_names(source: Source, tables: Mapping[str, TableCounts]) -> dict[str, tuple[str, ...]]:
    """Resource type -> flat tables, for the published tables of an export by the configuration; large ones
    first."""
    types = [counts.resource_type for counts in sorted(tables.values(), key=lambda each: -each.bytes)]
    return {each: flat_names(each) for each in types if wants_flat(source, each)}


def standing(session: Session, export_id: str, names: Mapping[str, Sequence[str]]) -> dict[str, int | None]:
    """Flat table -> its rows of that export; None where it is missing, stale or cannot be read."""
    found = current_partitions(session, export_id, names)
    return {table: current.rows if current else None for table, current in found.items()}


def current_partitions(
    session: Session, export_id: str, names: Mapping[str, Sequence[str]]
) -> dict[str, FlatPartition | None]:
    """Flat table -> its partition of that export; None where it is missing, stale or cannot be read."""
    found: dict[str, FlatPartition | None] = {}
    for resource_type, tables in names.items():
        for table in tables:
            try:
                origin = _committed(session, table_name(resource_type), export_id)
                found[table] = _current(session, export_id, resource_type, table, origin) if origin else None
            except LakeError:
                found[table] = None
    return found


# --- making --------------------------------------------------------------------------------------------


def make_flat_tables(
    session: Session, export_id: str, names: Mapping[str, Sequence[str]], *, again: bool
) -> Iterator[list[FlatPartition] | NotMade]:
    """Makes flat tables (resource type -> names) of one export, several types at once; yields type by type.

    What is current already is left as it is, unless `again`. One type's failure does not stop the others.
    """
    if not names:
        return
    lanes = min(session.config.conversion.lanes, len(names))
    memory_mb = max(256, _MEMORY_MB // lanes)

    def work(resource_type: str) -> list[FlatPartition] | NotMade:
        try:
            return make_flat(
                session, export_id, resource_type, names[resource_type], again=again, memory_mb=memory_mb
            )
        except ExportError as error:
            return NotMade(resource_type, error)
        except Exception as error:  # noqa: BLE001 - told by type and place: its own text may hold content
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"unexpected {type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
            return NotMade(resource_type, ExportError(text, "Report this"))

    pool = ThreadPoolExecutor(lanes, thread_name_prefix="flat")
    try:
        futures: list[Future[list[FlatPartition] | NotMade]] = [pool.submit(work, each) for each in names]
        for future in as_completed(futures):
            done = future.result()
            for text in _told(done):
                session.log(text)
            yield done
    finally:
        pool.shutdown(cancel_futures=True)


def make_flat(
    session: Session,
    export_id: str,
    resource_type: str,
    names: Sequence[str],
    *,
    again: bool = False,
    memory_mb: int = _MEMORY_MB,
) -> list[FlatPartition]:
    """Makes flat tables of one resource type for one export. Raises `VerificationFailed`, `StillRunning`,
    `LakeError`."""
    for _ in range(_MAX_TRIES):
        with suppress(Overtaken):
            return _make_once(session, export_id, resource_type, names, again=again, memory_mb=memory_mb)
    raise StillRunning("rows keep being erased meanwhile", "Run it again when that is over")


def _make_once(
    session: Session, export_id: str, resource_type: str, names: Iterable[str], *, again: bool, memory_mb: int
) -> list[FlatPartition]:
    deep = table_name(resource_type)
    # Before the parts are listed: should the deep table be committed in between, this making counts as stale.
    origin = _committed(session, deep, export_id)
    if origin is None:
        raise VerificationFailed(
            f"{deep} has nothing of export {export_id}",
            "Ingest it first: flat tables are made from the others",
        )
    found: list[FlatPartition] = []
    missing: dict[str, int] = {}
    for table in names:
        current = None if again else _current(session, export_id, resource_type, table, origin)
        if current:
            found.append(current)
        else:
            missing[table] = _committed(session, table, export_id) or 0
    return (
        [*found, *_make(session, export_id, resource_type, missing, origin, memory_mb)] if missing else found
    )


def _make(
    session: Session,
    export_id: str,
    resource_type: str,
    before: Mapping[str, int],
    origin: int,
    memory_mb: int,
) -> list[FlatPartition]:
    """`before`: flat table -> number of its last transaction."""
    from pipeline.tables.delta import live_parts
    from pipeline.tables.flat import flat_tables, flatten
    from pipeline.tables.overtaking import begin_making

    tables = [each for each in flat_tables(resource_type) if each.name in before]
    options = session.lake.storage_options
    # Before anything is read: see `overtaking`.
    since = {each.name: begin_making(session.table_uri(each.name), each.schema, options) for each in tables}
    folder = session.table(table_name(resource_type))
    uri = session.table_uri(table_name(resource_type))
    parts = live_parts(uri, export_id, options)
    with ExitStack() as stack:
        spool = stack.enter_context(session.lake.spool())
        local = [stack.enter_context(session.lake.local_copy(f"{folder}/{part.path}")) for part in parts]
        written = flatten(resource_type, local, spool, memory_limit=f"{memory_mb}MB")
        return [
            _commit(
                session, export_id, table, written[table.name], origin, before[table.name], since[table.name]
            )
            for table in tables
        ]


def _commit(
    session: Session,
    export_id: str,
    table: FlatTable,
    written: Sequence[LocalPart],
    origin: int,
    last: int,
    since: int,
) -> FlatPartition:
    """`since`: how often erasures had overtaken the table. Raises `Overtaken`."""
    from pipeline.tables.delta import StagedPart, commit_export, part_path
    from pipeline.tables.overtaking import not_overtaken

    staged = []
    for part in written:
        path = part_path(export_id, origin)
        session.lake.put_file(part.path, f"{session.table(table.name)}/{path}")
        staged.append(StagedPart(path, part.bytes, part.rows))
    if session.ledger.read(export_id).closings.keys() & {"withdrawing", "withdrawn"}:
        raise VerificationFailed(f"export {export_id} is withdrawn", "Its flat tables are not made")
    older = max(last, origin * _MAKINGS)
    try:
        commit = commit_export(
            session.table_uri(table.name),
            export_id=export_id,
            attempt=older + 1,
            replaces_after=older,
            parts=staged,
            schema=table.schema,
            storage_options=session.lake.storage_options,
            metadata={"dagster_run_id": session.owner.run_id, "made_from_attempt": str(origin)},
            require=not_overtaken(since),
        )
    except Overtaken:
        for each in staged:  # they hold what was erased, and nothing will ever name them
            session.lake.remove(f"{session.table(table.name)}/{each.path}")
        raise
    except StillRunning:
        # Another run was quicker; where it made the table from the same commit or a later one, that stands.
        current = _current(session, export_id, table.resource_type, table.name, origin)
        if current is None:
            raise
        return current
    return FlatPartition(
        table=table.name,
        resource_type=table.resource_type,
        attempt=origin,
        rows=commit.rows,
        parts=commit.parts,
        bytes=sum(part.bytes for part in staged),
        version=commit.version,
    )


def _current(
    session: Session, export_id: str, resource_type: str, table: str, origin: int
) -> FlatPartition | None:
    """The partition as it stands, when it was made from that commit of the deep table and is all there."""
    from pipeline.tables.delta import live_parts

    last = _committed(session, table, export_id)
    if last is None or last // _MAKINGS < origin:
        return None
    parts = live_parts(session.table_uri(table), export_id, session.lake.storage_options)
    folder = f"export_id={export_id}"
    there = session.lake.sizes(f"{session.table(table)}/{folder}") if parts else {}
    if any(there.get(part.path.removeprefix(f"{folder}/")) != part.bytes for part in parts):
        return None
    return FlatPartition(
        table=table,
        resource_type=resource_type,
        attempt=last // _MAKINGS,
        rows=sum(part.rows for part in parts),
        parts=len(parts),
        bytes=sum(part.bytes for part in parts),
        version=None,
    )


def _committed(session: Session, table: str, export_id: str) -> int | None:
    from pipeline.tables.delta import committed_attempt

    return committed_attempt(session.table_uri(table), export_id, session.lake.storage_options)


def _told(done: list[FlatPartition] | NotMade) -> Iterator[str]:
    if isinstance(done, NotMade):
        yield f"the flat tables of {done.resource_type} could not be made: {done.error}"
        return
    for each in done:
        how = f"made as version {each.version}" if each.made else "current already"
        yield f"{each.table}: {each.rows} rows, {how}"


# --- telling -------------------------------------------------------------------------------------------


_COLUMN = re.compile(r'\br\."([^"]+)"')


def read_columns(table: FlatTable, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Column of a flat table -> the columns of the deep table (of that schema) that it is made from."""
    found: dict[str, dict[str, None]] = {}
    for branch in table.branches:
        place, sources = _seen_by(branch, schema)
        for column in branch.columns:
            read = (sources.get(name, (name,)) for name in _COLUMN.findall(column.make(place)))
            found.setdefault(column.name, {}).update(dict.fromkeys(each for names in read for each in names))
    return {name: tuple(columns) for name, columns in found.items()}


def _seen_by(branch: Branch, schema: pa.Schema) -> tuple[Place, dict[str, tuple[str, ...]]]:
    """Where the columns of a branch look, and what lies behind the members that the deep table has not."""
    import pyarrow as pa

    from pipeline.tables.flat.column import ELEMENT, INDEX
    from pipeline.tables.flat.place import root, with_members

    place = root(schema)
    sources: dict[str, tuple[str, ...]] = {}
    if branch.unnested is not None and (unnested := place.member(branch.unnested)).is_list:
        place = with_members(place, {ELEMENT: unnested.first().kind, INDEX: pa.int64()})
        sources = dict.fromkeys((ELEMENT, INDEX), (branch.unnested,))
    for need in branch.prepared:
        read = (sources.get(name, (name,)) for name in _COLUMN.findall(need.make(place)))
        sources[need.name] = tuple(dict.fromkeys(each for names in read for each in names))
    made = {need.name: need.type.arrow() for need in branch.prepared}
    return with_members(place, made), sources
