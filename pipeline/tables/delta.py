"""Delta tables over Parquet parts that we write ourselves: schema, commit, live files, row counts.

The caller has put the parts below the table's root already; nothing here writes data files, except for the
small tables `_exports` and `_lineage`. One commit replaces one export's partition and nothing else. The
order of a commit, and why, is in design.md ("Tables"): each step there is a trap that was tried.

A URI is a local path, `file:///path` or `az://container/path`; `storage_options` are delta-rs's.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import LakeError, StillRunning, VerificationFailed
from pipeline.lake.spool import discard
from pipeline.tables import schema as schemas
from pipeline.tables.parts import PartWriter
from pipeline.tables.schema import PARTITION_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

StorageOptions = dict[str, str] | None

MAX_TRIES = 40
"""Half of six concurrent widenings fail; each try after a conflict begins from a fresh table."""
LONGEST_WAIT = 2.0
"""Seconds between two tries at most."""

KEPT: Mapping[str, str] = {
    "delta.logRetentionDuration": "interval 30 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
}
"""Of every table, from its creation. Readers of a version have a week to finish; nobody needs an older one:
`as-of` reads the exports."""

_STATUS = re.compile(r"non-2xx status code\W+(?:\d+m\W+)*([45]\d\d) [A-Z]")
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")


@dataclass(frozen=True)
class StagedPart:
    """A Parquet file below the table's root, committed or waiting to be."""

    path: str
    """Relative to the root: `export_id=<id>/part-<attempt>-<uuid>.parquet`."""
    bytes: int
    rows: int


@dataclass(frozen=True)
class Commit:
    """What a commit came to."""

    version: int
    """The Delta version after it."""
    rows: int
    """Live rows of that export."""
    parts: int
    already: bool
    """True when this ingest cycle had committed the table before; nothing was changed now."""


def part_path(export_id: str, attempt: int) -> str:
    """A new, unique path for a part, relative to the table's root."""
    return f"{PARTITION_COLUMN}={export_id}/part-{attempt:04d}-{uuid.uuid4().hex}.parquet"


# --- reading -----------------------------------------------------------------------------------------


def table_schema(uri: str, storage_options: StorageOptions = None) -> pa.Schema | None:
    """The table's schema without the partition column; None when there is no table yet."""
    table = open_table(uri, storage_options)
    return None if table is None else schema_of(table)


def live_parts(uri: str, export_id: str, storage_options: StorageOptions = None) -> list[StagedPart]:
    """The files that make up one export's partition now; none when there is no table."""
    table = open_table(uri, storage_options)
    return [] if table is None else _live(table, export_id)


def partition_rows(uri: str, export_id: str, storage_options: StorageOptions = None) -> int:
    """Live rows of one export, from the log only."""
    return sum(part.rows for part in live_parts(uri, export_id, storage_options))


def total_rows(uri: str, storage_options: StorageOptions = None) -> int:
    """Live rows of the table, from the log only; 0 when there is no table."""
    table = open_table(uri, storage_options)
    return 0 if table is None else sum(part.rows for part in _live(table, None))


def committed_attempt(uri: str, export_id: str, storage_options: StorageOptions = None) -> int | None:
    """The attempt that committed this export last, None when none did."""
    table = open_table(uri, storage_options)
    return None if table is None else table.transaction_version(_app_id(export_id))


def committed_attempts(
    uri: str, export_ids: Iterable[str], storage_options: StorageOptions = None
) -> dict[str, int]:
    """The same of many exports, from one reading of the log; without those that were never committed."""
    table = open_table(uri, storage_options)
    found = {each: table.transaction_version(_app_id(each)) for each in export_ids} if table else {}
    return {export_id: attempt for export_id, attempt in found.items() if attempt is not None}


def published_parts(
    uri: str, storage_options: StorageOptions = None
) -> dict[str, tuple[int, tuple[StagedPart, ...]]]:
    """Export -> the attempt that committed it last, and the files that make up its partition now.

    Exports without rows are not in it. From the log only; empty when there is no table.
    """
    table = open_table(uri, storage_options)
    found: dict[str, list[StagedPart]] = {}
    for part in [] if table is None else _live(table, None):
        found.setdefault(part.path.partition("/")[0].partition("=")[2], []).append(part)
    return {
        export_id: (table.transaction_version(_app_id(export_id)) or 0 if table else 0, tuple(parts))
        for export_id, parts in found.items()
    }


