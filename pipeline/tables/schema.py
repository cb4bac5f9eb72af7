"""Arrow schemas of the tables: the floor, the union that only grows, and their readable text form.

Presence is the floor plus everything ever seen (facts/tables.md, rule 2); types and order are those of
`shape`. All functions are pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from pipeline.errors import LakeError, VerificationFailed
from pipeline.tables.shape import Member, Structure, members

if TYPE_CHECKING:
    import pyarrow as pa

PARTITION_COLUMN = "export_id"
"""The Delta partition column; never part of a schema here, and never inside a Parquet file."""
UNMAPPED = "_unmapped"
"""JSON object of the members that R4 does not define: JSON Pointer (RFC 6901) -> value."""
EXPORT_ID = "_export_id"
SOURCE_FILE = "_source_file"
SOURCE_LINE = "_source_line"
LINEAGE_COLUMNS = (EXPORT_ID, SOURCE_FILE, SOURCE_LINE)

Tree = dict[str, Any]
"""What was seen: member name -> Tree of its children, or None for a leaf."""

_FULL_TYPES: Mapping[str, tuple[str, ...]] = {
    "Coding": ("system", "version", "code", "display", "userSelected"),
    "Period": ("start", "end"),
    "Reference": ("reference", "type", "display"),
}


# --- the floor ---------------------------------------------------------------------------------------


@cache
def floor_schema(resource_type: str) -> pa.Schema:
    """The columns that a table has before any data: every element with its direct children (rule 2).

    Direct children that are data types come with their own simple members; Coding, CodeableConcept, Period
    and Reference are full. Extensions, primitive extensions, `contained`, element ids and backbone elements
    two levels down come when they are first seen. Lineage columns are last; the partition column is not
    part of it. Raises ConfigError for what is no R4 resource type.
    """
    tree: Tree = {}
    for name, member in members(Structure(resource_type)).items():
        if not member.floor:
            continue
        tree[name] = None if member.structure is None else _floor_children(member, member.structure)
    return typed_schema(tree, resource_type)


def _floor_children(member: Member, structure: Structure) -> Tree:
    if full := _full(member):
        return full
    children: Tree = {}
    for name, child in members(structure).items():
        if name == "id" or not child.floor:
            continue
        if child.structure is None:
            children[name] = None
        elif full := _full(child):
            children[name] = full
        elif "." not in child.fhir_type and (simple := _simple_members(child.structure)):
            children[name] = simple
    return children


def _full(member: Member) -> Tree | None:
    if member.fhir_type == "CodeableConcept":
        return {"coding": dict.fromkeys(_FULL_TYPES["Coding"]), "text": None}
    names = _FULL_TYPES.get(member.fhir_type)
    return dict.fromkeys(names) if names else None


def _simple_members(structure: Structure) -> Tree:
    inner = members(structure).items()
    return {name: None for name, child in inner if name != "id" and child.kind not in ("struct", "json")}


# --- from what was seen to a schema ------------------------------------------------------------------


def lineage_fields() -> list[pa.Field]:
    """`_export_id`, `_source_file` (text) and `_source_line` (int64, counted from 1)."""
    import pyarrow as pa

    return [
        pa.field(EXPORT_ID, pa.string()),
        pa.field(SOURCE_FILE, pa.string()),
        pa.field(SOURCE_LINE, pa.int64()),
    ]


def typed_schema(seen: Tree, resource_type: str) -> pa.Schema:
    """The schema of a table in which exactly `seen` is present, typed and ordered by the definitions.

    A structure seen without any member gets its first element: Parquet has no empty structures.
    """
    import pyarrow as pa

    fields = _typed_fields(seen, Structure(resource_type))
    if UNMAPPED in seen:
        fields.append(pa.field(UNMAPPED, pa.string()))
    return pa.schema(fields + lineage_fields())


def _typed_fields(seen: Tree, structure: Structure) -> list[pa.Field]:
    import pyarrow as pa

    known = members(structure)
    present = [member for name, member in known.items() if name in seen] or [next(iter(known.values()))]
    fields = []
    for member in present:
        fields.append(pa.field(member.name, arrow_type(member, seen.get(member.name))))
        fields += [pa.field(name, derived_type(member)) for name in member.derived]
    return fields


def derived_type(member: Member) -> pa.DataType:
    """Of what is computed from a decimal (double) or a date (timestamp[us, UTC]); a list where it repeats."""
    import pyarrow as pa

    value = pa.float64() if member.kind == "decimal" else pa.timestamp("us", "UTC")
    return pa.list_(pa.field("element", value)) if member.many else value


def arrow_type(member: Member, children: Tree | None) -> pa.DataType:
    import pyarrow as pa

    if member.structure is not None:
        value = pa.struct(_typed_fields(children or {}, member.structure))
    elif member.kind == "boolean":
        value = pa.bool_()
    elif member.kind == "integer":
        value = pa.int32()
    else:
        value = pa.string()
    return pa.list_(pa.field("element", value)) if member.many else value


# --- plain form, union and cover ---------------------------------------------------------------------


def plain(schema: pa.Schema) -> pa.Schema:
    """The same schema in one spelling: lists of `element`, everything nullable, no metadata, no large or
    view types (rule 7). What a Delta table or a foreign Parquet file hands out compares equal after it."""
    import pyarrow as pa

    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


# Most calls see the same types again; a wide table has a thousand of them, nested.
@lru_cache(maxsize=4096)
def _plain_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind.fields])
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind):
        return pa.list_(pa.field("element", _plain_type(kind.value_type)))
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    return kind


def union(a: pa.Schema, b: pa.Schema, resource_type: str | None = None) -> pa.Schema:
    """Everything of both, in the order of the definitions; nothing is ever removed or retyped (rule 3).

    With `resource_type` the result does not depend on the order of the arguments. Without one (tables that
    hold no resources) `a`'s columns come first. Raises VerificationFailed naming the path of a member that
    has two types.
    """
    import pyarrow as pa

    structure = Structure(resource_type) if resource_type else None
    merged = _merge(list(plain(a)), list(plain(b)), structure, "")
    if structure is not None:
        tail = [name for name in (UNMAPPED, *LINEAGE_COLUMNS) if name in merged]
        merged = {name: kind for name, kind in merged.items() if name not in tail} | {
            name: merged[name] for name in tail
        }
    return pa.schema([pa.field(name, kind) for name, kind in merged.items()])


def _merge(
    a: Iterable[pa.Field], b: Iterable[pa.Field], structure: Structure | None, path: str
) -> dict[str, pa.DataType]:
    left = {field.name: field.type for field in a}
    right = {field.name: field.type for field in b}
    known = members(structure) if structure is not None else {}
    merged: dict[str, pa.DataType] = {}
    for name in _in_order({**left, **right}, structure):
        inner = known[name].structure if name in known else None
        if name in left and name in right:
            merged[name] = _merge_types(left[name], right[name], inner, f"{path}{name}")
        else:
            kind = left.get(name, right.get(name))
            # Merged with itself: the order inside becomes that of the definitions too.
            merged[name] = _merge_types(kind, kind, inner, f"{path}{name}")
    return merged


def _in_order(names: Mapping[str, Any], structure: Structure | None) -> list[str]:
    if structure is None:
        return list(names)
    order = _column_order(structure)
    return [name for name in order if name in names] + sorted(name for name in names if name not in order)


@cache
def _column_order(structure: Structure) -> dict[str, None]:
    order: dict[str, None] = {}
    for name, member in members(structure).items():
        order |= dict.fromkeys((name, *member.derived))
    return order


def _merge_types(a: pa.DataType, b: pa.DataType, structure: Structure | None, path: str) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_list(a) and pa.types.is_list(b):
        inner = _merge_types(a.value_type, b.value_type, structure, path)
        return pa.list_(pa.field("element", inner))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        merged = _merge(a.fields, b.fields, structure, f"{path}.")
        return pa.struct([pa.field(name, kind) for name, kind in merged.items()])
    if a != b:
        raise VerificationFailed(
            f"Column {path} has the type {_short(a)} in one schema and {_short(b)} in another",
            "A column is never retyped: read the table's history, and write to a new table if it is damaged",
        )
    return a


def _short(kind: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "struct"
    return "list" if pa.types.is_list(kind) else str(kind)


def covers(wide: pa.Schema, narrow: pa.Schema) -> bool:
    """True when every column of `narrow`, at every depth, is in `wide` with the same type."""
    return _covers(list(plain(wide)), list(plain(narrow)))


def _covers(wide: Iterable[pa.Field], narrow: Iterable[pa.Field]) -> bool:
    have = {field.name: field.type for field in wide}
    return all(field.name in have and _covers_type(have[field.name], field.type) for field in narrow)


def _covers_type(wide: pa.DataType, narrow: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_list(wide) and pa.types.is_list(narrow):
        return _covers_type(wide.value_type, narrow.value_type)
    if pa.types.is_struct(wide) and pa.types.is_struct(narrow):
        return _covers(wide.fields, narrow.fields)
    return bool(wide == narrow)


# --- text --------------------------------------------------------------------------------------------


def to_json(schema: pa.Schema) -> str:
    """The schema as readable JSON: `{"id": "string", "name": [{"family": "string"}]}`, order kept."""
    return json.dumps({field.name: _type_to_json(field.type) for field in plain(schema)})


def _type_to_json(kind: pa.DataType) -> Any:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {field.name: _type_to_json(field.type) for field in kind.fields}
    if pa.types.is_list(kind):
        return [_type_to_json(kind.value_type)]
    return str(kind)


def from_json(text: str) -> pa.Schema:
    """The way back from `to_json`. Raises LakeError when the text is not such a schema."""
    import pyarrow as pa

    try:
        members_of_root = json.loads(text)
        return pa.schema([pa.field(name, _type_from_json(kind)) for name, kind in members_of_root.items()])
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        raise LakeError("A stored table schema cannot be read", "The fact that holds it is damaged") from None


def _type_from_json(kind: Any) -> pa.DataType:
    import pyarrow as pa

    if isinstance(kind, dict):
        return pa.struct([pa.field(name, _type_from_json(inner)) for name, inner in kind.items()])
    if isinstance(kind, list):
        return pa.list_(pa.field("element", _type_from_json(kind[0])))
    if kind.startswith("timestamp["):
        unit, _, zone = kind.removeprefix("timestamp[").removesuffix("]").partition(", tz=")
        return pa.timestamp(unit, zone or None)
    return pa.type_for_alias(kind.partition("[")[0])


def schema_hash(schema: pa.Schema) -> str:
    """sha256 (hex) of the schema's names and types; column order does not matter."""
    text = json.dumps(json.loads(to_json(schema)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe(schema: pa.Schema, resource_type: str | None = None) -> list[tuple[str, str, str, bool]]:
    """(name, type, description, nullable) of each top-level column, for a user interface.

    With `resource_type` the type is FHIR's (`list<CodeableConcept>`), else Arrow's in short.
    """
    known = members(Structure(resource_type)) if resource_type else {}
    derived = {name: member for member in known.values() for name in member.derived}
    rows = []
    for field in plain(schema):
        if (member := known.get(field.name)) is not None:
            rows.append((field.name, _fhir_type_text(member), member.short, True))
        elif (origin := derived.get(field.name)) is not None:
            rows.append((field.name, _arrow_text(field.type), _derived_text(field.name, origin), True))
        else:
            rows.append((field.name, _arrow_text(field.type), _OWN_COLUMNS.get(field.name, ""), True))
    return rows


def _derived_text(name: str, origin: Member) -> str:
    if origin.kind == "decimal":
        return f"{origin.name} as a number, rounded to a double"
    return f"{'Earliest' if name.endswith('_start') else 'Latest'} instant that {origin.name} can mean"


_OWN_COLUMNS = {
    UNMAPPED: "Members that R4 does not define: JSON Pointer -> value, as JSON text",
    EXPORT_ID: "The export run that brought this row",
    SOURCE_FILE: "The file it came in",
    SOURCE_LINE: "The line of that file, counted from 1",
    PARTITION_COLUMN: "The export run (partition)",
}


def _fhir_type_text(member: Member) -> str:
    if member.kind == "json":
        return "json"
    name = "BackboneElement" if "." in member.fhir_type else member.fhir_type
    return f"list<{name}>" if member.many else name


def _arrow_text(kind: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_list(kind):
        return f"list<{_arrow_text(kind.value_type)}>"
    return "struct" if pa.types.is_struct(kind) else str(kind)
