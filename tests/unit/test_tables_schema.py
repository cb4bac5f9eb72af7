"""Schemas of the tables: the floor, and a union that only grows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, LakeError, VerificationFailed
from pipeline.tables import definitions
from pipeline.tables.schema import (
    LINEAGE_COLUMNS,
    Tree,
    covers,
    describe,
    floor_schema,
    from_json,
    plain,
    schema_hash,
    to_json,
    typed_schema,
    union,
)
from pipeline.tables.shape import Structure, members

TYPES = st.sampled_from(definitions.RESOURCE_TYPES)
CHANCE = st.integers(0, 2**32).map(random.Random)


def some_tree(chance: random.Random, structure: Structure, share: float) -> Tree:
    tree: Tree = {}
    for name, member in members(structure).items():
        if chance.random() < share:
            inner = member.structure
            tree[name] = None if inner is None else some_tree(chance, inner, share * 0.5)
    return tree


def some_schema(chance: random.Random, resource_type: str) -> pa.Schema:
    tree = some_tree(chance, Structure(resource_type), chance.choice([0.05, 0.2, 0.5]))
    if chance.random() < 0.5:
        tree["_unmapped"] = None
    return typed_schema(tree, resource_type)


@given(TYPES, CHANCE)
@settings(max_examples=80, deadline=None)
def test_union_is_commutative_associative_idempotent_and_covers(
    resource_type: str, chance: random.Random
) -> None:
    a, b, c = (some_schema(chance, resource_type) for _ in range(3))
    ab = union(a, b, resource_type)
    assert ab == union(b, a, resource_type)
    assert union(ab, c, resource_type) == union(a, union(b, c, resource_type), resource_type)
    assert union(a, a, resource_type) == a
    assert union(ab, a, resource_type) == ab
    assert covers(ab, a)
    assert covers(ab, b)
    assert covers(a, b) == (union(a, b, resource_type) == a)


@given(TYPES, CHANCE)
@settings(max_examples=40, deadline=None)
def test_schema_survives_its_text_form(resource_type: str, chance: random.Random) -> None:
    schema = some_schema(chance, resource_type)
    assert from_json(to_json(schema)).equals(schema, check_metadata=True)


def shuffled(chance: random.Random, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.large_list(pa.field("item", shuffled(chance, kind.value_type)))
    if pa.types.is_struct(kind):
        fields = [pa.field(field.name, shuffled(chance, field.type)) for field in kind.fields]
        chance.shuffle(fields)
        return pa.struct(fields)
    return pa.large_string() if kind == pa.string() else kind


@given(TYPES, CHANCE)
@settings(max_examples=40, deadline=None)
def test_order_and_spelling_do_not_matter(resource_type: str, chance: random.Random) -> None:
    """A Delta table appends new columns at the end, and readers spell lists and strings in their own way."""
    schema = some_schema(chance, resource_type)
    fields = [pa.field(field.name, shuffled(chance, field.type)) for field in schema]
    chance.shuffle(fields)
    foreign = pa.schema(fields, metadata={"a": "b"})
    assert schema_hash(foreign) == schema_hash(schema)
    assert union(foreign, foreign, resource_type) == schema
    assert covers(foreign, schema)
    assert covers(schema, foreign)


@pytest.mark.parametrize("resource_type", definitions.RESOURCE_TYPES)
def test_floor_is_plain_ordered_and_within_the_definitions(resource_type: str) -> None:
    """tables.md rules 2, 7, 8."""
    floor = floor_schema(resource_type)
    assert floor.names[:3] == ["resourceType", "id", "meta"]
    assert tuple(floor.names[-3:]) == LINEAGE_COLUMNS
    assert "export_id" not in floor.names
    assert plain(floor).equals(floor, check_metadata=True)
    assert len(floor.names) == len(set(floor.names))
    assert set(LEAVES.values()) >= {kind for field in floor for kind in leaf_types(field.type)} - {pa.int64()}
    names = [
        column
        for element in definitions.elements(resource_type)
        if element.type not in ("Extension", "Resource")
        for column in columns_of(element)
    ]
    assert floor.names[:-3] == ["resourceType", *names]
    check_members(list(floor)[1:-3], resource_type)


LEAVES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "integer": pa.int32(),
    "positiveInt": pa.int32(),
    "unsignedInt": pa.int32(),
    "_numeric": pa.float64(),
    "_start": pa.timestamp("us", "UTC"),
    "_end": pa.timestamp("us", "UTC"),
    "string": pa.string(),
}
DERIVED = {
    "decimal": ["_numeric"],
    "date": ["_start", "_end"],
    "dateTime": ["_start", "_end"],
    "instant": ["_start", "_end"],
}


def columns_of(element: definitions.Element) -> list[str]:
    """An element's column, and those computed from it, behind it (tables.md rule 5)."""
    return [element.name, *(f"__{element.name}{ending}" for ending in DERIVED.get(element.type, []))]


