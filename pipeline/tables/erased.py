"""Delta tables without some of their rows: the parts that held them are replaced, in one commit.

How many rows went is written down beside the export's name in the same commit (an application transaction, as
the attempt is): whoever compares a table with a receipt adds them. The mark `erased` says that a table was
changed so, and that its older files are to be removed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.tables.delta import (
    Conflict,
    StagedPart,
    StorageOptions,
    erased_id,
    erased_rows,
    open_table,
    unwritable,
)
from pipeline.tables.schema import PARTITION_COLUMN

if TYPE_CHECKING:
    from deltalake import DeltaTable

MARK = "erased"


@dataclass(frozen=True)
class Remainder:
    """What is left of an export's partition."""

    before: tuple[str, ...]
    """The parts that it was, by path."""
    parts: tuple[StagedPart, ...]
    """All that it is to be: new paths, for one that is live must not be added again (design, Tables)."""
    erased: int
    """Rows that are in it no more."""


def leave(uri: str, remainders: Mapping[str, Remainder], storage_options: StorageOptions = None) -> None:
    """Makes them the whole of those exports' partitions, in one commit; the attempts stay what they were.

    Raises `Conflict` when somebody else has changed the table, LakeError when it cannot be written.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import AddAction, CommitProperties, Transaction

    table = open_table(uri, storage_options)
    if table is None:
        raise Conflict("the table is gone")
    for export_id, remainder in remainders.items():
        if {part.path for part in live_of(table, export_id)} != set(remainder.before):
            raise Conflict("erasing: a partition has changed")
    now = int(time.time() * 1000)
    actions: list[Any] = [
        AddAction(
            path=part.path,
            size=part.bytes,
            partition_values={PARTITION_COLUMN: export_id},
            modification_time=now,
            data_change=True,
            stats=json.dumps({"numRecords": part.rows}),  # no least and greatest values: they may be ids
        )
        for export_id, remainder in remainders.items()
        for part in remainder.parts
    ]
    numbers = {
        erased_id(export_id): erased_rows(table, export_id) + remainder.erased
        for export_id, remainder in remainders.items()
    }
    numbers[MARK] = (table.transaction_version(MARK) or 0) + 1
    try:
        table.create_write_transaction(
            actions,
            mode="overwrite",
            schema=table.schema(),
            partition_by=[PARTITION_COLUMN],
            partition_filters=[(PARTITION_COLUMN, "in", list(remainders))],
            commit_properties=CommitProperties(
                custom_metadata={"fhir_export": "erased"},
                max_commit_retries=0,
                app_transactions=[Transaction(name, number) for name, number in numbers.items()],
            ),
        )
    except CommitFailedError as lost:
        raise Conflict(f"erasing: {type(lost).__name__}") from None
    except (DeltaError, OSError) as bad:
        raise unwritable(table.table_uri, bad) from None


def live_of(table: DeltaTable, export_id: str | None = None) -> list[StagedPart]:
    """The files of an export, or of all, at the version that was opened."""
    import pyarrow as pa

    actions = pa.table(table.get_add_actions(flatten=True))
    if not actions.num_rows:
        return []
    partition = f"partition.{PARTITION_COLUMN}"
    rows: Sequence[dict[str, Any]] = actions.to_pylist()
    return [
        StagedPart(row["path"], row["size_bytes"], row["num_records"])
        for row in rows
        if export_id is None or row[partition] == export_id
    ]


@dataclass(frozen=True)
class Files:
    """The files of a table, from its root."""

    shown: frozenset[str] = frozenset()
    """By its newest version."""
    dead: frozenset[str] = frozenset()
    """By older ones only, as far as the log remembers."""
    marked: bool = False
    """Whether an erasure has changed it: then no older version may stay."""


def files_of(uri: str, storage_options: StorageOptions = None) -> Files | None:
    """None where there is no table. Raises LakeError."""
    import pyarrow as pa
    from deltalake.exceptions import DeltaError

    table = open_table(uri, storage_options)
    if table is None:
        return None
    try:
        actions = pa.table(table.get_add_actions(flatten=True))
        shown = set(actions.column("path").to_pylist()) if actions.num_rows else set()
        dead = table.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False)
    except (DeltaError, OSError) as bad:
        raise unwritable(table.table_uri, bad) from None
    marked = bool(table.transaction_version(MARK))
    return Files(frozenset(shown), frozenset(dead) - frozenset(shown), marked)
