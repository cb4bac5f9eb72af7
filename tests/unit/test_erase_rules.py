"""Whose a resource is, where an id stands, and what an erasure leaves of raw bytes."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.exports.erasing.compartment import KEPT, Patient, Standing
from pipeline.exports.erasing.leftovers import quarantined, rewrite_quarantine
from pipeline.exports.erasing.mentions import Needle, blocks_of_anything
from pipeline.exports.erasing.proof import prove
from pipeline.exports.erasing.raw import (
    RawBatch,
    find_following_lines,
    find_lines_of,
    find_sidecar_lines,
    raw_batches,
    rewrite_raw,
)
from pipeline.exports.erasing.tables import Owned, TableRows, find_followers, find_resources
from pipeline.exports.facts import LandedBatch, LandedFile
from pipeline.exports.ledger import Ledger
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.tables.compartment import BEYOND, BY, OF
from pipeline.tables.definitions import elements, is_resource_type
from pipeline.tables.parts import PartWriter
from pipeline.tables.schema import floor_schema

ME = Patient("p1")
EXPORT = "20260101T020000Z"
# The types that CompartmentDefinition/patient 4.0.1 gives parameters for.
IN_THE_COMPARTMENT = """
Account AdverseEvent AllergyIntolerance Appointment AppointmentResponse AuditEvent Basic
BodyStructure CarePlan CareTeam ChargeItem Claim ClaimResponse ClinicalImpression Communication
CommunicationRequest Composition Condition Consent Coverage CoverageEligibilityRequest
CoverageEligibilityResponse DetectedIssue DeviceRequest DeviceUseStatement DiagnosticReport
DocumentManifest DocumentReference Encounter EnrollmentRequest EpisodeOfCare ExplanationOfBenefit
FamilyMemberHistory Flag Goal Group ImagingStudy Immunization ImmunizationEvaluation
ImmunizationRecommendation Invoice List MeasureReport Media MedicationAdministration
MedicationDispense MedicationRequest MedicationStatement MolecularSequence NutritionOrder
Observation Patient Person Procedure Provenance QuestionnaireResponse RelatedPerson RequestGroup
ResearchSubject RiskAssessment Schedule ServiceRequest Specimen SupplyDelivery SupplyRequest
VisionPrescription
"""


def ref(text: str, **more: str) -> dict[str, Any]:
    return {"reference": text, **more}


def of(kind: str, **members: Any) -> Standing:
    return ME.standing({"resourceType": kind, "id": "x", **members})


def test_every_type_of_the_compartment_has_its_rule_and_no_other_has() -> None:
    assert {*OF, *BY, *KEPT} == set(IN_THE_COMPARTMENT.split())
    assert not BEYOND.keys() & set(IN_THE_COMPARTMENT.split())


@pytest.mark.parametrize("rules", [OF, BY, KEPT, BEYOND], ids=["of", "by", "kept", "beyond"])
def test_every_path_is_a_reference_of_r4(rules: dict[str, tuple[str, ...]]) -> None:
    for kind, paths in rules.items():
        assert is_resource_type(kind)
        for path in paths:
            at = kind
            for name in path.split("."):
                at = next(each.type for each in elements(at) if each.name == name)
            assert at == "Reference", f"{kind}.{path}"


@pytest.mark.parametrize(
    "text",
    [
        "Patient/p1",
        "Patient/p1/_history/7",
        "https://ehr.example.org/fhir/Patient/p1",
        "https://ehr.example.org/fhir/Patient/p1/_history/2",
        "http://internal:8080/Patient/p1/",
        "urn:uuid:p1",
    ],
)
def test_every_form_of_a_reference_is_the_patient(text: str) -> None:
    """Protocol fact 32."""
    assert of("Observation", subject=ref(text)) is Standing.OWN


@pytest.mark.parametrize(
    "text",
    ["Patient/p12", "Patient/xp1", "Group/p1", "Practitioner/p1", "#p1", "Patient?identifier=p1", "p1", ""],
)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert of("Observation", subject=ref(text)) is not Standing.OWN


RULED: list[tuple[Standing, str, dict[str, Any]]] = [
    (Standing.OWN, "Encounter", {"subject": ref("Patient/p1")}),
    (Standing.OWN, "Coverage", {"beneficiary": ref("Patient/p1"), "subscriber": ref("Patient/p2")}),
    (Standing.OTHERS, "Coverage", {"beneficiary": ref("Patient/p2"), "subscriber": ref("Patient/p1")}),
    (Standing.OWN, "Observation", {"performer": [ref("Patient/p1")]}),
    (Standing.OTHERS, "Observation", {"subject": ref("Patient/p2"), "performer": [ref("Patient/p1")]}),
    (Standing.OWN, "Observation", {"subject": ref("Patient/p1"), "performer": [ref("Patient/p2")]}),
    (Standing.NOBODY, "Observation", {"subject": ref("Group/g")}),
    (Standing.OTHERS, "Account", {"subject": [ref("Patient/p1"), ref("Patient/p2")]}),
    (
        Standing.OWN,
        "Appointment",
        {"participant": [{"actor": ref("Patient/p1")}, {"actor": ref("Location/l")}]},
    ),
    (Standing.OTHERS, "Appointment", {"participant": [{"actor": ref(f"Patient/p{n}")} for n in (1, 2)]}),
    (Standing.OWN, "Provenance", {"target": [ref("Patient/p1"), ref("Observation/o")]}),
    (Standing.OTHERS, "Group", {"member": [{"entity": ref("Patient/p1")}]}),
    (Standing.OTHERS, "Patient", {"link": [{"other": ref("Patient/p1")}]}),
    (Standing.OWN, "Device", {"patient": ref("Patient/p1")}),
    (Standing.OWN, "Unheard", {"subject": ref("Patient/p1")}),
    (Standing.NOBODY, "Organization", {"partOf": ref("Organization/p1")}),
    (Standing.NOBODY, "Claim", {"patient": "Patient/p1"}),
]


@pytest.mark.parametrize(("standing", "kind", "members"), RULED, ids=[f"{r[1]}-{r[0].value}" for r in RULED])
def test_a_resource_of_one_is_erased_and_one_of_several_is_not(
    standing: Standing, kind: str, members: dict[str, Any]
) -> None:
    assert of(kind, **members) is standing


def test_the_patient_itself() -> None:
    assert ME.standing({"resourceType": "Patient", "id": "p1"}) is Standing.OWN
    assert ME.standing({"resourceType": "Patient", "id": "p2"}) is Standing.OTHERS


IDS = st.text("ab1-.", min_size=1, max_size=6)


@settings(max_examples=60)
@given(IDS, IDS, st.sampled_from(["{}", '"{}"', "Patient/{}/_history/1", "x {}, y", "p%2F{}", "é{}ü"]))
def test_an_id_is_found_alone_and_alike_in_text_bytes_and_columns(needle: str, other: str, form: str) -> None:
    text = form.format(other)
    found = Needle(needle).in_text(text)
    assert found or needle != other or other.endswith(".") or other[0] == "."
    if needle not in text:
        assert not found
    assert Needle(needle).in_bytes(text.encode()) == found
    batch = pa.record_batch({"a": pa.array([None, [{"b": text}], [], [None, {"b": None}]])})
    assert Needle(needle).in_rows(batch).tolist() == [False, found, False, False]


def test_an_id_within_another_is_another() -> None:
    texts = {"Patient/12": True, "Patient/123": False, "1.12": False, "12-a": False, "at 12.": True}
    assert {each: Needle("12").in_text(each) for each in texts} == texts
    assert Needle("12").in_line(rb'{"reference":"Patient\u002f\u0031\u0032"}')
    assert Needle("12").in_line(rb'{"text":"see\n12"}')
    assert not Needle("12").in_line(rb'{"text":"see 120"}')


# --- raw bytes ---------------------------------------------------------------------------------------

FIRST = [
    b'\xef\xbb\xbf{"resourceType":"Observation","id":"a","subject":{"reference":"Patient/p1"}}\r',
    b'{"resourceType":"Observation","id":"b","valueQuantity":{"value":1.50},"subject":{"reference":"Patient/p2"}}',
    b"",
    b'{"resourceType":"Observation","id":"c","subject":{"reference":"Patient/p1"},',
]
SECOND = [b'{"resourceType":"Observation","id":"d","note":"of Patient/p2"}', b'{"resourceType":"X"']


def landed(session: Session, kind: str, *contents: bytes, encoding: str) -> LandedBatch:
    """Files packed into one raw file, as `landing` does it."""
    import hashlib

    packed, files = b"", []
    for index, content in enumerate(contents):
        stored = gzip.compress(content) if encoding == "gzip" else content
        files.append(
            LandedFile(
                kind="output",
                index=index,
                type="Observation",
                url="",
                count=None,
                lines=sum(1 for line in content.splitlines() if line.strip()),
                decoded_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                encoding=encoding,  # type: ignore[arg-type]
                etag=None,
                offset=len(packed),
                length=len(stored),
            )
        )
        packed += stored
    where = f"hosp/raw/{EXPORT}/{kind}/000000-0001-abc.ndjson"
    assert session.lake.put_new(where, packed)
    batch = LandedBatch(at=datetime.now(UTC), type=kind, number=0, attempt=1, raw=where, files=tuple(files))
    session.ledger.write(EXPORT, f"landed/{kind}-000000.json", batch)
    return batch


@pytest.fixture
def session(tmp_path: Path) -> Session:
    config = Config.model_validate(
        {
            "lake": str(tmp_path / "lake"),
            "sources": [
                {
                    "name": "hosp",
                    "fhir_url": "http://127.0.0.1:1/fhir",
                    "auth": {"client_id": "x", "private_key": "file:none.pem"},
                    "export": {"level": "system"},
                }
            ],
        }
    )
    return Session(config, config.source(None), this_process("test"))


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_lines_are_left_blank_and_every_other_byte_stays(session: Session, encoding: str) -> None:
    """The new raw file stands in for the old one, and can be checked and read as that one could."""
    contents = b"\n".join(FIRST) + b"\n", b"\n".join(SECOND)
    landed(session, "observation", *contents, encoding=encoding)
    (raw,) = raw_batches(session)
    find_lines_of(session, Owned(ME), Needle("p1"), raw)
    assert raw.files == {"output-000000": {1: b"", 4: b""}}
    rewrite_raw(session, raw)
    (batch,) = Ledger(session.lake, "hosp").landed(EXPORT)
    assert session.lake.sizes(f"hosp/raw/{EXPORT}/observation").keys() == {batch.raw.rpartition("/")[2]}
    first, second = batch.files
    stored = session.lake.read(batch.raw) or b""
    assert len(stored) == batch.raw_bytes
    parts = [stored[each.offset : each.offset + each.length] for each in batch.files]
    if encoding == "gzip":
        parts = [gzip.decompress(each) for each in parts]
    assert parts[0] == b"\n" + FIRST[1] + b"\n\n\n", "also a line that is broken, where it names the patient"
    assert parts[1] == contents[1]
    assert (first.lines, first.erased, second.lines, second.erased) == (1, 2, 2, 0)
    assert first.decoded_bytes == len(parts[0])
    again = raw_batches(session)
    find_lines_of(session, Owned(ME), Needle("p1"), again[0])
    assert not again[0].files
    find_lines_of(session, Owned(Patient("p2")), Needle("p2"), again[0])
    rewrite_raw(session, again[0])
    (batch,) = session.ledger.landed(EXPORT)
    assert batch.files[0].erased == 3, "one erasure after the other"


@pytest.mark.parametrize(
    ("goes", "line"),
    [
        (True, b'{"resourceType":"Patient","id":"1","name":[{"family":"'),
        (True, b'{"name":[{"id":"2"}],"id" : "1", "resourceType" : "Patient", "gender'),
        (True, b'{"resourceType":"Observation","id":"9","subject":{"reference":"Patient/1"},'),
        (True, b'{"resourceType":"Task","for":{"reference":"http:\\/\\/x\\/Patient\\/1\\/_history\\/3"'),
        (True, b'x"id":"9","subject":{"reference":"Patient/1"}}'),
        (False, b'{"resourceType":"Observation","valueInteger":1,"subject":{"reference":"Patient/2"}'),
        (False, b'{"resourceType":"Observation","id":"1","subject":{"reference":"Patient/2"}'),
        (False, b'{"resourceType":"Observation","id":"1","status":"final",'),
        (False, b'{"resourceType":"Observation","subject":{"reference":"Patient/12"},"note":[{"text":"see 1'),
        (False, b'{"resourceType":"Flag","subject":{"reference":"Patient/2"},"author":"Patient/1"'),
        (False, b'{"resourceType":"Patient","id":"2","identifier":[{"id":"1","value":"1"}],'),
        (False, b'{"resourceType":"Patient","id":"2","link":[{"other":{"reference":"Patient/1"}}],'),
        (False, b'{"contained":[{"resourceType":"Patient","id":"1"}],"resourceType":"Patient","id":"2",'),
        (False, b'{"resourceType":"Group","member":[{"entity":{"reference":"Patient/1"}},'),
        (False, b'{"resourceType":"Organization","id":"1","name":"of Patient/1'),
        (False, b'{"id":"1","status":'),
    ],
)  # fmt: skip
def test_a_line_that_is_no_json_goes_only_where_it_is_certainly_the_patients(
    session: Session, goes: bool, line: bytes
) -> None:
    """An id may be short, and stand in anybody's lines; those are mentions."""
    landed(session, "observation", line + b"\n", encoding="identity")
    (raw,) = raw_batches(session)
    find_lines_of(session, Owned(Patient("1")), Needle("1"), raw)
    assert bool(raw.files) == goes
    found = prove(session, Owned(Patient("1")), Needle("1"))
    assert (found.owned["raw"], found.mentions["raw"]) == (goes, not goes)


