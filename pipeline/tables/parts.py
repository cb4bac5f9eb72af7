"""Parquet parts: writing with one schema, widening without copying, rewriting to a wider schema.

A part is one immutable Parquet file of one table. Its schema's hash lies in the footer under
`fhir_export.schema_sha256`; all its columns are nullable and its lists are three-level (rule 7).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import LakeError, VerificationFailed
from pipeline.lake.spool import discard
from pipeline.tables import schema as schemas
from pipeline.tables.sparse import SparseWriter, held_by

if TYPE_CHECKING:
    import pyarrow as pa

HASH_KEY = b"fhir_export.schema_sha256"
ROW_GROUP_ROWS = 128 * 1024
"""Rows in a row group at most (rule 10)."""
OPTIONS: Mapping[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "write_statistics": True,
    "use_compliant_nested_type": True,
    # Pages by size and not by rows: files a quarter smaller.
    "max_rows_per_page": 1 << 20,
}
"""How pyarrow writes; measured in benchmarks/parquet_settings.py."""
ROW_GROUP_BYTES = 64 * 1024 * 1024
"""Arrow bytes read at a time when a part is rewritten, roughly."""


@dataclass(frozen=True)
class LocalPart:
    """A finished Parquet file on the local disk."""

    path: Path
    rows: int
    bytes: int
    schema: pa.Schema


class PartWriter:
    """One Parquet file, whole or absent: leaving the `with` block by an exception removes it.

    The footer comes last, so a file that was not closed is no Parquet file.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schemas.plain(schema)
        self.rows = 0
        digest = schemas.schema_hash(self.schema).encode()
        self._file: IO[bytes] = path.open("wb")
        self._writer = SparseWriter(self._file, self.schema.with_metadata({HASH_KEY: digest}), OPTIONS)

    def write(self, table: pa.Table) -> None:
        """Add rows (any table that this part's schema covers), in row groups of at most 128k rows."""
        self.write_all([table])

    def write_all(self, tables: Sequence[pa.Table]) -> None:
        """The same for several tables, which may hold different columns."""
        import pyarrow as pa

        held = held_by(tables)
        if not schemas.covers(self.schema, held):
            raise VerificationFailed(
                "Rows hold columns that the part's schema lacks", "Take the union of both schemas first"
            )
        form = self._writer.form(held)
        together = pa.concat_tables([_widened(table, form.schema) for table in tables])
        for begin in range(0, together.num_rows, ROW_GROUP_ROWS):
            self._writer.write(together.slice(begin, ROW_GROUP_ROWS), form)
        self.rows += together.num_rows

    def close(self) -> LocalPart:
        """Finish the file and force it to the disk."""
        self._writer.close()
        self._file.flush()
        self._file.close()
        return LocalPart(self.path, self.rows, self.path.stat().st_size, self.schema)

    def abort(self) -> None:
        """Remove the file, whatever state it is in."""
        try:
            self._file.close()
        finally:
            discard(self.path)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()


# --- widening ----------------------------------------------------------------------------------------