# --- committing --------------------------------------------------------------------------------------


def commit_export(
    uri: str,
    *,
    export_id: str,
    attempt: int,
    replaces_after: int,
    parts: Sequence[StagedPart],
    schema: pa.Schema,
    storage_options: StorageOptions = None,
    metadata: Mapping[str, str] | None = None,
    require: Callable[[DeltaTable], None] | None = None,
) -> Commit:
    """Make `parts` the whole of one export's partition, in one Delta commit.

    `attempt` counts up over the life of an export; `replaces_after` is the attempt of its last receipt, 0
    without one. A table that some attempt after `replaces_after` has committed already is left as it is and
    its rows are compared. No parts empty the partition (and make the table where there is none). The table
    is created or its schema widened where needed, never narrowed. Safe against any number of concurrent
    callers, in threads or processes. `require` is given the very version that the commit follows; what it
    raises is raised, and nothing is committed.

    Raises StillRunning when a later attempt has committed, VerificationFailed when the committed rows are
    not those of `parts`, LakeError when the table cannot be written or a part is live already.
    """
    schema = schemas.plain(schema)
    _check_paths(parts, export_id)
    conflict = ""
    for tries in range(MAX_TRIES):
        if tries:
            time.sleep(random.uniform(0.2, 1.0) * min(LONGEST_WAIT, 0.05 * 2**tries))  # noqa: S311
        table = open_table(uri, storage_options)
        try:
            if table is None:
                create_table(uri, schema, storage_options)
            elif not schemas.covers(schema_of(table), schema):
                widen_table(table, schema, storage_options)
            else:
                if require is not None:
                    require(table)
                done = _committed_before(table, export_id, attempt, replaces_after, parts)
                if done is not None:
                    return done
                _commit_parts(table, export_id, attempt, parts, schema, metadata or {})
                return _verified(uri, export_id, attempt, parts, storage_options)
        except Conflict as lost:
            conflict = str(lost)
    raise LakeError(
        f"The table {_name(uri)} could not be committed in {MAX_TRIES} tries ({conflict})",
        "Other writers keep changing it: see who they are, then run the ingest again",
    )


def write_small_partition(
    uri: str,
    *,
    export_id: str,
    attempt: int,
    replaces_after: int,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    put: Callable[[Path, str], None],
    spool: Path,
    storage_options: StorageOptions = None,
    metadata: Mapping[str, str] | None = None,
    require: Callable[[DeltaTable], None] | None = None,
) -> Commit:
    """Write one export's partition of a small table (`_exports`, `_lineage`): one part, one commit.

    The part is written in the folder `spool`; `put(local file, path relative to the table's root)` brings it
    to the lake, by copy or by move. `tables` are its rows, each a row group, asked for one after the other;
    they must not hold the column `export_id`. Raises as `commit_export` does.
    """
    last = committed_attempt(uri, export_id, storage_options)
    if last is not None and replaces_after < last <= attempt:
        parts = live_parts(uri, export_id, storage_options)
    else:
        parts = _staged(export_id, attempt, tables, schema, put, spool)
    return commit_export(
        uri,
        export_id=export_id,
        attempt=attempt,
        replaces_after=replaces_after,
        parts=parts,
        schema=schema,
        storage_options=storage_options,
        metadata=metadata,
        require=require,
    )


def empty_partition(
    uri: str, *, export_id: str, attempt: int, storage_options: StorageOptions = None
) -> bool:
    """Take one export's rows out of a table, in one commit; False when it has none (or is no table).

    `attempt` must be later than any that may still commit: such a one is refused then, where there were rows.
    Raises as `commit_export` does.
    """
    table = open_table(uri, storage_options)
    if table is None or not _live(table, export_id):
        return False
    last = max(attempt, (table.transaction_version(_app_id(export_id)) or 0) + 1)
    commit_export(
        uri,
        export_id=export_id,
        attempt=last,
        replaces_after=last - 1,
        parts=(),
        schema=schema_of(table),
        storage_options=storage_options,
    )
    return True


def _staged(
    export_id: str,
    attempt: int,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    put: Callable[[Path, str], None],
    spool: Path,
) -> list[StagedPart]:
    path = part_path(export_id, attempt)
    with PartWriter(spool / Path(path).name, schema) as writer:
        for table in tables:
            writer.write(table)
        part = writer.close()
    try:
        if part.rows == 0:
            return []
        put(part.path, path)
    finally:
        discard(part.path)
    return [StagedPart(path, part.bytes, part.rows)]


