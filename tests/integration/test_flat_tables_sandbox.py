"""The sandbox's NDJSON -> Parquet -> flat tables, against an oracle that reads the NDJSON alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from flat_oracle import (
    Row,
    concept,
    date,
    dig,
    every,
    in_system,
    money,
    number,
    observed,
    parse,
    patient,
    period,
    refer,
    span,
    target,
    whole,
)

from pipeline.sandbox import truth
from pipeline.tables.convert import Converter
from pipeline.tables.flat import flat_tables, flatten
from pipeline.tables.parts import HASH_KEY
from pipeline.tables.schema import schema_hash

EXPORT = "20260101T020000Z"
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
RXNORM, CVX = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://hl7.org/fhir/sid/cvx"
US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"


class Flat:
    """All flat tables of the sandbox's data, and the resources that they come from, in file order."""

    def __init__(self, folder: Path) -> None:
        self.resources: dict[str, list[Any]] = {}
        lines: dict[str, list[bytes]] = {}
        for resource_type, line in truth(3, 15, 2, level="system"):
            lines.setdefault(resource_type, []).append(line)
            self.resources.setdefault(resource_type, []).append(parse(line))
        self.files: dict[str, list[str]] = {}
        for resource_type, found in lines.items():
            deep, out = folder / resource_type, folder / f"{resource_type}-flat"
            deep.mkdir()
            out.mkdir()
            with Converter(resource_type, None, EXPORT, deep, max_part_rows=300) as converter:
                converter.add([b"\n".join(found)], "output-000000")
                parts = converter.finish()
            for name, made in flatten(resource_type, [part.path for part in parts], out).items():
                self.files[name] = [str(part.path) for part in made]
        self.connection = duckdb.connect()
        self.connection.execute("SET TimeZone = 'UTC'")
        for name, files in self.files.items():
            if files:
                self.connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({files})")

    def rows(self, name: str, order: str = "_source_line") -> Iterator[Row]:
        found = self.connection.execute(f"SELECT * FROM {name} ORDER BY {order}")
        names = [column[0] for column in found.description or []]
        for row in found.fetchall():
            yield dict(zip(names, row, strict=True))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Flat:
    return Flat(tmp_path_factory.mktemp("flat"))


# --- what each row must say ---


def of_encounter(r: Any) -> Row:
    return {
        "status": r.get("status"),
        "class_code": dig(r, "class", "code"),
        **concept("type", r.get("type")),
        **refer("subject", r.get("subject")),
        **period("period", r.get("period")),
        **concept("reason_code", r.get("reasonCode"), "reason_code"),
        "participant_ids": [target(each)[1] for each in every(r, "participant", "individual") or []] or None,
        "location_id": target(dig(r, "location", "location"))[1],
        "discharge_disposition_code": dig(r, "hospitalization", "dischargeDisposition", "coding", "code"),
        **refer("service_provider", r.get("serviceProvider")),
        "snomed_code": in_system(r.get("type"), SNOMED),
    }


def of_condition(r: Any) -> Row:
    text = r.get("onsetDateTime") or dig(r, "onsetPeriod", "start")
    final = r.get("onsetDateTime") or dig(r, "onsetPeriod", "end")
    return {
        "clinical_status_code": dig(r, "clinicalStatus", "coding", "code"),
        "verification_status_code": dig(r, "verificationStatus", "coding", "code"),
        **concept("category", r.get("category")),
        **concept("code", r.get("code"), "code"),
        "snomed_code": in_system(r.get("code"), SNOMED),
        "icd10_code": in_system(r.get("code"), ICD10),
        **refer("subject", r.get("subject")),
        **refer("encounter", r.get("encounter")),
        "onset_start": span(text)[0],
        "onset_end": span(final)[1],
        "onset_string": r.get("onsetString"),
        **date("recorded_date", r.get("recordedDate")),
    }


