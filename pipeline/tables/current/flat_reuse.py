"""Rows that a flat table has already: those of a chunk that goes, and whose resources have only moved.

A resource is known by the line that it came from: export, source file, line. A merge rewrites whole chunks
for a few resources; to flatten the others again would cost several times what copying them does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.lake.lake import Lake
from pipeline.tables.current.chunks import Chunk
from pipeline.tables.current.taking import taken
from pipeline.tables.parts import ROW_GROUP_BYTES, ROW_GROUP_ROWS, LocalPart, PartWriter, open_part

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

GROUP = 8
"""Chunks whose lines are held at a time: about 100 bytes a row."""
_PLACE = ("_export_id", "_source_file", "_source_line")


@dataclass
class Known:
    """Of one chunk of the current table what flat tables have."""

    rows: NDArray[np.bool_]
    """Which of its rows are in the first flat table."""
    copies: dict[str, list[tuple[str, NDArray[np.bool_]]]] = field(default_factory=dict)
    """Flat table -> its own old chunks, by their paths, and the rows there that are wanted."""


def known_rows(
    lake: Lake,
    chunks: Sequence[str],
    over: Mapping[str, Sequence[str]],
    exports: Collection[str],
) -> list[Known]:
    """What is known of each of those chunks of the current table (paths from the lake's root).

    `over` are the paths of the flat tables' old chunks, by table, the one with a row for each resource first;
    only rows of `exports` count. Raises LakeError.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lines = [_lines(lake, path, exports) for path in chunks]
    ends = np.cumsum([len(each) for each in lines])
    every = pa.concat_arrays(lines)
    there = np.zeros(len(every), np.bool_)
    found = [Known(np.zeros(len(each), np.bool_), {name: [] for name in over}) for each in lines]
    for number, (name, paths) in enumerate(over.items()):
        for path in paths:
            at = pc.index_in(_lines(lake, path, exports), value_set=every, skip_nulls=True)
            place = np.asarray(at.fill_null(-1))
            if number == 0:
                there[place[place >= 0]] = True
            chunk = np.searchsorted(ends, place, side="right")
            chunk[place < 0] = -1
            for wanted in np.unique(chunk[chunk >= 0]):
                found[wanted].copies[name].append((path, chunk == wanted))
    for known, rows in zip(found, np.split(there, ends[:-1]), strict=True):
        known.rows = rows
    return found


def _lines(lake: Lake, path: str, exports: Collection[str]) -> pa.StringArray:
    """Of each row the line that it came from, null where its export does not count."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with lake.open(path) as file, open_part(file) as part:
        table = part.read(columns=list(_PLACE), use_threads=False)
    texts = [table.column(name).cast(pa.string()) for name in _PLACE]
    together = pc.binary_join_element_wise(*texts, "\n")
    counts = pc.is_in(texts[0], value_set=pa.array(sorted(exports), pa.string()))
    lines = pc.if_else(counts, together, pa.scalar(None, pa.string()))
    return pa.concat_arrays([pa.array([], pa.string()), *lines.chunks])


def rows_of(path: Path, keep: NDArray[np.bool_], out: Path) -> LocalPart:
    """The rows of a local part at which `keep` is true, in a part of the same columns."""
    with open_part(path) as part:
        schema = part.schema_arrow
    return written(out, schema, taken(path, keep))


def written(out: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> LocalPart:
    """Those rows in one file, in row groups of a good size."""
    with PartWriter(out, schema) as writer:
        held: list[pa.Table] = []
        for table in tables:
            held.append(table)
            rows, size = sum(each.num_rows for each in held), sum(each.nbytes for each in held)
            if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                writer.write_all(held)
                held = []
        if held:
            writer.write_all(held)
        return writer.close()


def paths_of(place: str, chunks: Sequence[Chunk]) -> list[str]:
    return [f"{place}/{chunk.path}" for chunk in chunks]
