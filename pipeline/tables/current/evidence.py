"""What the fold needs to know of a part's rows: ids and the columns of `Versions`, nothing else is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tables.current.fold import UNKNOWN, Versions

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa
    from numpy.typing import NDArray

ID = "id"
_UPDATED = "meta.__lastUpdated_start"
_VERSION = "meta.versionId"
_TAGS = "meta.tag"
_EXTENSIONS = "meta.extension"
_SUBSETTED = {"code": "SUBSETTED"}
_SOFT_DELETED = {
    "url": "http://azurehealthcareapis.com/data-extensions/deleted-state",
    "valueString": "soft-deleted",
}
"""The extension by which Microsoft's server marks what is deleted (its `AzureSoftDeletedExtensionUrl`)."""


def read_evidence(
    part: Any, source: int, of: Callable[[pa.StringArray], NDArray[np.bool_]] | None = None
) -> tuple[pa.StringArray, Versions]:
    """Of each row of an open `pyarrow.parquet.ParquetFile`: its id (null where it has none), and its version.

    A few bytes a row; `source` is what `Versions.source` says of them. `of` is asked for which ids, of all,
    that is wanted.
    """
    import pyarrow as pa

    schema = part.schema_arrow
    wanted = [ID, *(path for path in (_UPDATED, _VERSION, _TAGS, _EXTENSIONS) if _has(schema, path))]
    table = part.read(columns=wanted, use_threads=False)
    ids = _one(table.column(ID)).cast(pa.string())
    places = np.arange(table.num_rows, dtype=np.int64)
    if of is not None and not (mine := of(ids)).all():
        chosen = pa.array(mine)
        ids, table, places = ids.filter(chosen), table.filter(chosen), places[mine]
    rows = table.num_rows
    meta = _one(table.column("meta")) if "meta" in table.column_names else None
    return ids, Versions(
        updated=_instants(_member(meta, "__lastUpdated_start"), rows),
        version=_integers(_member(meta, "versionId"), rows),
        whole=~_marked(_member(meta, "tag"), _SUBSETTED, rows),
        gone=_marked(_member(meta, "extension"), _SOFT_DELETED, rows),
        source=np.full(rows, source, np.int32),
        row=places,
    )


def _has(schema: pa.Schema, path: str) -> bool:
    name, inner = path.split(".")
    position = schema.get_field_index(name)
    return position >= 0 and bool(schema.field(position).type.get_field_index(inner) >= 0)


def _one(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    together = column.combine_chunks()
    if isinstance(together, pa.ChunkedArray):
        return pa.concat_arrays(together.chunks) if together.num_chunks else pa.array([], column.type)
    return together


def _member(structure: pa.StructArray | None, name: str) -> pa.Array | None:
    """The member of each, null where the structure is."""
    import pyarrow.compute as pc

    if structure is None or structure.type.get_field_index(name) < 0:
        return None
    return pc.struct_field(structure, name)


def _instants(values: pa.Array | None, rows: int) -> NDArray[np.int64]:
    import pyarrow as pa

    if values is None:
        return np.full(rows, UNKNOWN, np.int64)
    return np.asarray(values.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).fill_null(UNKNOWN))


def _integers(texts: pa.Array | None, rows: int) -> NDArray[np.int64]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if texts is None:
        return np.full(rows, -1, np.int64)
    integer = pc.match_substring_regex(texts, "^[0-9]{1,18}$")
    numbers = pc.if_else(integer, texts, pa.scalar(None, pa.string())).cast(pa.int64())
    return np.asarray(numbers.fill_null(-1))


def _marked(values: pa.ListArray | None, members: dict[str, str], rows: int) -> NDArray[np.bool_]:
    """Which rows have an element with those members."""
    import pyarrow.compute as pc

    found = np.zeros(rows, np.bool_)
    if values is None or values.null_count == rows:
        return found
    inner = values.flatten()
    if any(inner.type.get_field_index(name) < 0 for name in members):
        return found
    marks = None
    for name, text in members.items():
        mark = pc.equal(pc.struct_field(inner, name), text).fill_null(fill_value=False)
        marks = mark if marks is None else pc.and_(marks, mark)
    parents = pc.list_parent_indices(values)
    found[np.asarray(parents)[np.asarray(marks)]] = True
    return found


def read_places(part: Any) -> tuple[pa.StringArray, NDArray[np.int64]]:
    """Of each row its source file and line, by which versions of one export that are otherwise equal stand
    in order."""
    import pyarrow as pa

    table = part.read(columns=["_source_file", "_source_line"], use_threads=False)
    lines = _one(table.column("_source_line")).cast(pa.int64()).fill_null(-1)
    return _one(table.column("_source_file")).cast(pa.string()), np.asarray(lines)