def test_records_of_the_quarantine_go_by_their_lines_alone(session: Session) -> None:
    """A path has numbers, and a reason words of anybody."""
    records = [
        {"file": "output-000001", "line": line, "path": "entry[1]", "reason": "1 is no code", "sha256": ""}
        for line in (1, 2)
    ]
    data = "".join(json.dumps(each) + "\n" for each in records).encode()
    path = f"hosp/quarantine/{EXPORT}/0001/observation-00000.ndjson"
    assert session.lake.put_new(path, data)
    lines = {(EXPORT, "output-000001", 2)}
    assert quarantined(session, set()) == {}
    assert quarantined(session, lines) == {path: 1}
    rewrite_quarantine(session, path, lines)
    assert session.lake.read(path) == data.splitlines(keepends=True)[0]


def test_sidecars_keep_what_is_about_others(session: Session) -> None:
    """Protocol facts 22 and 31: a Bundle loses entries, an OperationOutcome its texts."""
    owned = Owned(ME)
    owned.ids["Observation"] = {"a", "b"}
    owned.others.add(("Observation", "b"))
    entries = [{"request": {"method": "DELETE", "url": url}} for url in ("Patient/p1", "Observation/a")]
    kept = [{"request": {"method": "DELETE", "url": url}} for url in ("Patient/p2", "Observation/b")]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [*entries, *kept]}
    landed(session, "deleted", json.dumps(bundle).encode(), encoding="identity")
    outcome = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": "processing", "diagnostics": "Patient/p1 is broken"}],
    }
    landed(session, "error", json.dumps(outcome).encode(), encoding="identity")
    found = {each.batch.type: each for each in raw_batches(session)}
    for raw in found.values():
        find_sidecar_lines(session, owned, Needle("p1"), raw)

    def instead(raw: RawBatch) -> Any:
        return json.loads(raw.files["output-000000"][1])

    assert instead(found["deleted"]) == bundle | {"entry": kept}
    assert instead(found["error"])["issue"] == [{"severity": "error", "code": "processing"}]