class Conflict(Exception):
    """Another writer was quicker: begin again from a fresh table. Holds the error's class only."""


def _check_paths(parts: Sequence[StagedPart], export_id: str) -> None:
    folder = f"{PARTITION_COLUMN}={export_id}/"
    if any(not part.path.startswith(folder) for part in parts):
        raise LakeError(f"A part lies outside {folder}", "Stage the parts of an export in its own folder")
    if len({part.path for part in parts}) != len(parts):
        raise LakeError("A part is listed twice", "Its rows would double; stage every part once")


def create_table(
    uri: str,
    schema: pa.Schema,
    storage_options: StorageOptions,
    partition: str = PARTITION_COLUMN,
) -> None:
    """An empty table that keeps log and files as `KEPT` says, partitioned by a text column that `schema` does
    not hold. Raises `Conflict` when somebody else was quicker, LakeError when it cannot be made.
    """
    import pyarrow as pa
    from deltalake import DeltaTable, Schema
    from deltalake.exceptions import DeltaError

    whole = schema.append(pa.field(partition, pa.string()))
    try:
        DeltaTable.create(
            uri,
            Schema.from_arrow(whole),
            mode="error",
            partition_by=[partition],
            configuration=dict(KEPT),
            storage_options=storage_options,
        )
    except (DeltaError, OSError) as lost:
        # Someone else made it in the meantime, or it cannot be made.
        if open_table(uri, storage_options) is None:
            raise unwritable(uri, lost) from None
        raise Conflict(f"creating: {type(lost).__name__}") from None


def widen_table(
    table: DeltaTable, schema: pa.Schema, storage_options: StorageOptions, partition: str = PARTITION_COLUMN
) -> None:
    """Adds the columns that `schema` has beyond the table's. Raises `Conflict` when somebody else changed it
    meanwhile, VerificationFailed when a column would change its type, LakeError.
    """
    import pyarrow as pa
    from deltalake import write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    wide = schemas.union(schema_of(table, partition), schema)
    empty = wide.append(pa.field(partition, pa.string())).empty_table()
    try:
        write_deltalake(table, empty, mode="append", schema_mode="merge", storage_options=storage_options)
    except CommitFailedError as lost:
        raise Conflict(f"widening: {type(lost).__name__}") from None
    except (DeltaError, OSError) as bad:
        raise unwritable(table.table_uri, bad) from None


def _committed_before(
    table: DeltaTable, export_id: str, attempt: int, replaces_after: int, parts: Sequence[StagedPart]
) -> Commit | None:
    """What this ingest cycle has committed already, or None when it has still to commit."""
    last = table.transaction_version(_app_id(export_id))
    live = _live(table, export_id)
    if last is not None and last > attempt:
        raise StillRunning(
            f"Attempt {last} of export {export_id} has committed, and this is attempt {attempt}",
            "A later attempt took over; its result stands",
        )
    if last is not None and (last == attempt or last > replaces_after):
        rows = sum(part.rows for part in live)
        if rows != sum(part.rows for part in parts):
            raise VerificationFailed(
                f"Attempt {last} of export {export_id} committed {rows} rows, and this attempt staged "
                f"{sum(part.rows for part in parts)}",
                "The server's files changed between two attempts: ingest the export again from the start",
            )
        return Commit(table.version(), rows, len(live), already=True)
    if {part.path for part in live} & {part.path for part in parts}:
        raise LakeError(
            f"A part of export {export_id} is live already",
            "Convert again: every attempt stages its own parts",
        )
    return None