def of_medication_request(r: Any) -> Row:
    medication = r.get("medicationCodeableConcept")
    dosage = (r.get("dosageInstruction") or [{}])[0]
    dose = dig(dosage, "doseAndRate", "doseQuantity", "value")
    return {
        "status": r.get("status"),
        "intent": r.get("intent"),
        "reported_boolean": r.get("reportedBoolean"),
        **concept("medication", medication),
        "medication_type": "CodeableConcept" if medication else "Reference",
        "medication_id": target(r.get("medicationReference"))[1],
        "rxnorm_code": in_system(medication, RXNORM),
        **refer("requester", r.get("requester")),
        **date("authored_on", r.get("authoredOn")),
        "dosage_text": dosage.get("text"),
        "dosage_as_needed_boolean": dosage.get("asNeededBoolean"),
        "dosage_frequency": whole(dig(dosage, "timing", "repeat", "frequency")),
        "dosage_period": dig(dosage, "timing", "repeat", "period"),
        "dose": dose,
        "dose_numeric": number(dose),
        "dispense_validity_start": span(dig(r, "dispenseRequest", "validityPeriod", "start"))[0],
        "dispense_repeats_allowed": whole(dig(r, "dispenseRequest", "numberOfRepeatsAllowed")),
        "dispense_quantity": dig(r, "dispenseRequest", "quantity", "value"),
    }


def of_procedure(r: Any) -> Row:
    return {
        "status": r.get("status"),
        **concept("code", r.get("code"), "code"),
        "performed_start": span(r.get("performedDateTime") or dig(r, "performedPeriod", "start"))[0],
        "performed_end": span(r.get("performedDateTime") or dig(r, "performedPeriod", "end"))[1],
        "snomed_code": in_system(r.get("code"), SNOMED),
        **refer("encounter", r.get("encounter")),
    }


def of_immunization(r: Any) -> Row:
    return {
        "status": r.get("status"),
        **concept("vaccine_code", r.get("vaccineCode"), "vaccine_code"),
        "cvx_code": in_system(r.get("vaccineCode"), CVX),
        "occurrence_start": span(r.get("occurrenceDateTime"))[0],
        "primary_source": r.get("primarySource"),
        "lot_number": r.get("lotNumber"),
        **refer("encounter", r.get("encounter")),
    }


def of_allergy(r: Any) -> Row:
    return {
        "type": r.get("type"),
        "category": dig(r, "category"),
        "category_all": r.get("category"),
        "criticality": r.get("criticality"),
        **concept("code", r.get("code"), "code"),
        **date("recorded_date", r.get("recordedDate")),
        "reaction_severity": dig(r, "reaction", "severity"),
    }


def of_report(r: Any) -> Row:
    return {
        "status": r.get("status"),
        **concept("code", r.get("code"), "code"),
        "loinc_code": in_system(r.get("code"), LOINC),
        "effective_start": span(r.get("effectiveDateTime") or dig(r, "effectivePeriod", "start"))[0],
        **date("issued", r.get("issued")),
        **refer("result", r.get("result"), many=True),
        "conclusion": r.get("conclusion"),
        "form_content_type": dig(r, "presentedForm", "contentType"),
    }


def of_document(r: Any) -> Row:
    return {
        "status": r.get("status"),
        **concept("type", r.get("type")),
        **date("date", r.get("date")),
        **refer("author", r.get("author"), many=True),
        **refer("custodian", r.get("custodian")),
        "attachment_content_type": dig(r, "content", "attachment", "contentType"),
        "attachment_size": whole(dig(r, "content", "attachment", "size")),
        "encounter_id": target(dig(r, "context", "encounter"))[1],
        **period("context_period", dig(r, "context", "period")),
        "identifier_value": dig(r, "identifier", "value"),
    }


