"""A Delta table of chunks: a data file each, taken out and put in by name, all in one commit.

Each chunk is a partition `_chunk=<name>` of its own, so that a commit names exactly the files that it
replaces; whatever else is in the table is not touched, and not read. A number beside each export tells what
has been merged, in the same commit (Delta's application transactions).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.tables import schema as schemas
from pipeline.tables.delta import (
    Conflict,
    StorageOptions,
    create_table,
    open_table,
    schema_of,
    unwritable,
    widen_table,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

CHUNK_COLUMN = "_chunk"
ANY = -2
"""Whatever version a table is at."""
NEVER = -1
"""The number of an export that a table has not, or has no longer."""


@dataclass(frozen=True)
class Chunk:
    """A Parquet file of the table."""

    name: str
    path: str
    """Relative to the table's root."""
    rows: int
    bytes: int


def new_chunk(export_id: str) -> tuple[str, str]:
    """A new name, which tells the newest export that it holds, and the path."""
    name = f"{export_id}-{secrets.token_hex(6)}"
    return name, chunk_path(name)


def chunk_path(name: str) -> str:
    """A new path for the file of a chunk of that name."""
    return f"{CHUNK_COLUMN}={name}/part-{secrets.token_hex(16)}.parquet"


class ChunkTable:
    """The table as it is at one version; what is committed through it fails when it has changed since."""

    def __init__(self, table: DeltaTable | None) -> None:
        self._table = table
        self.chunks = [] if table is None else _chunks(table)

    @classmethod
    def at(cls, uri: str, storage_options: StorageOptions = None) -> ChunkTable:
        """At its newest version; without chunks where there is none. Raises LakeError."""
        return cls(open_table(uri, storage_options))

    @classmethod
    def covering(
        cls, uri: str, schema: pa.Schema, storage_options: StorageOptions = None, seen: int | None = ANY
    ) -> ChunkTable:
        """The same, made or widened first where it lacks columns.

        `seen` is its version when it was looked at (None: there was none): what was decided then holds for no
        other. Raises `Conflict` when it has changed since, or somebody else changes it now; LakeError.
        """
        found = cls.at(uri, storage_options)
        if seen not in (ANY, found.version):
            raise Conflict("changed since it was looked at")
        if found._table is None:
            create_table(uri, schema, storage_options, CHUNK_COLUMN)
            ours = 0
        elif not schemas.covers(schema_of(found._table, CHUNK_COLUMN), schema):
            ours = int(found._table.version()) + 1
            widen_table(found._table, schema, storage_options, CHUNK_COLUMN)
        else:
            return found
        made = cls.at(uri, storage_options)
        if seen != ANY and made.version != ours:
            raise Conflict("changed while columns were added")
        return made

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def version(self) -> int | None:
        """The Delta version; None where there is no table."""
        return None if self._table is None else int(self._table.version())

    @property
    def schema(self) -> pa.Schema | None:
        return None if self._table is None else schema_of(self._table, CHUNK_COLUMN)

    def number(self, name: str) -> int:
        """What `replace` has last written down beside that name, or `NEVER`."""
        found = None if self._table is None else self._table.transaction_version(name)
        return NEVER if found is None else int(found)

    def replace(
        self, removed: Sequence[Chunk], added: Sequence[Chunk], numbers: Mapping[str, int], why: str
    ) -> None:
        """Takes chunks out and puts others in, in one commit; their files are in the lake already.

        Raises `Conflict` when the table has changed since it was opened, LakeError when it cannot be written.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError
        from deltalake.transaction import AddAction, CommitProperties, Transaction

        if self._table is None:
            raise ValueError("only a table that was opened by `covering` can be changed")
        now = int(time.time() * 1000)
        actions: list[Any] = [
            AddAction(
                path=chunk.path,
                size=chunk.bytes,
                partition_values={CHUNK_COLUMN: chunk.name},
                modification_time=now,
                data_change=True,
                stats=json.dumps({"numRecords": chunk.rows}),
            )
            for chunk in added
        ]
        # Without a filter an overwrite takes everything out; no chunk has the empty name.
        out = [chunk.name for chunk in removed] or [""]
        try:
            self._table.create_write_transaction(
                actions,
                mode="overwrite",
                schema=self._table.schema(),
                partition_by=[CHUNK_COLUMN],
                partition_filters=[(CHUNK_COLUMN, "in", out)],
                commit_properties=CommitProperties(
                    custom_metadata={"fhir_export": why},
                    max_commit_retries=0,
                    app_transactions=[Transaction(name, number) for name, number in numbers.items()],
                ),
            )
        except CommitFailedError as lost:
            raise Conflict(f"committing: {type(lost).__name__}") from None
        except (DeltaError, OSError) as bad:
            raise unwritable(self._table.table_uri, bad) from None


def _chunks(table: DeltaTable) -> list[Chunk]:
    """In the order of their names: the oldest first."""
    import pyarrow as pa

    # `pa.table` would import pandas, where it is installed, to ask whether this is a DataFrame.
    actions = pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=True)).read_all()
    if actions.num_rows == 0:
        return []
    found = actions.select(["path", "size_bytes", "num_records", f"partition.{CHUNK_COLUMN}"]).to_pylist()
    chunks = [
        Chunk(row[f"partition.{CHUNK_COLUMN}"], row["path"], row["num_records"], row["size_bytes"])
        for row in found
    ]
    return sorted(chunks, key=lambda chunk: chunk.name)
