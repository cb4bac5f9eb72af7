"""Each of the 146 types gives its flat tables, from resources in which every element is given."""

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


def whole_parts(resource_type: str, folder: Path) -> list[Path]:
    """Parts with two resources that have everything."""
    lines = []
    for turn in range(2):
        resource = {"resourceType": resource_type, **filled(resource_type, 0, turn), "id": f"r{turn}"}
        lines.append(json.dumps(resource).encode())
    with Converter(resource_type, None, "e", folder) as converter:
        converter.add([b"\n".join(lines)], "output-000000")
        return [part.path for part in converter.finish()]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("[x]")).lower()


@pytest.mark.parametrize("resource_type", definitions.RESOURCE_TYPES)
def test_every_type_gives_its_flat_tables(tmp_path: Path, resource_type: str) -> None:
    """Issue 3, build point 7: hand-chosen columns for thirteen types, a generic form for the rest."""
    deep, out = tmp_path / "deep", tmp_path / "flat"
    deep.mkdir()
    out.mkdir()
    written = flatten(resource_type, whole_parts(resource_type, deep), out)
    assert list(written) == [table.name for table in flat_tables(resource_type)]
    rows = read(written[f"{resource_type.lower()}_flat"], flat_tables(resource_type)[0].schema)
    resources = [row for row in rows if row.get("component_index") is None]
    assert sorted(row["id"] for row in resources) == ["r0", "r1"]
    assert all(row["last_updated_start"] is not None for row in rows)
    if resource_type not in BY_HAND:
        assert lost(resource_type, resources) == set()


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
