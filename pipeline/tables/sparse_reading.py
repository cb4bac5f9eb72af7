"""Which columns of a Parquet part must be read to have all of its rows: most of a wide table are null.

A column without values still says how far its ancestors are there: a list of two nulls is no absent list. The
footer's definition level histograms (Parquet format, SizeStatistics) tell how deep that goes, so a column is
left out only where nothing of it is there, or where another column that is read says the same. All columns
are nullable (facts/tables.md, rule 7), so the path's first `n` steps are there at definition level `n`.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from pipeline.errors import LakeError
from pipeline.tables import thrift
from pipeline.tables.thrift import Fields

Path = tuple[str, ...]

_TAIL: Final = 8
_MAGIC: Final = b"PAR1"
_COLUMNS: Final[thrift.Inside] = {4: {1: {3: {12: {}, 16: {}}}}}
"""Row groups, their columns, the metadata of these, and of it both statistics."""


def held_columns(file: BinaryIO) -> list[list[str]]:
    """For each row group the columns, as `a.list.element.b`, without which rows would lose something.

    Never empty for a group with a column. `file` is an open Parquet file with nullable columns only, its
    position is changed. Raises LakeError when it is no Parquet file.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < _TAIL or tail[4:] != _MAGIC or length + _TAIL > size:
        raise LakeError("A Parquet part is cut or is none", "Ingest that export again from its raw files")
    file.seek(size - _TAIL - length)
    footer = thrift.decode(file.read(length), _COLUMNS)
    try:
        return [_needed([column[3][1] for column in group[1][1]]) for group in footer[4][1]]
    except (KeyError, TypeError):
        raise LakeError(
            "The footer of a Parquet part lacks what it must have",
            "Ingest that export again from its raw files",
        ) from None


def _needed(columns: list[Fields]) -> list[str]:
    present: list[Path] = []
    empty: list[tuple[Path, Path]] = []
    for meta in columns:
        path = tuple(step.decode() for step in thrift.items(meta[3][1]))
        depth = _depth_without_values(meta, len(path))
        if depth is None:
            present.append(path)
        elif depth:
            empty.append((path, path[:depth]))
    told = {path[:depth] for path in present for depth in range(1, len(path) + 1)}
    for path, deepest in empty:
        if deepest not in told:
            told |= {path[:depth] for depth in range(1, len(path) + 1)}
            present.append(path)
    if not present:
        present = [tuple(step.decode() for step in thrift.items(columns[0][3][1]))]
    return [".".join(path) for path in present]


def _depth_without_values(meta: Fields, steps: int) -> int | None:
    """Of a column without values the deepest level at which anything is there; None for any other."""
    statistics = meta.get(12, (0, {}))[1]
    nulls = statistics.get(3)
    if nulls is None or nulls[1] != meta[5][1]:
        return None
    histogram = meta.get(16, (0, {}))[1].get(3)
    if histogram is None:
        # It may be left out where there is one level only.
        return 0 if steps == 1 else None
    counts = thrift.items(histogram[1])
    return max((level for level, count in enumerate(counts) if count), default=0)