def leaf_types(kind: pa.DataType) -> Iterator[pa.DataType]:
    if pa.types.is_list(kind):
        yield from leaf_types(kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind.fields:
            yield from leaf_types(field.type)
    else:
        yield kind


def check_members(fields: list[pa.Field], path: str) -> None:
    """Order, types and derived columns, by the definitions alone."""
    assert fields
    names = [field.name for field in fields]
    elements = [element for element in definitions.elements(path) if element.name in names]
    assert names == [column for element in elements for column in columns_of(element)]
    types = {field.name: field.type for field in fields}
    for element in elements:
        for ending in DERIVED.get(element.type, []):
            kind = LEAVES[ending]
            expected = pa.list_(pa.field("element", kind)) if element.many else kind
            assert types[f"__{element.name}{ending}"].equals(expected, check_metadata=True)
        kind = types[element.name]
        if element.many and not pa.types.is_string(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            check_members(list(kind.fields), element.type)
        else:
            assert kind == LEAVES.get(element.type, pa.string())


def type_at(schema: pa.Schema, path: str) -> pa.DataType:
    first, *rest = path.split(".")
    kind = schema.field(first).type
    for step in rest:
        while pa.types.is_list(kind):
            kind = kind.value_type
        kind = kind.field(step).type
    return kind


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("valueQuantity.value", pa.string()),
        ("valueQuantity.__value_numeric", pa.float64()),
        ("component.valueQuantity.__value_numeric", pa.float64()),
        ("valueSampledData.__period_numeric", pa.float64()),
        ("__issued_start", pa.timestamp("us", "UTC")),
        ("effectivePeriod.__end_end", pa.timestamp("us", "UTC")),
        ("meta.__lastUpdated_start", pa.timestamp("us", "UTC")),
        ("effectiveDateTime", pa.string()),
        ("valueInteger", pa.int32()),
        ("valueBoolean", pa.bool_()),
        ("code.coding.userSelected", pa.bool_()),
        ("component.code.coding.code", pa.string()),
        ("component.valueQuantity.value", pa.string()),
        ("referenceRange.low.value", pa.string()),
        ("subject.reference", pa.string()),
        ("effectivePeriod.start", pa.string()),
        ("meta.tag.code", pa.string()),
    ],
)
def test_floor_types_follow_the_rules(path: str, expected: pa.DataType) -> None:
    """tables.md rules 2, 4 and 5: decimals and dates are text with numbers and instants beside them."""
    assert type_at(floor_schema("Observation"), path) == expected


def test_floor_of_what_is_no_resource_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="Patiant"):
        floor_schema("Patiant")


def test_a_column_with_two_types_is_refused_by_its_path() -> None:
    coding = pa.struct([("code", pa.string())])
    text = pa.schema([("code", pa.struct([("coding", pa.list_(coding))]))])
    number = pa.schema([("code", pa.struct([("coding", pa.list_(pa.struct([("code", pa.int32())])))]))])
    with pytest.raises(VerificationFailed, match=r"code\.coding\.code has the type string .* int32"):
        union(text, number, "Observation")
    assert not covers(text, number)


def test_union_without_a_resource_type_keeps_the_first_schemas_order() -> None:
    a = pa.schema([("z", pa.string()), ("a", pa.int64())])
    b = pa.schema([("b", pa.timestamp("us", "UTC")), ("a", pa.int64())])
    both = union(a, b)
    assert both.names == ["z", "a", "b"]
    assert from_json(to_json(both)) == both


@pytest.mark.parametrize("text", ["", "[]", '{"a": "nonsense"}', '{"a": []}', '{"a": 5}', "{"])
def test_a_damaged_schema_text_is_named(text: str) -> None:
    with pytest.raises(LakeError, match="stored table schema"):
        from_json(text)


def test_a_structure_seen_without_members_gets_one() -> None:
    """tables.md 4: an empty struct breaks the Parquet writer."""
    seen: dict[str, Any] = {"valueQuantity": {}, "component": {}, "_status": {}, "extension": {}}
    schema = typed_schema(seen, "Observation")
    for name in seen:
        kind = schema.field(name).type
        assert (kind.value_type if pa.types.is_list(kind) else kind) == pa.struct([("id", pa.string())])


