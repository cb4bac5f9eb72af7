"""Values by hand: what each kind of element says in its flat table, and how the parts are written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LakeError
from pipeline.tables.convert import Converter
from pipeline.tables.flat import flatten

US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"
FHIR = "http://hl7.org/fhir/StructureDefinition/"


def deep(folder: Path, resource_type: str, *resources: str | dict[str, Any], rows: int = 1000) -> list[Path]:
    lines = []
    for each in resources:
        text = each if isinstance(each, str) else json.dumps(each)
        lines.append(f'{{"resourceType":"{resource_type}",{text[1:]}'.encode())
    target = folder / f"deep-{len(list(folder.iterdir()))}"
    target.mkdir()
    with Converter(resource_type, None, "e1", target, max_part_rows=rows) as converter:
        converter.add([b"\n".join(lines)], "output-000000")
        return [part.path for part in converter.finish()]


def flat(folder: Path, resource_type: str, *resources: str | dict[str, Any], table: str = "") -> list[Any]:
    written = flatten(resource_type, deep(folder, resource_type, *resources), folder)
    parts = written[table or f"{resource_type.lower()}_flat"]
    return [row for part in parts for row in pq.read_table(part.path).to_pylist()]


def said(row: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith(prefix) and value not in (None, [])}


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


# --- choices -------------------------------------------------------------------------------------------

VALUES: list[tuple[str, dict[str, Any]]] = [
    (
        '"valueQuantity":{"value":1.10,"comparator":"<","unit":"kg","code":"kg","system":"u"}',
        {
            "value_type": "Quantity",
            "value_numeric": 1.1,
            "value_decimal": "1.10",
            "value_comparator": "<",
            "value_unit": "kg",
            "value_unit_code": "kg",
            "value_unit_system": "u",
        },
    ),
    ('"valueInteger":7', {"value_type": "integer", "value_numeric": 7.0, "value_decimal": "7"}),
    ('"valueString":"positive"', {"value_type": "string", "value_string": "positive"}),
    ('"valueBoolean":false', {"value_type": "boolean", "value_boolean": False}),
    ('"valueTime":"10:11:12"', {"value_type": "time", "value_time": "10:11:12"}),
    (
        '"valueCodeableConcept":{"coding":[{"system":"s","code":"c"},{"code":"d"}],"text":"t"}',
        {
            "value_type": "CodeableConcept",
            "value_code": "c",
            "value_system": "s",
            "value_text": "t",
            "value_codings": [
                {"system": "s", "code": "c", "display": None},
                {"system": None, "code": "d", "display": None},
            ],
        },
    ),
    (
        '"valueDateTime":"2020-02"',
        {
            "value_type": "dateTime",
            "value_datetime": "2020-02",
            "value_start": at(2020, 2, 1),
            "value_end": at(2020, 2, 29, 23, 59, 59, 999999),
        },
    ),
    (
        '"valuePeriod":{"start":"2020-01-01","end":"2020-01-02T00:00:00Z"}',
        {
            "value_type": "Period",
            "value_datetime": "2020-01-01",
            "value_start": at(2020, 1, 1),
            "value_end": at(2020, 1, 2, 0, 0, 0, 999999),
        },
    ),
    (
        '"valueRange":{"low":{"value":1.0},"high":{"value":2.50,"unit":"mg"}}',
        {
            "value_type": "Range",
            "value_low": "1.0",
            "value_low_numeric": 1.0,
            "value_high": "2.50",
            "value_high_numeric": 2.5,
            "value_high_unit": "mg",
        },
    ),
    (
        '"valueRatio":{"numerator":{"value":1},"denominator":{"value":128}}',
        {
            "value_type": "Ratio",
            "value_numerator": "1",
            "value_numerator_numeric": 1.0,
            "value_denominator": "128",
            "value_denominator_numeric": 128.0,
        },
    ),
    ('"status":"final"', {}),
]


def test_a_value_says_its_type_and_fills_the_columns_of_that_type(tmp_path: Path) -> None:
    """The same of an Observation and of a component; all types of value share the columns."""
    rows = flat(
        tmp_path,
        "Observation",
        *("{" + member + ',"component":[{' + member + "}]}" for member, _ in VALUES if member[1] == "v"),
        '{"status":"final"}',
    )
    expected = [columns for _, columns in VALUES]
    assert [said(row, "value_") for row in rows if row["component_index"] is None] == expected
    assert [said(row, "value_") for row in rows if row["component_index"] == 1] == expected[:-1]


def test_decimals_keep_their_digits_beside_the_number(tmp_path: Path) -> None:
    digits = ["0.0019263281655490874", "123456789012345678901234567890", "1E2", "-0.0"]
    rows = flat(tmp_path, "Observation", *(f'{{"valueQuantity":{{"value":{each}}}}}' for each in digits))
    assert [row["value_decimal"] for row in rows] == digits
    assert [row["value_numeric"] for row in rows] == [float(each) for each in digits]


def test_effective_is_one_pair_of_columns_for_every_form(tmp_path: Path) -> None:
    rows = flat(
        tmp_path,
        "Observation",
        {"effectiveDateTime": "2020-01-31T02:00:00+01:00"},
        {"effectiveInstant": "2020-01-31T02:00:00.5Z"},
        {"effectivePeriod": {"start": "2019", "end": "2020-06"}},
        {"effectivePeriod": {"start": "2019-05-05"}},
        {"effectiveTiming": {"event": ["2020"]}},
        {"effectiveDateTime": "soon"},
    )
    assert [(row["effective_type"], row["effective_start"], row["effective_end"]) for row in rows] == [
        ("dateTime", at(2020, 1, 31, 1), at(2020, 1, 31, 1, 0, 0, 999999)),
        ("instant", at(2020, 1, 31, 2, 0, 0, 500000), at(2020, 1, 31, 2, 0, 0, 599999)),
        ("Period", at(2019, 1, 1), at(2020, 6, 30, 23, 59, 59, 999999)),
        ("Period", at(2019, 5, 5), None),
        ("Timing", None, None),
        ("dateTime", None, None),
    ]
    assert rows[5]["effective_datetime"] == "soon"


def test_a_medication_is_a_code_or_a_reference(tmp_path: Path) -> None:
    rxnorm = {"system": "urn:oid:2.16.840.1.113883.6.88", "code": "313782"}
    local = {"system": "http://local", "code": "x"}
    coded, linked = flat(
        tmp_path,
        "MedicationRequest",
        {"medicationCodeableConcept": {"coding": [local, rxnorm]}},
        {"medicationReference": {"reference": "#m1", "type": "Medication", "display": "Aspirin"}},
    )
    assert (coded["medication_type"], coded["medication_code"], coded["rxnorm_code"]) == (
        *("CodeableConcept", "x", "313782"),
    )
    assert said(linked, "medication_") == {
        "medication_type": "Reference",
        "medication_reference": "#m1",
        "medication_reference_type": "Medication",
        "medication_reference_display": "Aspirin",
    }


# --- references ----------------------------------------------------------------------------------------

REFERENCES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"reference": "Patient/1"}, {"type": "Patient", "id": "1", "patient_id": "1"}),
    (
        {"reference": "https://x/fhir/Patient/1/_history/2"},
        {"type": "Patient", "id": "1", "patient_id": "1"},
    ),
    ({"reference": "Group/g"}, {"type": "Group", "id": "g"}),
    ({"reference": "urn:uuid:u-1"}, {"id": "u-1"}),
    ({"reference": "urn:uuid:u-1", "type": "Patient"}, {"type": "Patient", "id": "u-1", "patient_id": "u-1"}),
    ({"reference": "#p"}, {}),
    (
        {"reference": "Patient?identifier=s|v"},
        {"type": "Patient", "identifier_system": "s", "identifier_value": "v"},
    ),
    (
        {"type": f"{FHIR}Patient", "identifier": {"system": "s", "value": "v"}},
        {"type": "Patient", "identifier_system": "s", "identifier_value": "v"},
    ),
    (
        {"reference": "Patient?identifier=s|v", "identifier": {"value": "own"}},
        {"type": "Patient", "identifier_value": "own"},
    ),
    ({"display": "someone"}, {"display": "someone"}),
]


def test_a_subject_gives_a_bare_id_in_every_form(tmp_path: Path) -> None:
    """tables fact 11."""
    rows = flat(tmp_path, "Condition", *({"subject": written} for written, _ in REFERENCES))
    for row, (written, expected) in zip(rows, REFERENCES, strict=True):
        found = {name.removeprefix("subject_"): value for name, value in said(row, "subject_").items()}
        assert row["patient_id"] == expected.get("patient_id")
        wanted = {"reference": written.get("reference"), **expected, "patient_id": None}
        assert found == {name: value for name, value in wanted.items() if value is not None}


def test_repeated_references_give_the_first_and_all_ids_in_order(tmp_path: Path) -> None:
    performers = [{"reference": "#x"}, {"reference": "Practitioner/2"}, {"type": "Organization"}]
    (row, none) = flat(tmp_path, "Observation", {"performer": performers}, {"performer": []})
    assert row["performer_id"] is None
    assert row["performer_ids"] == [None, "2", None]
    assert row["performer_types"] == [None, "Practitioner", "Organization"]
    # An empty array is no FHIR; the tables keep it, and so does this one.
    assert (none["performer_id"], none["performer_ids"]) == (None, [])


# --- codes ---------------------------------------------------------------------------------------------


def test_a_well_known_code_is_found_wherever_it_stands(tmp_path: Path) -> None:
    snomed = {"system": "http://snomed.info/sct", "code": "44054006", "display": "Diabetes"}
    icd10 = {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "E11.9"}
    rows = flat(
        tmp_path,
        "Condition",
        {"code": {"coding": [snomed, icd10]}},
        {"code": {"coding": [icd10]}},
        {"code": {"text": "sugar"}},
    )
    assert [(r["code"], r["snomed_code"], r["icd10_code"], r["icd9_code"]) for r in rows] == [
        ("44054006", "44054006", "E11.9", None),
        ("E11.9", None, "E11.9", None),
        (None, None, None, None),
    ]
    assert [each["code"] for each in rows[0]["code_codings"]] == ["44054006", "E11.9"]
    assert (rows[2]["code_text"], rows[2]["code_codings"]) == ("sugar", None)


def test_all_codings_of_all_concepts_are_listed(tmp_path: Path) -> None:
    (row,) = flat(
        tmp_path,
        "Observation",
        {
            "category": [
                {"coding": [{"code": "a"}, {"code": "b"}]},
                {"text": "t"},
                {"coding": [{"code": "c"}]},
            ]
        },
    )
    assert row["category_code"] == "a"
    assert [each["code"] for each in row["category_codings"]] == ["a", "b", "c"]


# --- patients ------------------------------------------------------------------------------------------


def test_us_core_and_identity_of_a_patient(tmp_path: Path) -> None:
    """tables fact 11: race, ethnicity, birth sex are columns."""

    def omb(code: str) -> dict[str, Any]:
        return {"url": "ombCategory", "valueCoding": {"code": code, "display": f"D{code}"}}

    gender = {"coding": [{"code": "g", "display": "G"}], "text": "T"}
    rows = flat(
        tmp_path,
        "Patient",
        {
            "extension": [
                {"url": "http://other", "extension": [omb("wrong")]},
                {
                    "url": f"{US_CORE}race",
                    "extension": [omb("1"), omb("2"), {"url": "text", "valueString": "both"}],
                },
                {"url": f"{US_CORE}birthsex", "valueCode": "F"},
                {"url": f"{US_CORE}genderIdentity", "valueCodeableConcept": gender},
            ],
            "identifier": [
                {"system": "ssn", "value": "9"},
                {"type": {"coding": [{"code": "XX"}, {"code": "MR"}]}, "system": "mrn", "value": "M1"},
            ],
            "name": [
                {"use": "old", "family": "Old"},
                {"use": "official", "family": "New", "given": ["A", "B"], "suffix": ["PhD"]},
            ],
            "telecom": [{"system": "email", "value": "e"}, {"system": "phone", "value": "p"}],
            "address": [
                {"use": "work", "city": "W"},
                {"use": "home", "line": ["1", "2"], "city": "H", "postalCode": "01027"},
            ],
            "deceasedDateTime": "2020",
            "birthDate": "1961",
            "communication": [
                {"language": {"text": "x"}},
                {"preferred": True, "language": {"coding": [{"code": "de"}]}},
            ],
        },
        {"deceasedBoolean": False, "name": [{"use": "old", "family": "Old"}, {"family": "Now"}]},
        {"active": True},
    )
    full, some, bare = rows
    assert said(full, "race") == {
        "race_code": "1",
        "race_display": "D1",
        "race_codes": ["1", "2"],
        "race_displays": ["D1", "D2"],
        "race_text": "both",
    }
    assert said(full, "ethnicity") == {}
    assert said(full, "gender_identity") == {
        "gender_identity_code": "g",
        "gender_identity_display": "G",
        "gender_identity_text": "T",
    }
    expected = {
        "birth_sex": "F",
        "mrn": "M1",
        "mrn_system": "mrn",
        "identifier_value": "9",
        "name_family": "New",
        "name_given": "A B",
        "name_suffix": "PhD",
        "email": "e",
        "phone": "p",
        "address_city": "H",
        "address_line": "1, 2",
        "address_postal_code": "01027",
        "deceased": True,
        "deceased_end": at(2020, 12, 31, 23, 59, 59, 999999),
        "birth_date_start": at(1961, 1, 1),
        "language_code": "de",
    }
    assert {name: full[name] for name in expected} == expected
    assert [each["type_code"] for each in full["identifiers"]] == [None, "XX"]
    assert (some["deceased"], some["name_family"], some["race_codes"]) == (False, "Now", None)
    assert (bare["deceased"], bare["name_family"], bare["mrn"], bare["identifiers"]) == (
        None,
        None,
        None,
        None,
    )


# --- claims --------------------------------------------------------------------------------------------


def test_adjudications_of_an_item_are_found_by_category(tmp_path: Path) -> None:
    def entry(code: str, digits: str) -> str:
        return (
            f'{{"category":{{"coding":[{{"code":"x"}},{{"code":"{code}"}}]}},"amount":{{"value":{digits}}}}}'
        )

    item = (
        f'{{"sequence":4,"net":{{"value":1.50,"currency":"USD"}},"adjudication":['
        f"{entry('submitted', '10.00')},{entry('eligible', '8')},{entry('submitted', '99')}]}}"
    )
    resource = f'{{"id":"b","claim":{{"reference":"Claim/c"}},"item":[{{"sequence":9}},{item}]}}'
    rows = flat(
        tmp_path, "ExplanationOfBenefit", resource, '{"id":"none"}', table="explanationofbenefit_item_flat"
    )
    assert [(r["explanationofbenefit_id"], r["claim_id"], r["item_index"], r["sequence"]) for r in rows] == [
        ("b", "c", 1, 9),
        ("b", "c", 2, 4),
    ]
    second = rows[1]
    assert (second["net"], second["net_numeric"], second["net_currency"]) == ("1.50", 1.5, "USD")
    assert (second["submitted"], second["submitted_numeric"]) == ("10.00", 10.0)
    assert (second["allowed_numeric"], second["benefit"]) == (8.0, None)
    assert [(a["category"], a["category_codes"], a["amount"]) for a in second["adjudications"]] == [
        ("x", ["x", "submitted"], "10.00"),
        ("x", ["x", "eligible"], "8"),
        ("x", ["x", "submitted"], "99"),
    ]
    assert rows[0]["adjudications"] is None


# --- parts ---------------------------------------------------------------------------------------------


def test_parts_are_cut_by_rows_and_hold_every_row_once(tmp_path: Path) -> None:
    resources = [{"id": str(n), "component": [{"valueInteger": n}]} for n in range(500)]
    parts = deep(tmp_path, "Observation", *resources, rows=200)
    assert len(parts) > 1
    written = flatten("Observation", parts, tmp_path, max_part_rows=150)["observation_flat"]
    assert all(part.rows <= 150 for part in written)
    assert all(part.bytes == part.path.stat().st_size for part in written)
    rows = [row for part in written for row in pq.read_table(part.path).to_pylist()]
    keys = {(row["id"], row["component_index"]) for row in rows}
    assert len(rows) == len(keys) == 1000
    assert {row["id"] for row in rows if row["component_index"] == 1} == {str(n) for n in range(500)}


def test_parts_are_cut_by_bytes(tmp_path: Path) -> None:
    source = deep(tmp_path, "Patient", *({"id": str(n)} for n in range(50)))
    one = flatten("Patient", source, tmp_path)["patient_flat"]
    assert [part.rows for part in one] == [50]
    folder = tmp_path / "small"
    folder.mkdir()
    many = flatten("Patient", source, folder, max_part_rows=10, max_part_bytes=1)["patient_flat"]
    assert [part.rows for part in many] == [10] * 5


def test_parts_of_different_nights_become_one_table(tmp_path: Path) -> None:
    """An older part has fewer columns; both are whole in the result, under one schema."""
    old = deep(tmp_path, "Patient", {"id": "old"})
    new = deep(
        tmp_path, "Patient", {"id": "new", "extension": [{"url": f"{US_CORE}birthsex", "valueCode": "M"}]}
    )
    (part,) = flatten("Patient", [*old, *new], tmp_path)["patient_flat"]
    rows = pq.read_table(part.path).to_pylist()
    assert {row["id"]: row["birth_sex"] for row in rows} == {"old": None, "new": "M"}


def test_an_older_part_without_the_derived_number_still_gives_one(tmp_path: Path) -> None:
    quantity = pa.struct([("value", pa.string()), ("unit", pa.string())])
    rows = pa.table({"id": ["1"], "valueQuantity": pa.array([{"value": "1.10", "unit": "kg"}], quantity)})
    pq.write_table(rows, tmp_path / "old.parquet")
    (part,) = flatten("Observation", [tmp_path / "old.parquet"], tmp_path)["observation_flat"]
    (row,) = pq.read_table(part.path).to_pylist()
    assert (row["value_decimal"], row["value_numeric"], row["value_unit"]) == ("1.10", 1.1, "kg")


def test_no_parts_and_no_rows_give_empty_lists(tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), empty)
    nothing: dict[str, list[Any]] = {"claim_flat": [], "claim_item_flat": []}
    assert flatten("Claim", [], tmp_path) == nothing
    assert flatten("Claim", [empty], tmp_path) == nothing
    assert list(tmp_path.iterdir()) == [empty]


def test_an_unreadable_part_leaves_nothing_behind_and_repeats_no_content(tmp_path: Path) -> None:
    """A part that breaks half way: its data pages are damaged, its footer is not."""
    (good,) = deep(
        tmp_path, "Patient", *({"id": f"secret-{n}", "gender": "other"} for n in range(3000)), rows=9999
    )
    bad = tmp_path / "bad.parquet"
    body = bytearray(good.read_bytes())
    body[4 : len(body) // 2] = b"\xff" * (len(body) // 2 - 4)
    bad.write_bytes(bytes(body))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(LakeError) as raised:
        flatten("Patient", [good, bad], out)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert list(out.iterdir()) == []


def test_a_file_name_with_a_quote_is_read(tmp_path: Path) -> None:
    (source,) = deep(tmp_path, "Patient", {"id": "1"})
    odd = source.rename(tmp_path / "it's [one].parquet")
    assert [part.rows for part in flatten("Patient", [odd], tmp_path)["patient_flat"]] == [1]
