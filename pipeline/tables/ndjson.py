"""The way back: each resource rebuilt from its Parquet row alone.

Decimals become numbers again with the digits they came with, JSON text goes back in its place unparsed, and
what lay in `_unmapped` returns to where it was. Member order and white space are not kept; values are.
Lineage columns and columns that no definition knows are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.errors import LakeError
from pipeline.tables import definitions
from pipeline.tables.parts import batches, open_part
from pipeline.tables.schema import UNMAPPED
from pipeline.tables.shape import Member, Structure, members
from pipeline.tables.shredder import unescape

if TYPE_CHECKING:
    import pyarrow as pa

Build = Callable[[Any], Any]


def to_ndjson(parts: Iterable[str | Path | Any], resource_type: str | None = None) -> Iterator[bytes]:
    """The resources of some parts as JSON lines without newline, in the order of parts and rows.

    Takes paths or open binary files. `resource_type` None means: what the rows say. Raises LakeError for a
    part that cannot be read or holds no R4 resources.
    """
    for source in parts:
        with open_part(source) as part:
            for batch in batches(part):
                yield from lines_of(batch, resource_type)


def lines_of(batch: pa.RecordBatch, resource_type: str | None) -> Iterator[bytes]:
    """The same of some rows."""
    if batch.num_rows == 0:
        return
    structure = Structure(resource_type or _declared_type(batch))
    builders = {name: _builder(member) for name, member in members(structure).items()}
    names: list[str] = []
    columns: list[list[Any]] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        wanted = name in builders or name == UNMAPPED
        if wanted and column.null_count < len(column):
            names.append(name)
            columns.append(_without_null_children(column).to_pylist())
    steps = [builders.get(name) for name in names]
    for values in zip(*columns, strict=True):
        resource: dict[str, Any] = {}
        unmapped = None
        for name, build, value in zip(names, steps, values, strict=True):
            if value is None:
                continue
            if build is None:
                unmapped = value
            else:
                resource[name] = build(value)
        if unmapped is not None:
            _put_back(resource, unmapped)
        yield msgspec.json.encode(resource)


def _declared_type(batch: pa.RecordBatch) -> str:
    position = batch.schema.get_field_index("resourceType")
    declared = batch.column(position)[0].as_py() if position >= 0 else None
    if declared is None or not definitions.is_resource_type(declared):
        raise LakeError("A Parquet part holds no FHIR R4 resources", "Name a table of resources")
    return str(declared)


# --- one value back ----------------------------------------------------------------------------------


def _builder(member: Member) -> Build:
    if member.kind in ("json", "decimal"):
        one: Build = msgspec.Raw
    elif member.structure is not None:
        one = _structure_builder(member.structure)
    else:
        return _same
    return _array_builder(one) if member.many else one


def _same(value: Any) -> Any:
    return value


def _array_builder(one: Build) -> Build:
    def build(values: list[Any]) -> list[Any]:
        return [None if value is None else one(value) for value in values]

    return build


def _structure_builder(structure: Structure) -> Build:
    # Made at the first use: most of a structure's members never occur.
    builders: dict[str, Build] = {}

    def build(value: dict[str, Any]) -> dict[str, Any]:
        built = {}
        for name, content in value.items():
            if content is None or name.startswith("__"):
                continue
            step = builders.get(name)
            if step is None:
                member = members(structure).get(name)
                step = builders[name] = _builder(member) if member is not None else _same
            built[name] = step(content)
        return built

    return build


def _put_back(resource: dict[str, Any], unmapped: str) -> None:
    try:
        found = msgspec.json.decode(unmapped, type=dict[str, msgspec.Raw])
        for pointer, value in found.items():
            *parents, last = [unescape(token) for token in pointer.split("/")[1:]]
            place: Any = resource
            for token in parents:
                place = place[int(token)] if isinstance(place, list) else place[token]
            place[last] = value
    except (msgspec.DecodeError, AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise LakeError(
            f"The column {UNMAPPED} of a row does not fit that row",
            "Ingest that export again from its raw files",
        ) from None


# --- speed -------------------------------------------------------------------------------------------


def _without_null_children(array: pa.Array) -> pa.Array:
    """The same values without the structure members that are null everywhere.

    A wide table is mostly those, and turning them into Python values is most of the work.
    """
    import pyarrow as pa

    kind = array.type
    if pa.types.is_list(kind):
        inner = _without_null_children(array.values)
        validity, offsets = array.buffers()[:2]
        return pa.Array.from_buffers(
            pa.list_(pa.field("element", inner.type)),
            len(array),
            [validity, offsets],
            array.null_count,
            array.offset,
            children=[inner],
        )
    if not pa.types.is_struct(kind):
        return array
    children = {field.name: array.field(position) for position, field in enumerate(kind.fields)}
    kept = {name: child for name, child in children.items() if child.null_count < len(child)}
    if not kept:
        # A structure needs a member to be told from null.
        name, child = next(iter(children.items()))
        kept = {name: child}
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(
        [_without_null_children(child) for child in kept.values()], names=list(kept), mask=mask
    )