VERSIONS = [("a", "p1"), ("a", None), ("b", "p1"), ("b", None), ("b", "p2"), ("c", None), ("d", "p2")]
"""Observations: id and patient. One without a patient is shortened, or marked as deleted."""


def test_versions_that_name_nobody_go_with_those_of_the_same_id(session: Session, tmp_path: Path) -> None:
    """And an id that is another's now stays among the deletions; in raw lines and in rows alike."""
    resources: list[dict[str, Any]] = [
        {"resourceType": "Observation", "id": name, **({"subject": ref(f"Patient/{who}")} if who else {})}
        for name, who in VERSIONS
    ]
    content = b"\n".join(json.dumps(each).encode() for each in resources)
    landed(session, "observation", content, encoding="identity")
    with PartWriter(tmp_path / "part", floor_schema("Observation")) as writer:
        writer.write(pa.Table.from_pylist(resources))
        writer.close()
    session.lake.put_file(tmp_path / "part", "hosp/tables/observation/part")
    table = TableRows("observation", "hosp/tables/observation", "Observation", ("part",))
    needle = Needle("p1")
    (raw,) = raw_batches(session)
    of_lines, of_rows = Owned(ME), Owned(ME)
    find_lines_of(session, of_lines, needle, raw)
    find_resources(session, of_rows, needle, table)
    assert table.rows["part"].tolist() == [0, 2]
    find_following_lines(session, of_lines, raw)
    find_followers(session, of_rows, table)
    assert sorted(raw.files["output-000000"]) == [1, 2, 3, 4]
    assert table.rows["part"].tolist() == [0, 1, 2, 3]
    assert of_lines.gone("Observation") == of_rows.gone("Observation") == {"a"}


def test_what_is_cut_or_in_several_members_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    members = gzip.compress(b"one Patient/p1\n") + gzip.compress(b"two" * 9000)
    for length, found in ((len(members), b"one Patient/p1\n" + b"two" * 9000), (len(members) - 9, None)):
        (tmp_path / "raw").write_bytes(members[:length])
        read = b"".join(blocks_of_anything(tmp_path / "raw"))
        assert read == found if found else read.startswith(b"one Patient/p1\n")
