"""The rows of a `<type>_deleted` table: of each id that is gone since when, by which export, and how it is
known. The next merge competes with them as with any standing version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tables.current.fold import ABSENT, LEFT, NAMED, UNKNOWN, Versions

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

DELETED, SOFT_DELETED, MISSING, GONE_WITH_PATIENT = "deleted", "soft-deleted", "absent", "left"
"""How: a `deleted` Bundle names it; Microsoft's extension marks it; a full export has it no longer; its
patient has left the group, and `on_leave` is `hide`."""


def tombstone_schema() -> pa.Schema:
    """`_deleted` is always true; `_deleted_at` is null where the server did not say: then it was before the
    transactionTime of the export `_deleted_by`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("_deleted", pa.bool_()),
            ("_deleted_at", pa.timestamp("us", "UTC")),
            ("_deleted_how", pa.string()),
            ("_deleted_by", pa.string()),
            ("versionId", pa.string()),
        ]
    )


def read_tombstones(part: Any, source: int) -> tuple[pa.StringArray, Versions]:
    """As `read_evidence`, of an open part of such a table."""
    import pyarrow as pa

    table = part.read(columns=["id", "_deleted_at", "versionId"], use_threads=False).combine_chunks()
    rows = table.num_rows
    at = table.column("_deleted_at").cast(pa.int64()).fill_null(UNKNOWN)
    version = table.column("versionId").cast(pa.int64()).fill_null(-1)
    ids = table.column("id").combine_chunks()
    return (pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids), Versions(
        updated=at.to_numpy(),
        version=version.to_numpy(),
        whole=np.ones(rows, np.bool_),
        gone=np.ones(rows, np.bool_),
        source=np.full(rows, source, np.int32),
        row=np.arange(rows, dtype=np.int64),
    )


def tombstones(ids: pa.StringArray, gone: Versions, by: NDArray[np.str_]) -> pa.Table:
    """The rows for those ids, which an export (`by`, its id) has brought now."""
    import pyarrow as pa

    ways = {NAMED: DELETED, ABSENT: MISSING, LEFT: GONE_WITH_PATIENT}
    how = np.select([gone.source == source for source in ways], list(ways.values()), SOFT_DELETED)
    at = pa.array(gone.updated, pa.int64(), mask=gone.updated == UNKNOWN)
    version = pa.array(gone.version, pa.int64(), mask=gone.version < 0)
    columns = [
        ids,
        pa.array(np.ones(len(gone), np.bool_)),
        at.cast(pa.timestamp("us", "UTC")),
        pa.array(how.tolist(), pa.string()),
        pa.array(by.tolist(), pa.string()),
        version.cast(pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=tombstone_schema())
