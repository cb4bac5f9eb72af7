"""A DuckDB of bounded memory that is fed with single columns of parts: what the checks of the current tables
count in. Nothing else of the parts is read, in a remote lake neither."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import LakeError
from pipeline.lake.lake import Lake
from pipeline.tables.parts import open_part

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MEMORY_MB = 384
"""DuckDB's; what does not fit is spilled into the lake's spool."""
_BATCH_ROWS = 64 * 1024
Columns = Mapping[str, str]
"""Name of a column -> its type in DuckDB."""
IDS: Columns = {"id": "VARCHAR"}


class Scan:
    """Tables of a few columns, and questions about them that are answered with numbers."""

    def __init__(self, lake: Lake, connection: duckdb.DuckDBPyConnection) -> None:
        self._lake = lake
        self._connection = connection
        self._made: set[str] = set()

    def make(self, table: str, columns: Columns) -> bool:
        """An empty table; False where it was made before."""
        if table in self._made:
            return False
        self._made.add(table)
        named = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        self._connection.execute(f"CREATE TABLE {table} ({named})")
        return True

    def load(
        self,
        table: str,
        paths: Iterable[str],
        columns: Iterable[str],
        select: str = "*",
        parameters: Sequence[Any] = (),
    ) -> None:
        """Adds these columns of parts to a table, or what `select` makes of them.

        Paths begin at the lake's root. A column that a part lacks is null. Raises LakeError.
        """
        import pyarrow as pa

        wanted = list(columns)
        insert = f"INSERT INTO {table} SELECT {select} FROM batch"  # noqa: S608 - names of ours
        for path in paths:
            with self._lake.open(path) as file, open_part(file) as part:
                there = [name for name in wanted if name in part.schema_arrow.names]
                for batch in part.iter_batches(_BATCH_ROWS, columns=there, use_threads=False):
                    held = dict(zip(batch.schema.names, batch.columns, strict=True))
                    nothing = pa.nulls(batch.num_rows, pa.string())
                    rows = pa.table({name: held.get(name, nothing) for name in wanted})
                    self.add(insert, rows, parameters)

    def add(self, insert: str, rows: pa.Table, parameters: Sequence[Any] = ()) -> None:
        """Runs an `INSERT` that reads these rows from `batch`."""
        with _in_words():
            self._connection.register("batch", rows)
            self._connection.execute(insert, list(parameters))
            self._connection.unregister("batch")

    def ask(self, question: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of the answer."""
        with _in_words():
            return self._connection.execute(question, list(parameters)).fetchall()

    def number(self, question: str, parameters: Sequence[Any] = ()) -> int:
        """The one number of the answer."""
        return int(self.ask(question, parameters)[0][0] or 0)


@contextmanager
def scanning(lake: Lake) -> Iterator[Scan]:
    """A `Scan` that is gone, with what it has spilled, at the end. Raises LakeError."""
    from pipeline.tables.flat.flattening import connect

    with lake.spool() as spool:
        connection = connect(f"{MEMORY_MB}MB", 1, spool)
        try:
            yield Scan(lake, connection)
        finally:
            connection.close()


@contextmanager
def _in_words() -> Iterator[None]:
    import duckdb

    try:
        yield
    except duckdb.Error as bad:  # its text may quote values
        raise LakeError(
            f"a check of the current tables could not be counted ({type(bad).__name__})",
            "See that the disk of the lake's spool has space; the tables themselves are not touched by it",
        ) from None
