"""The flat form of a current table: a Delta table of chunks, one beside each chunk of the current table.

A chunk never changes, so its flat form is made once. Of what a merge has rewritten only new rows are
flattened, the others are copied from the chunks that go, all in one commit; the numbers beside the exports
are copied too, so that one sees which are in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.lake.lake import Lake
from pipeline.lake.spool import discard
from pipeline.tables import schema as schemas
from pipeline.tables.current.chunks import NEVER, Chunk, ChunkTable, chunk_path
from pipeline.tables.current.flat_reuse import GROUP, Known, known_rows, paths_of, rows_of, written
from pipeline.tables.current.taking import taken
from pipeline.tables.flat import FlatTable, flat_tables, flatten
from pipeline.tables.parts import LocalPart

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_COLUMNS = "columns"
"""The number that tells with which columns the table was made."""
_WHOLE = 1 << 62
"""No limit: a chunk has one file, however many rows its components make."""


@dataclass(frozen=True)
class Flattened:
    """A flat table after it was brought in line with the current table."""

    name: str
    rows: int
    chunks_out: int
    chunks_in: int
    """That were flattened now."""
    version: int | None
    """Of the Delta table; None: nothing was to be done."""


@dataclass(frozen=True)
class _Due:
    """What one flat table lacks."""

    flat: FlatTable
    place: str
    table: ChunkTable
    missing: tuple[Chunk, ...]
    """Chunks of the current table."""
    over: tuple[Chunk, ...]
    """Its own."""
    numbers: Mapping[str, int]
    anew: bool

    @property
    def is_nothing(self) -> bool:
        return not self.missing and not self.over and not self.numbers


def flatten_current(
    lake: Lake,
    resource_type: str,
    current: str,
    places: Mapping[str, str],
    names: Iterable[str],
    *,
    anew: bool = False,
    memory_mb: int = 1024,
) -> list[Flattened]:
    """Brings the flat tables of a type in line with its current table, in one commit each.

    `current` is the current table's folder from the lake's root, `places` those of the flat ones by the name
    of the flat table (`claim_item_flat`); `names` are those whose numbers are copied. With `anew` every chunk
    is flattened again. Nothing is made where there is no current table. Raises `Conflict` when somebody else
    changes a flat table meanwhile, LakeError, VerificationFailed.
    """
    # In this order: a flat table that somebody else makes of a newer current table has changed since, and a
    # slow run must not set it back.
    tables = {
        name: ChunkTable.at(lake.table_uri(place), lake.storage_options) for name, place in places.items()
    }
    deep = ChunkTable.at(lake.table_uri(current), lake.storage_options)
    if deep.version is None:
        return []
    copied = {name: deep.number(name) for name in names}
    flats = {flat.name: flat for flat in flat_tables(resource_type)}
    dues = [
        _due(lake, deep, flats[name], place, tables[name], copied, anew=anew)
        for name, place in places.items()
    ]
    added: dict[str, list[Chunk]] = {due.flat.name: [] for due in dues}
    wanted = list({chunk.name: chunk for due in dues for chunk in due.missing}.values())
    exports = _unchanged(dues, copied)
    with lake.spool() as spool:
        for begin in range(0, len(wanted), GROUP):
            group = wanted[begin : begin + GROUP]
            sources = paths_of(current, group)
            over = {due.flat.name: paths_of(due.place, due.over) for due in dues}
            nothing: list[Known | None] = [None] * len(group)
            knowns = known_rows(lake, sources, over, exports) if exports else nothing
            for chunk, source, known in zip(group, sources, knowns, strict=True):
                asking = [due for due in dues if chunk in due.missing]
                for due, made in _flattened(lake, source, known, resource_type, asking, spool, memory_mb):
                    path = chunk_path(chunk.name)
                    lake.put_file(made.path, f"{due.place}/{path}")
                    discard(made.path)
                    added[due.flat.name].append(Chunk(chunk.name, path, made.rows, made.bytes))
    return [_commit(lake, due, added[due.flat.name]) for due in dues]


def _unchanged(dues: Sequence[_Due], copied: Mapping[str, int]) -> set[str]:
    """The exports of which flat rows that are there may be taken over.

    None where a table is made anew, or where one is behind the others; none that was ingested again since.
    """
    if any(
        due.anew or {each.name for each in due.over} != {each.name for each in dues[0].over} for due in dues
    ):
        return set()
    return {
        name.removeprefix("export:")
        for name, number in copied.items()
        if number != NEVER and all(due.table.number(name) == number for due in dues)
    }


def _due(
    lake: Lake,
    deep: ChunkTable,
    flat: FlatTable,
    place: str,
    table: ChunkTable,
    copied: Mapping[str, int],
    *,
    anew: bool,
) -> _Due:
    due = _compared(deep, flat, place, table, copied, anew=anew)
    if due.is_nothing:
        return due
    covering = ChunkTable.covering(
        lake.table_uri(place), flat.schema, lake.storage_options, seen=table.version
    )
    return _compared(deep, flat, place, covering, copied, anew=anew)


def _compared(
    deep: ChunkTable, flat: FlatTable, place: str, table: ChunkTable, copied: Mapping[str, int], *, anew: bool
) -> _Due:
    columns = int(schemas.schema_hash(flat.schema)[:7], 16)
    anew = anew or table.number(_COLUMNS) != columns
    there = {chunk.name for chunk in table.chunks}
    wanted = {chunk.name for chunk in deep.chunks}
    numbers = {**copied, _COLUMNS: columns}
    return _Due(
        flat,
        place,
        table,
        missing=tuple(chunk for chunk in deep.chunks if anew or chunk.name not in there),
        over=tuple(chunk for chunk in table.chunks if anew or chunk.name not in wanted),
        numbers={name: number for name, number in numbers.items() if table.number(name) != number},
        anew=anew,
    )


def _flattened(
    lake: Lake,
    path: str,
    known: Known | None,
    resource_type: str,
    dues: Sequence[_Due],
    spool: Path,
    memory_mb: int,
) -> Iterator[tuple[_Due, LocalPart]]:
    """One file for each flat table; one without rows where the chunk has none of its rows."""
    made: dict[str, list[LocalPart]] = {}
    if known is None or not known.rows.all() or not len(known.rows):
        with lake.local_copy(path) as local:
            fresh = local
            if known is not None and known.rows.any():
                fresh = rows_of(local, ~known.rows, spool / "fresh.parquet").path
            made = flatten(
                resource_type,
                [fresh],
                spool,
                max_part_rows=_WHOLE,
                max_part_bytes=_WHOLE,
                memory_limit=f"{memory_mb}MB",
            )
        if fresh != local:
            discard(fresh)
    for due in dues:
        parts = made.pop(due.flat.name, [])
        copies = known.copies[due.flat.name] if known else []
        if len(parts) == 1 and not copies:
            yield due, parts[0]
            continue
        whole = written(spool / "whole.parquet", due.flat.schema, _together(lake, copies, parts))
        for part in parts:
            discard(part.path)
        yield due, whole
    for part in (part for parts in made.values() for part in parts):
        discard(part.path)  # of a flat table that has this chunk already


def _together(
    lake: Lake, copies: Sequence[tuple[str, NDArray[np.bool_]]], parts: Sequence[LocalPart]
) -> Iterator[pa.Table]:
    for path, rows in copies:
        with lake.local_copy(path) as local:
            yield from taken(local, rows)
    for part in parts:
        yield from taken(part.path, np.ones(part.rows, np.bool_))


def _commit(lake: Lake, due: _Due, added: Sequence[Chunk]) -> Flattened:
    if due.is_nothing:
        return Flattened(due.flat.name, due.table.rows, 0, 0, None)
    due.table.replace(due.over, added, due.numbers, f"flattened {len(added)} chunks")
    after = ChunkTable.at(lake.table_uri(due.place), lake.storage_options)
    return Flattened(due.flat.name, after.rows, len(due.over), len(added), after.version)