DEEPER = {"url": None, "extension": {"url": None, "valueDecimal": None, "extension": {"url": None}}}


def test_extensions_are_typed_where_they_are_seen_two_levels_deep() -> None:
    """tables.md rule 6; what lies deeper is one text."""
    seen: Tree = {"extension": DEEPER, "modifierExtension": DEEPER, "contained": {"id": None}}
    schema = typed_schema(seen, "Patient")
    inner = pa.struct(
        [
            pa.field("extension", pa.string()),
            pa.field("url", pa.string()),
            pa.field("valueDecimal", pa.string()),
            pa.field("__valueDecimal_numeric", pa.float64()),
        ]
    )
    outer = pa.struct([("extension", pa.list_(pa.field("element", inner))), ("url", pa.string())])
    assert schema.field("extension").type == pa.list_(pa.field("element", outer))
    assert schema.field("modifierExtension").type == pa.list_(pa.field("element", outer))
    assert schema.field("contained").type == pa.string()


def test_primitive_extensions_stand_behind_their_element_and_what_is_derived_from_it() -> None:
    """tables.md rules 5 and 6: `_birthDate`, and a list of them for a repeated element."""
    beside: Tree = {"id": None, "extension": {"url": None}}
    seen: Tree = {
        "_birthDate": beside,
        "birthDate": None,
        "name": {"_given": beside, "given": None},
        "gender": None,
    }
    schema = typed_schema(seen, "Patient")
    one = pa.struct(
        [
            pa.field("id", pa.string()),
            pa.field("extension", pa.list_(pa.field("element", pa.struct([("url", pa.string())])))),
        ]
    )
    names = [
        *("name", "gender", "birthDate", "__birthDate_start", "__birthDate_end", "_birthDate"),
        *LINEAGE_COLUMNS,
    ]
    assert schema.names == names
    assert schema.field("_birthDate").type == one
    given = pa.struct(
        [
            pa.field("given", pa.list_(pa.field("element", pa.string()))),
            pa.field("_given", pa.list_(pa.field("element", one))),
        ]
    )
    assert schema.field("name").type == pa.list_(pa.field("element", given))


def test_a_repeated_date_has_lists_of_instants() -> None:
    schema = typed_schema({"occurrenceTiming": {"event": None}}, "ServiceRequest")
    instants = pa.list_(pa.field("element", pa.timestamp("us", "UTC")))
    assert schema.field("occurrenceTiming").type == pa.struct(
        [
            pa.field("event", pa.list_(pa.field("element", pa.string()))),
            pa.field("__event_start", instants),
            pa.field("__event_end", instants),
        ]
    )


def test_union_puts_derived_columns_where_their_element_is() -> None:
    """Whichever table knew what first."""
    old = typed_schema({"gender": None, "_unmapped": None}, "Patient")
    new = typed_schema({"birthDate": None, "_birthDate": {}, "active": None}, "Patient")
    both = [
        *("active", "gender", "birthDate", "__birthDate_start", "__birthDate_end", "_birthDate", "_unmapped")
    ]
    assert union(old, new, "Patient").names == [*both, *LINEAGE_COLUMNS]
    assert union(new, old, "Patient").names == [*both, *LINEAGE_COLUMNS]


def test_describe_speaks_fhir() -> None:
    rows = {
        name: (kind, text) for name, kind, text, _ in describe(floor_schema("Observation"), "Observation")
    }
    assert rows["category"] == ("list<CodeableConcept>", "Classification of type of observation")
    assert rows["component"][0] == "list<BackboneElement>"
    assert rows["issued"][0] == "instant"
    assert rows["__issued_start"] == ("timestamp[us, tz=UTC]", "Earliest instant that issued can mean")
    assert rows["__issued_end"] == ("timestamp[us, tz=UTC]", "Latest instant that issued can mean")
    money = describe(typed_schema({"factorOverride": None}, "ChargeItem"), "ChargeItem")
    assert [row[:3] for row in money[:2]] == [
        ("factorOverride", "decimal", "Factor overriding the associated rules"),
        ("__factorOverride_numeric", "double", "factorOverride as a number, rounded to a double"),
    ]
    assert rows["_source_line"] == ("int64", "The line of that file, counted from 1")
    assert describe(pa.schema([("a", pa.list_(pa.string()))]))[0][1] == "list<string>"