def of_coverage(r: Any) -> Row:
    payor = refer("payor", r.get("payor"), many=True)
    plan = [each for each in r.get("class", []) if dig(each, "type", "coding", "code") == "plan"]
    return {
        "status": r.get("status"),
        "subscriber_number": r.get("subscriberId"),
        **refer("beneficiary", r.get("beneficiary")),
        **payor,
        **period("period", r.get("period")),
        "plan_value": dig({"x": plan}, "x", "value"),
        "order": whole(r.get("order")),
    }


def of_patient(r: Any) -> Row:
    def us_core(name: str) -> Any:
        return next((each for each in r.get("extension", []) if each["url"] == US_CORE + name), {})

    def omb(name: str, part: str) -> list[str] | None:
        inner = us_core(name).get("extension", [])
        return [e["valueCoding"][part] for e in inner if e["url"] == "ombCategory"] or None

    def text(name: str) -> str | None:
        inner = us_core(name).get("extension", [])
        return next((each["valueString"] for each in inner if each["url"] == "text"), None)

    def telecom(system: str) -> str | None:
        return next((each["value"] for each in r.get("telecom", []) if each.get("system") == system), None)

    mrn = [i for i in r.get("identifier", []) if "MR" in (every(i, "type", "coding", "code") or [])]
    names = r.get("name", [])
    name = next((each for each in names if each.get("use") == "official"), (names or [{}])[0])
    return {
        "mrn": dig({"x": mrn}, "x", "value"),
        "name_family": name.get("family"),
        "name_given": " ".join(each for each in name.get("given", []) if each) or None,
        "gender": r.get("gender"),
        **date("birth_date", r.get("birthDate")),
        "deceased": True if "deceasedDateTime" in r else r.get("deceasedBoolean"),
        "deceased_start": span(r.get("deceasedDateTime"))[0],
        "race_codes": omb("race", "code"),
        "race_displays": omb("race", "display"),
        "race_code": (omb("race", "code") or [None])[0],
        "race_text": text("race"),
        "ethnicity_codes": omb("ethnicity", "code"),
        "ethnicity_text": text("ethnicity"),
        "birth_sex": us_core("birthsex").get("valueCode"),
        "phone": telecom("phone"),
        "email": telecom("email"),
        "address_city": dig(r, "address", "city"),
        "address_postal_code": dig(r, "address", "postalCode"),
        "marital_status_code": dig(r, "maritalStatus", "coding", "code"),
    }


def of_claim(r: Any) -> Row:
    encounters = every(r, "item", "encounter")
    return {
        "status": r.get("status"),
        "use": r.get("use"),
        **concept("type", r.get("type")),
        **period("billable_period", r.get("billablePeriod")),
        **date("created", r.get("created")),
        **refer("provider", r.get("provider")),
        "coverage_id": target(dig(r, "insurance", "coverage"))[1],
        "diagnosis_codes": every(r, "diagnosis", "diagnosisCodeableConcept", "coding", "code"),
        "diagnosis_ids": _ids(every(r, "diagnosis", "diagnosisReference")),
        "encounter_ids": _ids(encounters),
    }


def _ids(references: list[Any] | None) -> list[str | None] | None:
    return None if references is None else [target(each)[1] for each in references]


def of_bill(r: Any) -> Row:
    return {**of_claim(r), **money("total", r.get("total"))}


def _amount(entries: list[Any], *codes: str) -> str | None:
    for each in entries:
        if set(every(each, "category", "coding", "code") or []) & set(codes):
            return dig(each, "amount", "value")  # type: ignore[no-any-return]
    return None


def of_explanation(r: Any) -> Row:
    submitted = _amount(r.get("total", []), "submitted")
    return {
        **of_claim(r),
        "outcome": r.get("outcome"),
        "claim_id": target(r.get("claim"))[1],
        "total_submitted": submitted,
        "total_submitted_numeric": number(submitted),
        "payment_amount": dig(r, "payment", "amount", "value"),
        "payment_amount_currency": dig(r, "payment", "amount", "currency"),
    }


