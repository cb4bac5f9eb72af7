"""Schemas of the tables: the floor, and a union that only grows."""

from __future__ import annotations

import random
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
    expected = {
        element.name
        for element in definitions.elements(resource_type)
        if element.type not in ("Extension", "Resource")
    }
    assert set(floor.names) - {"resourceType", *LINEAGE_COLUMNS} == expected

    def check(kind: pa.DataType) -> None:
        if pa.types.is_list(kind):
            check(kind.value_type)
        elif pa.types.is_struct(kind):
            assert kind.num_fields
            for field in kind.fields:
                check(field.type)
        else:
            assert kind in (pa.string(), pa.bool_(), pa.int32(), pa.int64())

    for field in floor:
        check(field.type)


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
    """tables.md rules 2 and 4: decimals and dates are text, integers int32."""
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
    seen: dict[str, Any] = {"valueQuantity": {}}
    assert typed_schema(seen, "Observation").field("valueQuantity").type == pa.struct([("id", pa.string())])


def test_describe_speaks_fhir() -> None:
    rows = {
        name: (kind, text) for name, kind, text, _ in describe(floor_schema("Observation"), "Observation")
    }
    assert rows["category"] == ("list<CodeableConcept>", "Classification of type of observation")
    assert rows["component"][0] == "list<BackboneElement>"
    assert rows["_source_line"] == ("int64", "The line of that file, counted from 1")
    assert describe(pa.schema([("a", pa.list_(pa.string()))]))[0][1] == "list<string>"
