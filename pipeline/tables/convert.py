"""NDJSON of one resource type to Parquet parts: exact, in bounded memory, in one pass over the bytes.

Lines become rows (`row`), rows are parsed by pyarrow a block at a time into what was seen so far, and are
widened to the table's schema only when they are written: parsing straight into all columns is four times
slower (facts/tables.md, 3). What a block shows that was not known is looked up in the definitions, and the
block is parsed again; types are never taken from the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.tables import schema as schemas
from pipeline.tables.parts import LocalPart, PartWriter, merge_parts, widen
from pipeline.tables.row import BadLine, RowEncoder

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 8 * 1024 * 1024
"""NDJSON parsed at a time."""
FLUSH_BYTES = 48 * 1024 * 1024
"""NDJSON held as Arrow data before it is written as row groups."""
BOM = b"\xef\xbb\xbf"


class Converter:
    """Lines of one resource type in, local Parquet parts out. Not shared between threads.

    Use as a context manager: on an exception, or when `finish` was not called, every file that it wrote is
    gone. All parts of one Converter have one schema: floor, `known` and everything seen.

    `known` is the table's schema so far (`delta.table_schema`), None for a new table. `out_dir` must exist
    and is best empty. A part holds at most about `max_part_rows` rows and `max_part_bytes` bytes of NDJSON.
    Raises ConfigError for a resource type that R4 does not define.
    """

    def __init__(
        self,
        resource_type: str,
        known: pa.Schema | None,
        export_id: str,
        out_dir: Path,
        *,
        max_part_rows: int = 1_000_000,
        max_part_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self.resource_type = resource_type
        self.export_id = export_id
        self._rows = RowEncoder(resource_type)
        self._out_dir = out_dir
        self._max_part_rows = max_part_rows
        self._max_part_bytes = max_part_bytes
        self._block_bytes = min(BLOCK_BYTES, max_part_bytes)
        self._flush_bytes = min(FLUSH_BYTES, max_part_bytes)
        floor = schemas.floor_schema(resource_type)
        self._schema = schemas.union(floor, known, resource_type) if known is not None else floor
        self._seen = schemas.typed_schema({"resourceType": None, "id": None}, resource_type)

        self._block = bytearray()
        self._block_source_bytes = 0
        self._block_files: list[str] = []
        self._block_lines: list[int] = []
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._writer: PartWriter | None = None
        self._writer_bytes = 0
        self._closed: list[LocalPart] = []
        self._source_bytes: dict[Path, int] = {}
        self._names = 0
        self._finished = False
        self.rows = 0
        """Rows taken so far."""

    @property
    def schema(self) -> pa.Schema:
        """Floor, known and everything seen in the blocks parsed so far."""
        return self._schema

    def add(self, lines: Iterable[bytes], source_file: str) -> int:
        """Take the lines of one source file, in order, from its first line; returns the rows.

        Lines may carry their newline. Empty ones are skipped but counted: `_source_line` is the physical
        line, from 1. Raises VerificationFailed naming file and line, never the content.
        """
        before = self.rows
        for number, raw in enumerate(lines, start=1):
            line = raw[len(BOM) :] if number == 1 and raw.startswith(BOM) else raw
            if not line or line.isspace():
                continue
            try:
                row = self._rows.encode(line)
            except BadLine as bad:
                raise VerificationFailed(
                    f"{source_file} line {number} is no {self.resource_type}: {bad}",
                    "Nothing was published; ask the server's operator about that line",
                ) from None
            self._block += row
            self._block += b"\n"
            self._block_source_bytes += len(line)
            self._block_files.append(source_file)
            self._block_lines.append(number)
            self.rows += 1
            if len(self._block) >= self._block_bytes or len(self._block_lines) >= self._max_part_rows:
                self._parse_block()
        return self.rows - before

    def finish(self) -> list[LocalPart]:
        """Write what is left and return the parts, all with `schema`; no parts for no rows."""
        self._parse_block()
        self._flush()
        self._close_part()
        parts = self._mended()
        self._finished = True
        return parts

    def __enter__(self) -> Converter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._finished:
            return
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        for part in self._closed:
            part.path.unlink(missing_ok=True)

    # --- a block: JSON rows to Arrow ---

    def _parse_block(self) -> None:
        import pyarrow as pa

        if not self._block:
            return
        table = self._parsed()
        fields = schemas.lineage_fields()
        count = table.num_rows
        if count != len(self._block_lines):
            raise VerificationFailed(
                f"{len(self._block_lines)} lines of {self.resource_type} gave {count} rows",
                "This is a defect of the pipeline; nothing was published",
            )
        lineage = [
            pa.repeat(pa.scalar(self.export_id, pa.string()), count),
            pa.array(self._block_files, pa.string()),
            pa.array(self._block_lines, pa.int64()),
        ]
        for field, column in zip(fields, lineage, strict=True):
            table = table.append_column(field, column)
        self._pending.append(table)
        self._pending_rows += count
        self._pending_bytes += self._block_source_bytes
        # A new buffer: pyarrow may still look into the old one.
        self._block = bytearray()
        self._block_source_bytes = 0
        self._block_files, self._block_lines = [], []
        if self._pending_bytes >= self._flush_bytes or self._pending_rows >= self._max_part_rows:
            self._flush()

    def _parsed(self) -> pa.Table:
        expected = schemas.row_schema(self._seen)
        table = self._read_json(expected)
        if schemas.covers(expected, table.schema):
            return table
        # Only names are taken from pyarrow's inference; types come from the definitions.
        found = schemas.typed_schema(schemas.tree_of(table.schema), self.resource_type)
        self._seen = schemas.union(self._seen, found, self.resource_type)
        self._schema = schemas.union(self._schema, self._seen, self.resource_type)
        return self._read_json(schemas.row_schema(self._seen))

    def _read_json(self, expected: pa.Schema) -> pa.Table:
        import pyarrow as pa
        import pyarrow.json

        # One block: a row longer than the block size fails, and one chunk is quicker than many.
        return pyarrow.json.read_json(
            pa.BufferReader(pa.py_buffer(self._block)),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(self._block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=expected, unexpected_field_behavior="infer"
            ),
        )

    # --- parts: Arrow to Parquet ---

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        if self._writer is not None and self._writer.schema != self._schema:
            # A part has one schema; the short part that this leaves is merged in `finish`.
            self._close_part()
        if self._writer is None:
            self._writer = PartWriter(self._next_path(), self._schema)
            self._writer_bytes = 0
        self._writer.write(_concatenated(self._pending, self._schema))
        self._writer_bytes += self._pending_bytes
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        # What is freed stays with Arrow's pool otherwise, and the next block grows on top of it.
        pa.default_memory_pool().release_unused()
        if self._writer.rows >= self._max_part_rows or self._writer_bytes >= self._max_part_bytes:
            self._close_part()

    def _close_part(self) -> None:
        if self._writer is not None:
            part = self._writer.close()
            self._closed.append(part)
            self._source_bytes[part.path] = self._writer_bytes
            self._writer = None

    def _next_path(self) -> Path:
        path = self._out_dir / f"part-{self._names:05d}.parquet"
        self._names += 1
        return path

    def _mended(self) -> list[LocalPart]:
        """The parts with the final schema; runs of narrower ones are merged while they are rewritten."""
        mended: list[LocalPart] = []
        for run in self._runs():
            if run[0].schema == self._schema:
                mended.append(run[0])
                continue
            part = merge_parts([narrow.path for narrow in run], self._next_path(), self._schema)
            self._closed.append(part)
            mended.append(part)
            for narrow in run:
                narrow.path.unlink()
        return mended

    def _runs(self) -> list[list[LocalPart]]:
        runs: list[list[LocalPart]] = []
        for part in self._closed:
            if runs and part.schema != self._schema and self._fits(runs[-1], part):
                runs[-1].append(part)
            else:
                runs.append([part])
        return runs

    def _fits(self, run: list[LocalPart], part: LocalPart) -> bool:
        together = [*run, part]
        return (
            run[0].schema != self._schema
            and sum(p.rows for p in together) <= self._max_part_rows
            and sum(self._source_bytes[p.path] for p in together) <= self._max_part_bytes
        )


def _concatenated(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables([widen(table, schema) for table in tables])