RULES: dict[str, tuple[str, Callable[[Any], Row]]] = {
    "Encounter": ("subject", of_encounter),
    "Condition": ("subject", of_condition),
    "MedicationRequest": ("subject", of_medication_request),
    "Procedure": ("subject", of_procedure),
    "Immunization": ("patient", of_immunization),
    "AllergyIntolerance": ("patient", of_allergy),
    "DiagnosticReport": ("subject", of_report),
    "DocumentReference": ("subject", of_document),
    "Coverage": ("beneficiary", of_coverage),
    "Patient": ("", of_patient),
    "Claim": ("patient", of_bill),
    "ExplanationOfBenefit": ("patient", of_explanation),
}


def differences(row: Row, expected: Row) -> Row:
    return {name: (row[name], value) for name, value in expected.items() if row[name] != value}


@pytest.mark.parametrize("resource_type", RULES)
def test_each_row_says_what_its_resource_says(flat: Flat, resource_type: str) -> None:
    """tables fact 11: typed numbers and times beside the text, bare ids, first and all codings, US Core."""
    about, rule = RULES[resource_type]
    resources = flat.resources[resource_type]
    rows = list(flat.rows(f"{resource_type.lower()}_flat"))
    assert len(rows) == len(resources) > 0
    for row, resource in zip(rows, resources, strict=True):
        expected = {"id": resource["id"], **rule(resource), "_export_id": EXPORT}
        expected |= date("last_updated", dig(resource, "meta", "lastUpdated"))
        if about:
            expected["patient_id"] = patient(resource.get(about))
        assert differences(row, expected) == {}


def test_an_observation_has_a_row_and_each_component_one_more(flat: Flat) -> None:
    order = "_source_line, component_index NULLS FIRST"
    rows = list(flat.rows("observation_flat", order))
    expected: list[Row] = []
    for resource in flat.resources["Observation"]:
        inherited = {
            "id": resource["id"],
            "patient_id": patient(resource.get("subject")),
            "status": resource.get("status"),
            **concept("category", resource.get("category")),
            **refer("encounter", resource.get("encounter")),
            "effective_start": span(
                resource.get("effectiveDateTime")
                or resource.get("effectiveInstant")
                or dig(resource, "effectivePeriod", "start")
            )[0],
            **date("issued", resource.get("issued")),
        }
        for index, part in enumerate([resource, *resource.get("component", [])]):
            parent = {"parent_code": dig(resource, "code", "coding", "code") if index else None}
            own = {
                "component_index": index or None,
                **concept("code", part.get("code"), "code"),
                "loinc_code": in_system(part.get("code"), LOINC),
                **observed(part),
            }
            expected.append({**inherited, **parent, **own})
    assert len(rows) == len(expected)
    assert any(row["component_index"] for row in rows)
    for row, want in zip(rows, expected, strict=True):
        assert differences(row, want) == {}


@pytest.mark.parametrize("resource_type", ["Claim", "ExplanationOfBenefit"])
def test_items_are_a_table_that_joins_with_their_claim(flat: Flat, resource_type: str) -> None:
    name = resource_type.lower()
    rows = list(flat.rows(f"{name}_item_flat", "_source_line, item_index"))
    expected = []
    for resource in flat.resources[resource_type]:
        for index, item in enumerate(resource.get("item", []), start=1):
            begin = item.get("servicedDate") or dig(item, "servicedPeriod", "start")
            final = item.get("servicedDate") or dig(item, "servicedPeriod", "end")
            row = {
                f"{name}_id": resource["id"],
                "item_index": index,
                "sequence": whole(item.get("sequence")),
                "patient_id": patient(resource.get("patient")),
                **concept("product_or_service", item.get("productOrService")),
                "snomed_code": in_system(item.get("productOrService"), SNOMED),
                "serviced_start": span(begin)[0],
                "serviced_end": span(final)[1],
                "quantity": dig(item, "quantity", "value"),
                **money("unit_price", item.get("unitPrice")),
                **money("net", item.get("net")),
                "factor_numeric": number(item.get("factor")),
                "diagnosis_sequence": [int(each) for each in item.get("diagnosisSequence", [])] or None,
                "encounter_ids": _ids(every(item, "encounter")),
            }
            if resource_type == "ExplanationOfBenefit":
                row |= of_adjudications(item)
            expected.append(row)
    assert len(rows) == len(expected) > 0
    for row, want in zip(rows, expected, strict=True):
        assert differences(row, want) == {}


