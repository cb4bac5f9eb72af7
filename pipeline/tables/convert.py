"""NDJSON of one resource type to Parquet parts: exact, in bounded memory, in one pass over the bytes.

Blocks of lines are shredded into the columns that they hold (`shredder`); the table's other columns are added
only where they are written (`sparse`). Lanes do this side by side, each with its own parts; what one lane has
seen is united with the others' at the end, so all parts of one Converter have one schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.lake.spool import discard
from pipeline.tables import schema as schemas
from pipeline.tables.blocks import Block, BlockCutter
from pipeline.tables.parts import LocalPart, PartWriter, merge_parts
from pipeline.tables.shredder import Refused, Shredded, Shredder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Converter", "FileCounts", "Refused"]

BLOCK_BYTES = 8 * 1024 * 1024
"""NDJSON shredded at a time, by each lane."""
FLUSH_BYTES = 48 * 1024 * 1024
"""NDJSON held as Arrow data before it is written as row groups: shared among the lanes, ..."""
LANE_BYTES = 24 * 1024 * 1024
"""... but each lane may hold this much: small row groups cost readers and writers."""


@dataclass(frozen=True)
class FileCounts:
    """What became of the lines of one source file; blank lines are not counted."""

    lines: int = 0
    rows: int = 0
    refused: int = 0


class Converter:
    """Lines of one resource type in, local Parquet parts out. Called from one thread.

    Use as a context manager: on an exception, or when `finish` was not called, every file that it wrote is
    gone. All parts of one Converter have one schema: floor, `known` and everything seen.

    `known` is the table's schema so far (`delta.table_schema`), None for a new table. `out_dir` must exist
    and is best empty. `refuse` is called, in the caller's thread and perhaps only in `finish`, with each line
    that is no resource of the type and its bytes; without it the first such line raises VerificationFailed.
    `lanes` is the number of threads; each needs about 150 MB. A part holds at most about `max_part_rows` rows
    and `max_part_bytes` bytes of NDJSON. Raises ConfigError for a resource type that R4 does not define.
    """

    def __init__(
        self,
        resource_type: str,
        known: pa.Schema | None,
        export_id: str,
        out_dir: Path,
        *,
        refuse: Callable[[Refused, bytes], None] | None = None,
        lanes: int = 1,
        max_part_rows: int = 1_000_000,
        max_part_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self.resource_type = resource_type
        self.export_id = export_id
        self.files: dict[str, FileCounts] = {}
        """By source file; final after `finish`."""
        self._refuse = refuse
        self._out_dir = out_dir
        self._limits = _Limits(
            max_part_rows, max_part_bytes, min(max(FLUSH_BYTES // lanes, LANE_BYTES), max_part_bytes)
        )
        floor = schemas.floor_schema(resource_type)
        self._schema = schemas.union(floor, known, resource_type) if known is not None else floor
        self._cutter = BlockCutter(min(BLOCK_BYTES, max_part_bytes))
        self._lanes = [
            _Lane(resource_type, export_id, self._schema, self._limits, out_dir, number)
            for number in range(lanes)
        ]
        self._flying: dict[int, tuple[Future[Shredded], Block]] = {}
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="convert") if lanes > 1 else None
        self._turn = 0
        self._merged: list[Path] = []
        self._finished = False

    @property
    def schema(self) -> pa.Schema:
        """Floor, known and everything seen in the blocks shredded so far."""
        for lane in self._lanes:
            self._schema = self._union(lane.schema)
        return self._schema

    def _union(self, seen: pa.Schema) -> pa.Schema:
        if seen is self._schema:
            return seen
        return schemas.union(self._schema, seen, self.resource_type)

    @property
    def rows(self) -> int:
        """Rows taken so far; final after `finish`."""
        return sum(counts.rows for counts in self.files.values())

    def add(self, blocks: Iterable[bytes], source_file: str) -> None:
        """Take the bytes of one source file, from its beginning, cut anywhere.

        Blank lines are skipped but counted: `_source_line` is the physical line, from 1.
        """
        self.files.setdefault(source_file, FileCounts())
        self._take(self._cutter.add(blocks, source_file))

    def add_line(self, line: bytes, source_file: str, number: int) -> None:
        """Take one line of some file, with its physical line number from 1."""
        self.files.setdefault(source_file, FileCounts())
        self._take(self._cutter.add_line(line.strip(b"\n"), source_file, number))

    def finish(self) -> list[LocalPart]:
        """Write what is left and return the parts, all with `schema`; no parts for no rows."""
        self._take(self._cutter.rest())
        for number in range(len(self._lanes)):
            self._collect(number)
        self._schema = self.schema
        for lane in self._lanes:
            lane.schema = self._schema
        if self._pool is None:
            self._lanes[0].close()
        else:
            for done in [self._pool.submit(lane.close) for lane in self._lanes]:
                done.result()
        parts = self._mended()
        self._finished = True
        return parts

    def __enter__(self) -> Converter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if kind is None and self._finished:
            return
        for lane in self._lanes:
            lane.abort()
        for path in self._merged:
            discard(path)

    def _take(self, blocks: Iterator[Block]) -> None:
        for block in blocks:
            number = self._turn
            self._turn = (number + 1) % len(self._lanes)
            lane = self._lanes[number]
            if self._pool is None:
                self._account(lane, lane.take(block), block)
            else:
                self._collect(number)
                # What one lane has seen the others write too: narrower parts would be rewritten in the end.
                self._schema = lane.schema = self._union(lane.schema)
                self._flying[number] = (self._pool.submit(lane.take, block), block)

    def _collect(self, number: int) -> None:
        if (flying := self._flying.pop(number, None)) is not None:
            future, block = flying
            self._account(self._lanes[number], future.result(), block)

    def _account(self, lane: _Lane, shredded: Shredded, block: Block) -> None:
        bad: dict[str, int] = {}
        for refused, line in lane.refused(block, shredded):
            bad[refused.source_file] = bad.get(refused.source_file, 0) + 1
            if self._refuse is None:
                where = f" at {refused.path}" if refused.path else ""
                raise VerificationFailed(
                    f"{refused.source_file} line {refused.line} is no {self.resource_type}: "
                    f"{refused.reason}{where}",
                    "Nothing was published; ask the server's operator about that line",
                )
            self._refuse(refused, line)
        for name, lines in shredded.lines.items():
            before, refused_here = self.files[name], bad.get(name, 0)
            self.files[name] = FileCounts(
                before.lines + lines, before.rows + lines - refused_here, before.refused + refused_here
            )
        self._cutter.recycle(block)

    # --- one schema for all parts ---

    def _mended(self) -> list[LocalPart]:
        """The parts with the final schema; runs of narrower ones are merged while they are rewritten."""
        schema = self.schema
        mended: list[LocalPart] = []
        for run in self._runs(schema):
            if run[0][0].schema == schema:
                mended.append(run[0][0])
                continue
            path = self._out_dir / f"part-merged-{len(self._merged):05d}.parquet"
            self._merged.append(path)
            mended.append(merge_parts([narrow.path for narrow, _ in run], path, schema))
            for narrow, _ in run:
                discard(narrow.path)
        return mended

    def _runs(self, schema: pa.Schema) -> list[list[tuple[LocalPart, int]]]:
        runs: list[list[tuple[LocalPart, int]]] = []
        for lane in self._lanes:
            for part, source_bytes in lane.parts:
                if runs and part.schema != schema and self._fits(runs[-1], part, source_bytes, schema):
                    runs[-1].append((part, source_bytes))
                else:
                    runs.append([(part, source_bytes)])
        return runs

    def _fits(
        self, run: list[tuple[LocalPart, int]], part: LocalPart, source_bytes: int, schema: pa.Schema
    ) -> bool:
        return (
            run[0][0].schema != schema
            and sum(other.rows for other, _ in run) + part.rows <= self._limits.part_rows
            and sum(size for _, size in run) + source_bytes <= self._limits.part_bytes
        )


@dataclass(frozen=True)
class _Limits:
    part_rows: int
    part_bytes: int
    flush_bytes: int


class _Lane:
    """One thread's share: blocks in, parts of its own out."""

    def __init__(
        self,
        resource_type: str,
        export_id: str,
        schema: pa.Schema,
        limits: _Limits,
        out_dir: Path,
        number: int,
    ) -> None:
        self.schema = schema
        self.parts: list[tuple[LocalPart, int]] = []
        """Closed parts, and the bytes of NDJSON in each."""
        self._resource_type = resource_type
        self._limits = limits
        self._out_dir = out_dir
        self._number = number
        self._shredder = Shredder(resource_type, export_id)
        self._seen = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._writer: PartWriter | None = None
        self._writer_bytes = 0

    def take(self, block: Block) -> Shredded:
        shredded = self._shredder.shred(block)
        if self._shredder.columns_seen != self._seen:
            self._seen = self._shredder.columns_seen
            self.schema = schemas.union(self.schema, self._shredder.schema(), self._resource_type)
        if shredded.table.num_rows:
            self._pending.append(shredded.table)
            self._pending_rows += shredded.table.num_rows
            self._pending_bytes += shredded.source_bytes
        if self._pending_bytes >= self._limits.flush_bytes or self._pending_rows >= self._limits.part_rows:
            self._flush()
        return shredded

    def refused(self, block: Block, shredded: Shredded) -> Iterator[tuple[Refused, bytes]]:
        return self._shredder.refused(block, shredded.bad)

    def close(self) -> None:
        self._flush()
        self._close_part()

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        for part, _ in self.parts:
            discard(part.path)

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._pending:
            return
        tables, rows, size = self._pending, self._pending_rows, self._pending_bytes
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        for share in _shares(tables, self._limits.part_rows):
            writer = self._open_part()
            if writer.rows + sum(table.num_rows for table in share) > self._limits.part_rows:
                self._close_part()
                writer = self._open_part()
            writer.write_all(share)
            self._writer_bytes += size * sum(table.num_rows for table in share) // rows
            if writer.rows >= self._limits.part_rows or self._writer_bytes >= self._limits.part_bytes:
                self._close_part()
        # What is freed stays with Arrow's pool otherwise, and the next block grows on top of it.
        pa.default_memory_pool().release_unused()

    def _open_part(self) -> PartWriter:
        if self._writer is not None and self._writer.schema != self.schema:
            # A part has one schema; the short part that this leaves is merged in `finish`.
            self._close_part()
        if self._writer is None:
            path = self._out_dir / f"part-{self._number:02d}-{len(self.parts):05d}.parquet"
            self._writer = PartWriter(path, self.schema)
            self._writer_bytes = 0
        return self._writer

    def _close_part(self) -> None:
        if self._writer is not None:
            self.parts.append((self._writer.close(), self._writer_bytes))
            self._writer = None


def _shares(tables: list[pa.Table], most: int) -> Iterator[list[pa.Table]]:
    """The tables, cut and gathered so that no share has more than `most` rows."""
    share: list[pa.Table] = []
    room = most
    for table in tables:
        begin = 0
        while begin < table.num_rows:
            piece = table.slice(begin, room)
            share.append(piece)
            begin += piece.num_rows
            room -= piece.num_rows
            if room == 0:
                yield share
                share, room = [], most
    if share:
        yield share
