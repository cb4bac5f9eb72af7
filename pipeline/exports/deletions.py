"""`_deletes`: one row for each resource that a server named as deleted, by export run (protocol fact 31).

A Delta table like the others: the partition of an export is committed before `_exports` lists it, and taken
back with it. The current tables read it, and nothing else says later what a server has deleted: raw bytes
may be dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.exports.attempt import Attempt
from pipeline.exports.facts import LandedBatch
from pipeline.exports.session import Session
from pipeline.exports.sidecars import contents

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from pipeline.tables.delta import StagedPart

DELETES = "_deletes"
_ROWS = 50_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def deletes_schema() -> pa.Schema:
    """Columns of `_deletes`. `deleted_at` is null where the server did not say, and where not `exact` it was
    then or before."""
    import pyarrow as pa

    return pa.schema(
        [
            ("resource_type", pa.string()),
            ("id", pa.string()),
            ("deleted_at", pa.timestamp("us", "UTC")),
            ("exact", pa.bool_()),
            ("transaction_time", pa.string()),
            ("source_file", pa.string()),
            ("source_line", pa.int64()),
        ]
    )


def write_deletes(
    session: Session, attempt: Attempt, transaction_time: str, landed: Sequence[LandedBatch]
) -> int:
    """Replaces this export's rows of `_deletes`; how many there are. Without any, and without a table or
    rows of before, nothing is written."""
    import pyarrow as pa

    from pipeline.tables.delta import live_parts, write_small_partition

    rows = _rows(session, transaction_time, landed)
    first = list(islice(rows, _ROWS))
    uri, options = session.table_uri(DELETES), session.lake.storage_options
    if not first and not live_parts(uri, attempt.export_id, options):
        return 0
    schema = deletes_schema()

    def tables() -> Iterator[pa.Table]:
        some = first
        while some:
            yield pa.Table.from_pylist(some, schema=schema)
            some = list(islice(rows, _ROWS))

    def put(local: Path, path: str) -> None:
        session.lake.put_file(local, f"{session.table(DELETES)}/{path}")

    with session.lake.spool() as spool:
        commit = write_small_partition(
            uri,
            export_id=attempt.export_id,
            attempt=attempt.number,
            replaces_after=attempt.facts.settled_attempt,
            tables=tables(),
            schema=schema,
            put=put,
            spool=spool,
            storage_options=options,
        )
    return commit.rows


def _rows(session: Session, transaction_time: str, landed: Sequence[LandedBatch]) -> Iterator[dict[str, Any]]:
    from pipeline.bulkdata.sidecar import deletions

    for name, content in contents(session, landed, "deleted"):
        for each in deletions([content]):
            yield {
                "resource_type": each.resource_type,
                "id": each.id,
                "deleted_at": each.at,
                "exact": each.exact,
                "transaction_time": transaction_time,
                "source_file": name,
                "source_line": each.line,
            }


def read_deletes(
    session: Session, parts: Iterable[StagedPart], resource_type: str
) -> list[tuple[str, datetime | None, bool]]:
    """(id, when, exact) of each resource of that type that an export named as deleted, by its parts.

    A moment that is beyond the calendar in UTC is none. Raises `LakeError`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.tables.parts import open_part

    found: list[tuple[str, datetime | None, bool]] = []
    for part in parts:
        with session.lake.open(f"{session.table(DELETES)}/{part.path}") as file, open_part(file) as opened:
            for batch in opened.iter_batches(columns=["resource_type", "id", "deleted_at", "exact"]):
                some = batch.filter(pc.equal(batch.column("resource_type"), resource_type))
                moments = some.column("deleted_at").cast(pa.int64()).to_pylist()
                found += zip(
                    some.column("id").to_pylist(),
                    map(_moment, moments),
                    some.column("exact").to_pylist(),
                    strict=True,
                )
    return found


def _moment(micros: int | None) -> datetime | None:
    try:
        return None if micros is None else _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None
