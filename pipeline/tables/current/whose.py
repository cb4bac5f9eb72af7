"""Whose the rows of a part are: the patients that they name, by the paths of the Patient compartment.

A row is of the patients whom it is about; where it is about nobody, of those whom it names otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tables.compartment import REFERENCE, URN, about, others

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_OTHER = -1
"""A patient who is none of those that were asked about."""
_BETWEEN = ("list", "element", "item")
"""What Parquet puts between a list and what it holds."""
Named = tuple["NDArray[np.int64]", "NDArray[np.int32]"]
"""Rows, and whom each names: its number among those asked about, or `_OTHER`; a row may be there often."""


@dataclass(frozen=True)
class Whose:
    """Of one part, which of some patients its rows are."""

    rows: int
    named: Named

    def of_any(self) -> NDArray[np.bool_]:
        """The rows that name one of the patients at least."""
        at, who = self.named
        found = np.zeros(self.rows, np.bool_)
        found[at[who != _OTHER]] = True
        return found

    def of_others(self, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The rows that are of somebody, and of none of the `wanted` ones."""
        at, who = self.named
        found = np.zeros(self.rows, np.bool_)
        found[at] = True
        found[at[np.append(wanted, False)[who]]] = False
        return found

    def of(self, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The rows that are of nobody but the `wanted` ones, a mask over the patients."""
        at, who = self.named
        theirs = np.append(wanted, False)[who]  # _OTHER is the last
        found = np.zeros(self.rows, np.bool_)
        found[at] = True
        found[at[~theirs]] = False
        return found


def read_whose(part: Any, resource_type: str, patients: pa.StringArray) -> Whose:
    """Of each row of an open `pyarrow.parquet.ParquetFile` with that type's resources.

    References may be relative or absolute, with a version or without (protocol fact 32), or a bare id with
    the type beside it; `urn:uuid:` counts where it is the id of one of the `patients`. A Group, which is
    a list of many, is of nobody.
    """
    rows = part.metadata.num_rows
    if resource_type == "Patient":
        return Whose(rows, _numbered(np.arange(rows), _texts(part, ["id"], "id"), patients))
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int32)
    if resource_type == "Group":
        return Whose(rows, nothing)
    of = _named(part, about(resource_type), patients)
    other = _named(part, others(resource_type), patients)
    only = ~np.isin(other[0], of[0])
    return Whose(rows, (np.concatenate([of[0], other[0][only]]), np.concatenate([of[1], other[1][only]])))


def _named(part: Any, paths: Sequence[str], patients: pa.StringArray) -> Named:
    at, who = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    leaves = _leaves(part)
    for path in paths:
        wanted = [leaves[name] for name in (f"{path}.reference", f"{path}.type") if name in leaves]
        if f"{path}.reference" not in leaves:
            continue
        first, *rest = path.split(".")
        column = _one(part.read(columns=wanted, use_threads=False).column(first))
        for rows, references in _at(column, np.arange(len(column)), rest):
            for found in _patients(rows, references, path, patients):
                at.append(found[0])
                who.append(found[1])
    return np.concatenate(at), np.concatenate(who)


def _leaves(part: Any) -> dict[str, str]:
    """A column's path without what Parquet puts between -> its path."""
    schema = part.schema
    paths = (schema.column(number).path for number in range(len(schema)))
    return {".".join(each for each in path.split(".") if each not in _BETWEEN): path for path in paths}


def _one(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _texts(part: Any, columns: list[str], name: str) -> pa.StringArray:
    import pyarrow as pa

    return _one(part.read(columns=columns, use_threads=False).column(name)).cast(pa.string())


def _at(
    values: pa.Array, rows: NDArray[np.int64], path: Sequence[str]
) -> Iterator[tuple[NDArray[np.int64], pa.StructArray]]:
    """The References at a path, of every element of lists on the way, and the rows that hold them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows = rows[np.asarray(pc.list_parent_indices(values))]
        values = pc.list_flatten(values)
    if not pa.types.is_struct(values.type):
        return
    if not path:
        yield rows, values
    elif values.type.get_field_index(path[0]) >= 0:
        yield from _at(pc.struct_field(values, path[0]), rows, path[1:])


def _patients(
    rows: NDArray[np.int64], references: pa.StructArray, path: str, patients: pa.StringArray
) -> Iterator[Named]:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.struct_field(references, "reference").cast(pa.string())
    named = pc.struct_field(pc.extract_regex(texts, f"(?s){REFERENCE.pattern}"), "id")
    yield _numbered(rows, named, patients)
    urns = pc.struct_field(pc.extract_regex(texts, f"(?i){URN.pattern}"), "id")
    at, who = _numbered(rows, urns, patients)
    yield at[who != _OTHER], who[who != _OTHER]
    if references.type.get_field_index("type") < 0 and path != "patient":
        return
    typed = pa.nulls(len(texts), pa.string())
    if references.type.get_field_index("type") >= 0:
        typed = pc.struct_field(references, "type").cast(pa.string())
    stated = pc.match_substring_regex(
        typed.fill_null("Patient" if path == "patient" else ""), "(^|/)Patient$"
    )
    bare = pc.and_(stated, pc.match_substring_regex(texts, "^[^/#:? ]+$"))
    yield _numbered(rows, pc.if_else(bare, texts, pa.scalar(None, pa.string())), patients)


def _numbered(rows: NDArray[np.int64], names: pa.StringArray, patients: pa.StringArray) -> Named:
    """Those that have a name."""
    import pyarrow.compute as pc

    there = np.asarray(pc.is_valid(names))
    who = np.asarray(pc.index_in(names, value_set=patients).fill_null(_OTHER))
    return rows[there], who[there].astype(np.int32)