def widen(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows under a schema that covers the table's: new columns are null, at every depth.

    Values are not copied; only nulls are made. Raises VerificationFailed when the schema does not cover the
    table.
    """

    schema = schemas.plain(schema)
    if schemas.plain(table.schema) == schema:
        return table.cast(schema) if table.schema != schema else table.replace_schema_metadata(None)
    if not schemas.covers(schema, table.schema):
        raise VerificationFailed(
            "Rows hold columns that the target schema lacks", "Take the union of both schemas first"
        )
    return _widened(table, schema)


def _widened(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = []
    for field in schema:
        position = table.schema.get_field_index(field.name)
        if position < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            chunks = [_widen_array(chunk, field.type) for chunk in table.column(position).chunks]
            columns.append(pa.chunked_array(chunks, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _widen_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if array.type.equals(kind, check_metadata=False) and not pa.types.is_nested(kind):
        return array
    if pa.types.is_struct(kind):
        children = []
        for field in kind.fields:
            position = array.type.get_field_index(field.name)
            if position < 0:
                children.append(pa.nulls(len(array), field.type))
            else:
                children.append(_widen_array(array.field(position), field.type))
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(kind.fields), mask=mask)
    if pa.types.is_list(kind) and pa.types.is_list(array.type):
        # From the buffers, because `ListArray.from_arrays` takes no nulls together with sliced offsets.
        validity, offsets = array.buffers()[:2]
        inner = _widen_array(array.values, kind.value_type)
        return pa.Array.from_buffers(
            kind, len(array), [validity, offsets], array.null_count, array.offset, children=[inner]
        )
    return array.cast(kind)


# --- reading and rewriting ---------------------------------------------------------------------------


@contextlib.contextmanager
def open_part(source: str | Path | Any) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` on a path or an open file. Raises LakeError when it is none; and so
    does reading from it, where its pages are damaged.

    A file object of the caller stays open.
    """
    with _readable(source):
        part = _part_class()(source)
    try:
        yield part
    finally:
        part.close()


@contextlib.contextmanager
def _readable(source: str | Path | Any) -> Iterator[None]:
    """Damage is told by Arrow in errors of several kinds, whose texts may hold data."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowMemoryError:
        raise
    except (pa.ArrowException, OSError) as bad:
        name = getattr(source, "name", source)
        which = "/".join(Path(name).parts[-2:]) if isinstance(name, str | Path) else ""
        raise LakeError(
            f"A Parquet part cannot be read ({type(bad).__name__}){which and f': {which}'}",
            "Ingest that export again from its raw files; `fhir-export rebuild` makes a current table again",
        ) from None


@cache
def _part_class() -> Any:
    import pyarrow.parquet as pq

    class Part(pq.ParquetFile):  # type: ignore[misc]
        """Its errors are in words."""

        def __init__(self, source: Any) -> None:
            self._from = source
            super().__init__(source)

        def read(self, *given: Any, **named: Any) -> Any:
            with _readable(self._from):
                return super().read(*given, **named)

        def read_row_group(self, *given: Any, **named: Any) -> Any:
            with _readable(self._from):
                return super().read_row_group(*given, **named)

        def iter_batches(self, *given: Any, **named: Any) -> Iterator[Any]:
            with _readable(self._from):  # what is done with a batch is not in it
                found = super().iter_batches(*given, **named)
            while True:
                with _readable(self._from):
                    batch = next(found, None)
                if batch is None:
                    return
                yield batch

    return Part


def read_part_schema(source: str | Path | Any) -> pa.Schema:
    """The schema of a part, in plain spelling. Takes a path or an open file. Raises LakeError."""
    with open_part(source) as part:
        return schemas.plain(part.schema_arrow)


def batches(part: Any, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of an open part, a bounded number of bytes at a time."""
    metadata = part.metadata
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    # Uncompressed Parquet is dictionary-encoded; Arrow takes several times that.
    per_row = max(1, 4 * total // max(1, metadata.num_rows))
    size = max(64, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // per_row))
    yield from part.iter_batches(batch_size=size, columns=columns, use_threads=False)


def rewrite_part(src: str | Path, dst: Path, schema: pa.Schema) -> LocalPart:
    """The same rows in a new file with a wider schema, streamed. `dst` is whole or absent.

    Raises VerificationFailed when the schema does not cover the part or a row went missing, LakeError when
    `src` cannot be read.
    """
    return merge_parts([src], dst, schema)


def merge_parts(sources: Iterable[str | Path], dst: Path, schema: pa.Schema) -> LocalPart:
    """The rows of several parts, in their order, in one new file with a schema that covers them all."""
    import pyarrow as pa

    expected = 0
    with PartWriter(dst, schema) as writer:
        for source in sources:
            with open_part(source) as part:
                expected += part.metadata.num_rows
                for batch in batches(part):
                    writer.write(pa.Table.from_batches([batch]))
        if writer.rows != expected:
            raise VerificationFailed(
                f"Rewriting a part gave {writer.rows} of {expected} rows", "Try again; nothing was published"
            )
        return writer.close()


def repeated_ids(sources: Iterable[str | Path | Any]) -> int:
    """How many rows carry an `id` that an earlier row carries too; rows without `id` do not count.

    Reads only the `id` column and keeps eight bytes a row. Two different ids count as one with a chance of
    about rows squared over 10**19.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = []
    for source in sources:
        with open_part(source) as part:
            for batch in batches(part, ["id"]):
                ids = batch.column(0).drop_null().to_pylist()
                chunks.append(pa.array(map(hash, ids), type=pa.int64()))
    hashes = pa.chunked_array(chunks, type=pa.int64())
    buckets = 1 + len(hashes) // 2_000_000
    rest = pc.subtract(hashes, pc.multiply(pc.divide(hashes, buckets), buckets)) if buckets > 1 else None
    distinct = 0
    for bucket in range(-buckets + 1, buckets):
        mine = hashes if rest is None else hashes.filter(pc.equal(rest, bucket))
        distinct += pc.count_distinct(mine).as_py()
    return len(hashes) - int(distinct)
