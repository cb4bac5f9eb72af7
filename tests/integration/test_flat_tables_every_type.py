"""Each of the 146 types gives its flat tables, from whole resources and from Parquet with hardly a column."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables import definitions
from pipeline.tables.convert import Converter
from pipeline.tables.flat import flat_tables, flatten
from pipeline.tables.schema import floor_schema

BY_HAND = {
    *("Patient", "Encounter", "Condition", "Observation", "MedicationRequest", "Procedure", "Immunization"),
    *("AllergyIntolerance", "DiagnosticReport", "Claim", "ExplanationOfBenefit", "Coverage"),
    "DocumentReference",
}
LEFT_TO_THE_DEEP_TABLE = {
    *("Timing", "SampledData", "Signature", "ContactDetail", "Contributor", "DataRequirement", "Expression"),
    *("ParameterDefinition", "RelatedArtifact", "TriggerDefinition", "UsageContext", "ElementDefinition"),
    *("ProdCharacteristic", "ProductShelfLife", "MarketingStatus", "Population", "SubstanceAmount"),
}
FIXED: dict[str, Any] = {
    "boolean": True,
    "date": "2020-05",
    "dateTime": "2020-05-06T07:08:09.5+02:00",
    "instant": "2020-05-06T07:08:09Z",
    "time": "10:11:12",
    "base64Binary": "AA==",
    "xhtml": "<div/>",
    "ContactPoint": {"system": "phone", "value": "1"},
    "Narrative": {"status": "generated", "div": "<div/>"},
    "Reference": {
        "reference": "https://x.org/fhir/Patient/p1/_history/3",
        "type": "Patient",
        "display": "P",
        "identifier": {"system": "s", "value": "v"},
    },
}


def filled(path: str, depth: int, turn: int) -> dict[str, Any]:
    """A structure in which every element is given; of each choice one type, another for every `turn`."""
    found: dict[str, Any] = {}
    by_choice: dict[str, list[definitions.Element]] = {}
    for element in definitions.elements(path):
        by_choice.setdefault(element.choice or element.name, []).append(element)
    for offered in by_choice.values():
        element = offered[turn % len(offered)]
        if element.type in ("Extension", "Resource") or element.name in ("implicitRules", "contained"):
            continue
        if depth > 2 and element.type not in definitions.primitive_types():
            continue
        value = one(element.type, depth, turn)
        found[element.name] = [value, value] if element.many else value
    return found


def one(fhir_type: str, depth: int, turn: int) -> Any:
    if fhir_type in FIXED:
        return FIXED[fhir_type]
    if fhir_type in ("integer", "positiveInt", "unsignedInt"):
        return 7
    if fhir_type == "decimal":
        return 1.5
    if fhir_type in definitions.primitive_types():
        return "text"
    return filled(fhir_type, depth + 1, turn)


def parts_of(resource_type: str, folder: Path) -> list[Path]:
    """A part with whole resources, and one that has the floor and no values."""
    lines = []
    for turn in range(2):
        resource = {"resourceType": resource_type, **filled(resource_type, 0, turn), "id": f"r{turn}"}
        lines.append(json.dumps(resource).encode())
    with Converter(resource_type, None, "e", folder) as converter:
        converter.add([b"\n".join(lines)], "output-000000")
        parts = [part.path for part in converter.finish()]
    floor = folder / "floor.parquet"
    schema = floor_schema(resource_type)
    row = {name: "floor" if name == "id" else None for name in schema.names}
    pq.write_table(pa.Table.from_pylist([row], schema=schema), floor)
    return [*parts, floor]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("[x]")).lower()


@pytest.mark.parametrize("resource_type", definitions.RESOURCE_TYPES)
def test_every_type_gives_its_flat_tables(tmp_path: Path, resource_type: str) -> None:
    """Issue 3, build point 7: also from Parquet that lacks nearly every column."""
    deep, out = tmp_path / "deep", tmp_path / "flat"
    deep.mkdir()
    out.mkdir()
    written = flatten(resource_type, parts_of(resource_type, deep), out)
    assert list(written) == [table.name for table in flat_tables(resource_type)]
    rows = read(written[f"{resource_type.lower()}_flat"], flat_tables(resource_type)[0].schema)
    resources = [row for row in rows if row.get("component_index") is None]
    assert sorted(row["id"] for row in resources) == ["floor", "r0", "r1"]
    assert {row["id"] for row in rows if row["last_updated_start"] is not None} == {"r0", "r1"}
    if resource_type not in BY_HAND:
        assert lost(resource_type, [row for row in resources if row["id"].startswith("r")]) == set()


@pytest.mark.parametrize("resource_type", sorted(BY_HAND))
def test_parquet_with_nothing_but_an_id_is_enough(tmp_path: Path, resource_type: str) -> None:
    """Any column may be missing from an older export; the flat table has all of its own anyway."""
    source = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"id": ["1"], "_source_line": [3]}), source)
    main, *items = flatten(resource_type, [source], tmp_path).values()
    (row,) = read(main, flat_tables(resource_type)[0].schema)
    assert {name: value for name, value in row.items() if value is not None} == {"id": "1", "_source_line": 3}
    assert items in ([], [[]])


def read(parts: list[Any], schema: pa.Schema) -> list[dict[str, Any]]:
    assert all(part.schema.equals(schema) for part in parts)
    return [row for part in parts for row in pq.read_table(part.path).to_pylist()]


def lost(resource_type: str, rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Elements that were given, yet no column that is named for them says anything."""
    held = {name for row in rows for name, value in row.items() if value is not None}
    skipped = {"id", "meta", "implicitRules", "language", "text", "contained"}
    skipped |= {"extension", "modifierExtension", "telecom"}
    missing = set()
    for element in definitions.elements(resource_type):
        special = element.type in ("Resource", *LEFT_TO_THE_DEEP_TABLE) or "." in element.type
        name = snake(element.choice or element.name)
        if special or element.name in skipped or any(column.startswith(name) for column in held):
            continue
        missing.add((element.name, element.type))
    return missing
