"""Which flat rows are a patient's.

By the lines that they were made from, by the id of a resource that goes, and by their own column of the
patient: a flat table may be older than the deep one, or of resources that this has no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.exports.erasing.mentions import batches_of
from pipeline.exports.erasing.tables import CURRENT, Line, Owned, TableRows, readable
from pipeline.exports.session import Session
from pipeline.tables.definitions import elements, table_name, type_of_table
from pipeline.tables.flat import FLAT_SUFFIX
from pipeline.tables.schema import EXPORT_ID, SOURCE_FILE, SOURCE_LINE

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_ITEMS = f"_item{FLAT_SUFFIX}"
_PATIENT = "patient_id"
_LINE = (EXPORT_ID, SOURCE_FILE, SOURCE_LINE)


def flat_type(name: str) -> str | None:
    """The resource type of a flat table, of exports or current; None for any other table."""
    bare = name.removesuffix(CURRENT)
    for suffix in (_ITEMS, FLAT_SUFFIX):
        if bare.endswith(suffix):
            return type_of_table(bare.removesuffix(suffix))
    return None


def flat_tables_in(found: Iterable[TableRows]) -> list[tuple[str, TableRows]]:
    """The flat ones among tables, with their resource types."""
    return [(kind, each) for each in found if (kind := flat_type(each.name)) is not None]


def find_ids(session: Session, owned: Owned, kind: str, table: TableRows) -> None:
    """Remembers which resources a flat table says to be the patient's."""
    for part in table.parts:
        with readable(session, table.path(part)) as path:
            for _, batch in batches_of(path, [_id_column(kind, table.name), _PATIENT]):
                mask = _by_column(batch, owned, kind)
                if mask.any():
                    ids = batch.column(_id_column(kind, table.name)).to_pylist()
                    owned.ids[kind] |= {ids[row] for row in np.flatnonzero(mask) if ids[row] is not None}


def find_rows(session: Session, owned: Owned, kind: str, table: TableRows, lines: Set[Line]) -> None:
    """The rows that go. `lines`: where rows of the deep table come from that go."""
    columns = [_id_column(kind, table.name), _PATIENT, *_LINE]
    for part in table.parts:
        with readable(session, table.path(part)) as path:
            for begin, batch in batches_of(path, columns):
                mask = owned_rows(batch, owned, kind, table.name)
                if lines and set(_LINE) <= set(batch.schema.names):
                    origins = zip(*(batch.column(name).to_pylist() for name in _LINE), strict=True)
                    mask |= np.fromiter((each in lines for each in origins), np.bool_, batch.num_rows)
                table.add(part, (begin + np.flatnonzero(mask)).tolist())


def owned_rows(batch: pa.RecordBatch, owned: Owned, kind: str, name: str) -> NDArray[np.bool_]:
    """Rows of a flat table that say themselves, or by their id, that they are the patient's."""
    return _by_column(batch, owned, kind) | _is_in(batch, _id_column(kind, name), owned.gone(kind))


def _by_column(batch: pa.RecordBatch, owned: Owned, kind: str) -> NDArray[np.bool_]:
    # Of several subjects the column names the first alone; then lines and ids decide.
    several = any(each.name == "subject" and each.many for each in elements(kind))
    return _is_in(batch, _PATIENT, set() if several else {owned.patient.id})


def _is_in(batch: pa.RecordBatch, column: str, values: Set[str]) -> NDArray[np.bool_]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not values or batch.schema.get_field_index(column) < 0:
        return np.zeros(batch.num_rows, np.bool_)
    texts = batch.column(column).cast(pa.string())
    found: Any = pc.is_in(texts, value_set=pa.array(sorted(values), pa.string()))
    return np.array(found, np.bool_)


def _id_column(kind: str, name: str) -> str:
    return f"{table_name(kind)}_id" if name.removesuffix(CURRENT).endswith(_ITEMS) else "id"
