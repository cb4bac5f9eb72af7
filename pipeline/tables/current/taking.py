"""Some rows of Parquet parts into new parts of about one size: what a chunk is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from pipeline.lake.spool import discard
from pipeline.tables.parts import ROW_GROUP_BYTES, LocalPart, PartWriter, open_part
from pipeline.tables.sparse_reading import held_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

CHUNK_ROWS = 256 * 1024
"""Rows of a chunk, and ..."""
CHUNK_BYTES = 128 * 1024 * 1024
"""... bytes of its Parquet file, about: smaller ones are rewritten less, larger ones read faster."""
_GROUP_ROWS = 128 * 1024
_GROUP_BYTES = 2 * ROW_GROUP_BYTES
"""Arrow bytes of a row group: large ones cost less for each row when rows are taken out (`thinning`)."""
_BATCH_ROWS = 16 * 1024
_FEW_ROWS = 2_000
"""Of fewer than these, reading empty columns costs less than finding out which are empty."""


def taken(path: Path, keep: NDArray[np.bool_]) -> Iterator[pa.Table]:
    """The rows of a part at which `keep` is true, some at a time; only columns that hold anything.

    Raises LakeError when it is no Parquet file.
    """
    import pyarrow as pa

    with path.open("rb") as file, open_part(file) as part:
        begin = 0
        few = part.metadata.num_rows < _FEW_ROWS
        for group, columns in enumerate([None] * part.num_row_groups if few else held_columns(file)):
            rows = part.metadata.row_group(group).num_rows
            mask = keep[begin : begin + rows]
            begin += rows
            if not mask.any():
                continue
            at = 0
            for batch in part.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
            ):
                here = mask[at : at + batch.num_rows]
                at += batch.num_rows
                if here.all():
                    yield pa.Table.from_batches([batch])
                elif here.any():
                    yield pa.Table.from_batches([batch]).filter(pa.array(here))


class ChunkFiles(AbstractContextManager["ChunkFiles"]):
    """Rows in, local Parquet files of about one size out; at the end of the `with` block they are removed,
    unless they are to be kept."""

    def __init__(self, folder: Path, schema: pa.Schema, rows: int = CHUNK_ROWS) -> None:
        self.finished: list[LocalPart] = []
        self._folder = folder
        self._schema = schema
        self._limit = rows
        self._writer: PartWriter | None = None
        self._held: list[pa.Table] = []
        self._held_bytes = 0
        self._held_rows = 0
        self._kept = False

    def keep(self) -> None:
        """The finished files stay."""
        self.cut()
        self._kept = True

    def add(self, table: pa.Table) -> None:
        """Some rows more, of a table whose columns the schema covers."""
        while table.num_rows:
            room = self._limit - (self._writer.rows if self._writer else 0) - self._held_rows
            some, table = table.slice(0, room), table.slice(room)
            self._held.append(some)
            self._held_rows += some.num_rows
            self._held_bytes += some.nbytes
            if self._held_rows >= min(_GROUP_ROWS, self._limit) or self._held_bytes >= _GROUP_BYTES:
                self._flush()
            if some.num_rows == room:
                self.cut()

    def cut(self) -> None:
        """What comes next begins a new file."""
        self._flush()
        if self._writer is not None:
            self.finished.append(self._writer.close())
            self._writer = None

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._writer = PartWriter(self._folder / f"chunk-{len(self.finished):04d}.parquet", self._schema)
        self._writer.write_all(self._held)
        self._held, self._held_bytes, self._held_rows = [], 0, 0
        if self._writer.path.stat().st_size >= CHUNK_BYTES:
            self.finished.append(self._writer.close())
            self._writer = None

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.abort()
        if not self._kept:
            for part in self.finished:
                discard(part.path)