def of_adjudications(item: Any) -> Row:
    entries = item.get("adjudication", [])
    blue = "https://bluebutton.cms.gov/resources/variables/"
    common = {
        "submitted": ("submitted", f"{blue}line_sbmtd_chrg_amt"),
        "allowed": ("eligible", "allowed", f"{blue}line_alowd_chrg_amt"),
        "deductible": ("deductible", f"{blue}line_bene_ptb_ddctbl_amt"),
        "coinsurance": ("coinsurance", f"{blue}line_coinsrnc_amt"),
    }
    row: Row = {}
    for name, codes in common.items():
        digits = _amount(entries, *codes)
        row |= {name: digits, f"{name}_numeric": number(digits)}
    return row


@pytest.mark.parametrize("resource_type", ["CarePlan", "Goal", "Practitioner", "Organization", "Location"])
def test_types_without_hand_chosen_columns_are_flat_too(flat: Flat, resource_type: str) -> None:
    resources = flat.resources[resource_type]
    rows = list(flat.rows(f"{resource_type.lower()}_flat"))
    assert [row["id"] for row in rows] == [each["id"] for each in resources]
    for row, resource in zip(rows, resources, strict=True):
        expected: Row = {}
        for name in ("subject", "encounter", "managingOrganization", "partOf"):
            if isinstance(resource.get(name), dict):
                snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
                expected |= refer(snake, resource[name])
        for name in ("category", "type"):
            if name in resource and f"{name}_codings" in row:
                expected |= concept(name, resource[name])
        for name in ("status", "intent", "active"):
            if name in resource and name in row:
                expected[name] = resource[name]
        assert expected
        assert differences(row, expected) == {}


def test_numbers_need_no_cast_and_no_json_function(flat: Flat) -> None:
    """Issue 3: `SELECT count(*), median(value_numeric)` over the flat Observations runs as it stands."""
    wanted = "8480-6"
    values = sorted(
        float(part["valueQuantity"]["value"])
        for resource in flat.resources["Observation"]
        for part in [resource, *resource.get("component", [])]
        if in_system(part.get("code"), LOINC) == wanted and "valueQuantity" in part
    )
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    found = flat.connection.execute(
        "SELECT count(value_numeric), median(value_numeric) FROM observation_flat WHERE loinc_code = ?",
        [wanted],
    ).fetchone()
    assert found == (len(values), median)
    assert len(values) > 3


def test_ids_join_without_any_string_function(flat: Flat) -> None:
    found = flat.connection.execute(
        "SELECT count(*), count(p.id) FROM condition_flat c LEFT JOIN patient_flat p ON p.id = c.patient_id"
    ).fetchone()
    conditions = flat.resources["Condition"]
    ids = {each["id"] for each in flat.resources["Patient"]}
    joined = sum(patient(each["subject"]) in ids for each in conditions)
    assert found == (len(conditions), joined)
    assert joined > 0


def test_every_part_has_the_schema_that_the_definitions_give(flat: Flat) -> None:
    """tables fact 3: one identical schema, its hash in the footer."""
    import pyarrow.parquet as pq

    for resource_type in flat.resources:
        for table in flat_tables(resource_type):
            for path in flat.files[table.name]:
                with pq.ParquetFile(path) as part:
                    assert part.schema_arrow.equals(table.schema)
                    assert part.metadata.metadata[HASH_KEY].decode() == schema_hash(table.schema)
