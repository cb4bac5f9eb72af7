"""The Parquet parts of one export partition to the parts of its flat tables: DuckDB SQL, streamed.

Nothing but the parts is read. The SQL is made for the schema that the parts have; the schema of what comes
out never depends on it. Memory is DuckDB's limit plus one row group of the output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import LakeError, VerificationFailed
from pipeline.lake.spool import discard
from pipeline.tables.flat import reference
from pipeline.tables.flat.column import ELEMENT, INDEX, Branch, FlatTable
from pipeline.tables.flat.place import Place, quoted, root, with_members
from pipeline.tables.parts import ROW_GROUP_ROWS, LocalPart, PartWriter, open_part
from pipeline.tables.schema import plain

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

BATCH_ROWS = 16_384
"""Rows that DuckDB hands out at a time."""
GROUP_BYTES = 64 * 1024 * 1024
"""Arrow bytes of a row group of the output at most, roughly."""


def flatten_tables(
    tables: Sequence[FlatTable],
    parts: Sequence[Path | str],
    out_dir: Path,
    *,
    max_part_rows: int,
    max_part_bytes: int,
    memory_limit: str,
    threads: int,
    temp_dir: Path | None,
) -> dict[str, list[LocalPart]]:
    """As `pipeline.tables.flat.flatten`, for these tables."""
    groups = _by_schema(parts)
    written: dict[str, list[LocalPart]] = {}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="flat-", dir=temp_dir or out_dir) as spill,
            connect(memory_limit, threads, Path(spill)) as connection,
        ):
            for table in tables:
                cutter = _Cutter(table, out_dir, max_part_rows, max_part_bytes)
                written[table.name] = cutter.parts
                cutter.run(connection, groups)
    except BaseException:
        for part in (part for made in written.values() for part in made):
            discard(part.path)
        raise
    return written


# --- SQL -----------------------------------------------------------------------------------------------


def select_sql(branch: Branch, schema: pa.Schema, source: str) -> str:
    """The SELECT that makes the rows of a branch from `source` (a table function or name) of that schema.

    Empty where the Parquet has nothing to unnest: then there are no rows.
    """
    place = root(schema)
    source = f"{source} AS r"
    if branch.unnested is not None:
        unnested = place.member(branch.unnested)
        if not unnested.is_list:
            return ""
        source = _unnested(unnested, source)
        place = _with_element(place, unnested)
    if branch.prepared:
        made = ", ".join(column.select(place) for column in branch.prepared)
        source = f"(SELECT r.*, {made} FROM {source}) AS r"  # noqa: S608 - made here, names quoted
        place = with_members(place, {column.name: column.type.arrow() for column in branch.prepared})
    return f"SELECT {', '.join(column.select(place) for column in branch.columns)} FROM {source}"  # noqa: S608


def _unnested(unnested: Place, source: str) -> str:
    return (
        f'(SELECT r.*, unnest({unnested.sql}) AS "{ELEMENT}", '  # noqa: S608
        f'generate_subscripts({unnested.sql}, 1) AS "{INDEX}" FROM {source}) AS r'
    )


def _with_element(place: Place, unnested: Place) -> Place:
    import pyarrow as pa

    element = unnested.first().kind
    return with_members(place, {ELEMENT: element, INDEX: pa.int64()})


# --- reading -------------------------------------------------------------------------------------------


class _Group:
    """Parts that have the same schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.paths: list[str] = []
        self.rows = 0

    @property
    def source(self) -> str:
        listed = ", ".join(map(quoted, self.paths))
        return f"read_parquet([{listed}], hive_partitioning = false)"


def _by_schema(parts: Sequence[Path | str]) -> list[_Group]:
    """One group of parts for each schema: an older part may have fewer columns than the others."""
    groups: list[_Group] = []
    for path in map(str, parts):
        with open_part(path) as part:
            schema, rows = plain(part.schema_arrow), part.metadata.num_rows
        if not rows:
            continue
        group = next((each for each in groups if each.schema == schema), None)
        if group is None:
            group = _Group(schema)
            groups.append(group)
        group.paths.append(path)
        group.rows += rows
    return groups


def connect(memory_limit: str, threads: int, spill: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB of its own that has the macros of `reference`; it loads no extension and reads no settings."""
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": memory_limit,
            "threads": str(threads),
            "temp_directory": str(spill),
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    # DuckDB 2.0 fails to plan `split_part(x, '/', -1) = 'a'` where statistics say that x is always NULL.
    connection.execute("SET disabled_optimizers = 'statistics_propagation'")
    for statement in reference.macros():
        connection.execute(statement)
    return connection


# --- writing -------------------------------------------------------------------------------------------


class _Cutter:
    """Writes the rows of one flat table as parts of a bounded size."""

    def __init__(self, table: FlatTable, out_dir: Path, max_part_rows: int, max_part_bytes: int) -> None:
        self.table = table
        self.parts: list[LocalPart] = []
        self._out_dir = out_dir
        self._max_part_rows = max_part_rows
        self._max_part_bytes = max_part_bytes
        self._group_rows = min(ROW_GROUP_ROWS, max_part_rows)
        self._writer: PartWriter | None = None

    def run(self, connection: duckdb.DuckDBPyConnection, groups: Sequence[_Group]) -> None:
        """Make all rows. Raises LakeError when the parts cannot be read, VerificationFailed for lost rows."""
        try:
            for branch in self.table.branches:
                for group in groups:
                    rows = sum(map(self._write, self._row_groups(connection, branch, group)))
                    if branch.unnested is None and rows != group.rows:
                        raise VerificationFailed(
                            f"{self.table.name} has {rows} rows of {group.rows} resources",
                            "This is a defect of the pipeline; nothing was published",
                        )
            self._close()
        finally:
            if self._writer is not None:
                self._writer.abort()

    def _row_groups(
        self, connection: duckdb.DuckDBPyConnection, branch: Branch, group: _Group
    ) -> Iterator[pa.Table]:
        import duckdb
        import pyarrow as pa

        sql = select_sql(branch, group.schema, group.source)
        if not sql:
            return
        pending: list[pa.RecordBatch] = []
        rows = size = 0
        try:
            for batch in connection.sql(sql).to_arrow_reader(min(BATCH_ROWS, self._group_rows)):
                pending.append(batch)
                rows += batch.num_rows
                size += batch.nbytes
                if rows >= self._group_rows or size >= GROUP_BYTES:
                    yield pa.Table.from_batches(pending)
                    pending, rows, size = [], 0, 0
        except (duckdb.Error, pa.ArrowException) as bad:
            # Both quote values in their messages.
            raise LakeError(
                f"{self.table.name} cannot be made from the Parquet ({type(bad).__name__})",
                "Give it more memory if that is what failed; else ingest that export again",
            ) from None
        if pending:
            yield pa.Table.from_batches(pending)

    def _write(self, rows: pa.Table) -> int:
        for start in range(0, rows.num_rows, self._max_part_rows):
            piece = rows.slice(start, self._max_part_rows)
            if self._writer is not None and self._writer.rows + piece.num_rows > self._max_part_rows:
                self._close()
            if self._writer is None:
                name = f"{self.table.name}-{len(self.parts):05d}.parquet"
                self._writer = PartWriter(self._out_dir / name, self.table.schema)
            self._writer.write(piece.cast(self._writer.schema))
            if self._writer.path.stat().st_size >= self._max_part_bytes:
                self._close()
        return int(rows.num_rows)

    def _close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            self.parts.append(writer.close())