def _commit_parts(
    table: DeltaTable,
    export_id: str,
    attempt: int,
    parts: Sequence[StagedPart],
    schema: pa.Schema,
    metadata: Mapping[str, str],
) -> None:
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import AddAction, CommitProperties, Transaction

    now = int(time.time() * 1000)
    actions: list[Any] = [
        AddAction(
            path=part.path,
            size=part.bytes,
            partition_values={PARTITION_COLUMN: export_id},
            modification_time=now,
            data_change=True,
            stats=json.dumps({"numRecords": part.rows}),
        )
        for part in parts
    ]
    try:
        table.create_write_transaction(
            actions,
            mode="overwrite",
            # The fresh table's own schema: a narrower one would remove columns.
            schema=table.schema(),
            partition_by=[PARTITION_COLUMN],
            partition_filters=[(PARTITION_COLUMN, "=", export_id)],
            commit_properties=CommitProperties(
                custom_metadata={
                    **metadata,
                    "export_id": export_id,
                    "attempt": str(attempt),
                    "schema_sha256": schemas.schema_hash(schema),
                },
                # delta-rs's own retries rebase onto what others did; ours begin from a fresh table.
                max_commit_retries=0,
                # Ingested again: what an erasure had taken out of it is not missing any more.
                app_transactions=[
                    Transaction(_app_id(export_id), attempt),
                    *([Transaction(erased_id(export_id), 0)] if erased_rows(table, export_id) else []),
                ],
            ),
        )
    except CommitFailedError as lost:
        raise Conflict(f"committing: {type(lost).__name__}") from None
    except (DeltaError, OSError) as bad:
        raise unwritable(table.table_uri, bad) from None


def _verified(
    uri: str, export_id: str, attempt: int, parts: Sequence[StagedPart], storage_options: StorageOptions
) -> Commit:
    table = open_table(uri, storage_options)
    live = _live(table, export_id) if table is not None else []
    if table is None or table.transaction_version(_app_id(export_id)) != attempt:
        raise StillRunning(
            f"Another attempt replaced export {export_id} right after attempt {attempt}",
            "A later attempt took over; its result stands",
        )
    if {(part.path, part.rows) for part in live} != {(part.path, part.rows) for part in parts}:
        raise VerificationFailed(
            f"The table {_name(uri)} does not show the parts of export {export_id} that were committed",
            "Ingest that export again, and look at the table's history for other writers",
        )
    return Commit(table.version(), sum(part.rows for part in live), len(live), already=False)


# --- delta-rs ----------------------------------------------------------------------------------------


def _app_id(export_id: str) -> str:
    return f"export:{export_id}"


def erased_id(export_id: str) -> str:
    """Beside this name a table says how many rows `erase` took out of an export since its last commit."""
    return f"erased:{export_id}"


def erased_rows(table: DeltaTable, export_id: str) -> int:
    """How many that are; the receipt still counts them."""
    return table.transaction_version(erased_id(export_id)) or 0


def _name(uri: str) -> str:
    return uri.split("?", maxsplit=1)[0].rstrip("/").rsplit("/", 1)[-1]


def unwritable(uri: str, bad: Exception) -> LakeError:
    """The error for a table that cannot be written: no URL, no credential in it."""
    return LakeError(
        f"The table {_name(uri)} cannot be written ({_why(bad)})",
        "Check that the lake can be reached and that its credentials allow writing",
    )


def _why(bad: Exception) -> str:
    """delta-rs quotes whole URLs in its messages, so only the storage's status and code word are repeated."""
    said = str(bad)
    status, code = _STATUS.search(said), _CODE.search(said)
    if status or code:
        return " ".join(["HTTP", *(found[1] for found in (status, code) if found)])
    return "no connection" if "error sending request" in said else type(bad).__name__


def open_table(uri: str, storage_options: StorageOptions) -> DeltaTable | None:
    """The table at its newest version; None where there is none. Raises LakeError."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(uri, storage_options=storage_options)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as bad:
        raise LakeError(
            f"The table {_name(uri)} cannot be opened ({_why(bad)})",
            "Check that the lake can be reached and that its credentials allow reading",
        ) from None


def schema_of(table: DeltaTable, partition: str = PARTITION_COLUMN) -> pa.Schema:
    """The table's schema, plain, without the partition column."""
    import pyarrow as pa

    whole = schemas.plain(pa.schema(table.schema().to_arrow()))
    return pa.schema([field for field in whole if field.name != partition])


def _live(table: DeltaTable, export_id: str | None) -> list[StagedPart]:
    import pyarrow as pa

    actions = pa.table(table.get_add_actions(flatten=True))
    if actions.num_rows == 0:
        return []
    partition = f"partition.{PARTITION_COLUMN}"
    rows = actions.select(["path", "size_bytes", "num_records", partition]).to_pylist()
    return [
        StagedPart(row["path"], row["size_bytes"], row["num_records"])
        for row in rows
        if export_id is None or row[partition] == export_id
    ]
