"""The R4 definitions against fhirclient, whose models were generated from the 4.0.1 specification by others.

Compared for every resource, data type and backbone element: names, cardinality, what is required, choice
groups and types. fhirclient sorts elements by name, so their order is checked against literal knowledge of
the specification instead (here and in test_tables_definitions). It collapses primitives: the table below says
which of ours each of its types stands for, and a test keeps that table complete and without overlap.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Any

import fhirclient.models  # type: ignore[import-untyped]
import pytest
from fhirclient.models.fhirabstractbase import FHIRAbstractBase  # type: ignore[import-untyped]

from pipeline.tables import definitions
from pipeline.tables.definitions import Element, elements

COLLAPSED: dict[str, frozenset[str]] = {
    "bool": frozenset({"boolean"}),
    "float": frozenset({"decimal"}),
    "int": frozenset({"integer", "positiveInt", "unsignedInt"}),
    "str": frozenset(
        {
            *("string", "code", "id", "markdown", "uri", "url", "canonical", "oid", "uuid"),
            *("base64Binary", "xhtml"),
        }
    ),
    "FHIRDate": frozenset({"date"}),
    "FHIRDateTime": frozenset({"dateTime"}),
    "FHIRInstant": frozenset({"instant"}),
    "FHIRTime": frozenset({"time"}),
}
"""fhirclient's type -> the R4 primitives that it stands for."""

CLASS_OF_STRUCTURE = {
    # Named so by hand there; its `Reference` is an abstract base with the same elements.
    "Reference": "FHIRReference",
    # fhirclient's generator mistook the element `code` for the primitive type `code`.
    "SubstanceSpecification.code": "SubstanceSpecificationstr",
}
"""Structures whose class in fhirclient is not named by the rule `Patient.contact` -> `PatientContact`."""

ABSTRACT_CLASSES = {
    *("FHIRAbstractBase", "FHIRAbstractResource", "Resource", "DomainResource", "Element"),
    *("BackboneElement", "Reference"),
}
"""Classes of fhirclient that no concrete structure stands behind (its `Reference` is a base)."""


@dataclass(frozen=True)
class Property:
    """One element as fhirclient has it."""

    name: str
    type: str
    many: bool
    choice: str | None
    required: bool


@cache
def classes() -> dict[str, type[Any]]:
    logging.getLogger("fhirclient").setLevel(logging.ERROR)
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(fhirclient.models.__path__):
        module = importlib.import_module(f"fhirclient.models.{info.name}")
        for name, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, FHIRAbstractBase) and member.__module__ == module.__name__:
                found[name] = member
    return found


def class_name(structure: str) -> str:
    rule = "".join(step[0].upper() + step[1:] for step in structure.split("."))
    return CLASS_OF_STRUCTURE.get(structure, rule)


@cache
def properties(structure: str) -> tuple[Property, ...]:
    """From `elementProperties()`: (attribute, JSON name, type, is_list, of_many, not_optional)."""
    model = classes()[class_name(structure)]
    # Without __init__, which would only complain that required elements are missing.
    rows = model.elementProperties(object.__new__(model))
    return tuple(
        Property(json_name, kind.__name__, is_list, f"{of_many}[x]" if of_many else None, not_optional)
        for _, json_name, kind, is_list, of_many, not_optional in rows
    )


@cache
def structures() -> tuple[str, ...]:
    """Every resource, data type and backbone path that can be reached from a resource, by our definitions."""
    found = dict.fromkeys(definitions.resource_types())
    waiting = list(found)
    while waiting:
        for element in elements(waiting.pop()):
            inner = element.type
            if inner in definitions.primitive_types() or inner == "Resource" or inner in found:
                continue
            found[inner] = None
            waiting.append(inner)
    return tuple(found)


def type_agrees(theirs: str, ours: Element) -> bool:
    if theirs in COLLAPSED:
        return ours.type in COLLAPSED[theirs]
    return ours.type not in definitions.primitive_types() and theirs == class_name(ours.type)


def test_fhirclient_was_generated_from_the_same_version() -> None:
    source = inspect.getsource(inspect.getmodule(classes()["Patient"]))  # type: ignore[arg-type]
    assert source.startswith("# Generated from FHIR 4.0.1-")


def test_the_resource_types_are_the_same_146() -> None:
    abstract = classes()["Resource"], classes()["DomainResource"]
    theirs = {
        name
        for name, model in classes().items()
        if issubclass(model, classes()["Resource"]) and model not in abstract
    }
    assert theirs == set(definitions.resource_types())
    assert len(theirs) == 146


def test_every_structure_of_one_side_is_a_structure_of_the_other() -> None:
    ours = {class_name(structure) for structure in structures()}
    assert ours - set(classes()) == set()
    assert set(classes()) - ours == ABSTRACT_CLASSES
    assert len(ours) == len(structures())


@pytest.mark.parametrize("resource_type", definitions.resource_types())
def test_a_resource_and_its_backbones_have_the_same_elements(resource_type: str) -> None:
    for structure in structures():
        if structure.split(".")[0] == resource_type:
            assert disagreements(structure) == []


def test_every_data_type_has_the_same_elements() -> None:
    data_types = [s for s in structures() if s.split(".")[0] not in definitions.resource_types()]
    assert len(data_types) == 53
    assert [found for structure in data_types for found in disagreements(structure)] == []


def disagreements(structure: str) -> list[str]:
    ours = {element.name: element for element in elements(structure)}
    theirs = {found.name: found for found in properties(structure)}
    assert len(ours) == len(elements(structure))
    found = [f"{structure}: only here {name}" for name in ours.keys() - theirs.keys()]
    found += [f"{structure}: only in fhirclient {name}" for name in theirs.keys() - ours.keys()]
    for name in ours.keys() & theirs.keys():
        mine, other = ours[name], theirs[name]
        if (mine.many, mine.choice, mine.required) != (other.many, other.choice, other.required):
            found.append(f"{structure}.{name}: cardinality or choice {mine} {other}")
        if not type_agrees(other.type, mine):
            found.append(f"{structure}.{name}: type {mine.type} {other.type}")
    return found


def test_nothing_was_left_out_of_the_comparison() -> None:
    compared = [(s, e.name) for s in structures() for e in elements(s)]
    assert (len(structures()), len(compared)) == (658, 8190)
    assert sum(len(properties(s)) for s in structures()) == len(compared)


def test_the_table_of_collapsed_primitives_is_complete_and_every_pair_of_it_occurs() -> None:
    covered = [name for names in COLLAPSED.values() for name in names]
    assert sorted(covered) == sorted(definitions.primitive_types())
    pairs = {
        (other.type, element.type)
        for structure in structures()
        for element in elements(structure)
        for other in properties(structure)
        if other.name == element.name and other.type in COLLAPSED
    }
    assert pairs == {(theirs, ours) for theirs, names in COLLAPSED.items() for ours in names}


# --- from the text of the specification, for what fhirclient cannot tell ---

VALUE_OF_EXTENSION = [
    *(
        "Base64Binary",
        "Boolean",
        "Canonical",
        "Code",
        "Date",
        "DateTime",
        "Decimal",
        "Id",
        "Instant",
        "Integer",
    ),
    *("Markdown", "Oid", "PositiveInt", "String", "Time", "UnsignedInt", "Uri", "Url", "Uuid"),
    *("Address", "Age", "Annotation", "Attachment", "CodeableConcept", "Coding", "ContactPoint", "Count"),
    *("Distance", "Duration", "HumanName", "Identifier", "Money", "Period", "Quantity", "Range", "Ratio"),
    *("Reference", "SampledData", "Signature", "Timing", "ContactDetail", "Contributor", "DataRequirement"),
    *("Expression", "ParameterDefinition", "RelatedArtifact", "TriggerDefinition", "UsageContext", "Dosage"),
    "Meta",
]
"""hl7.org/fhir/R4/datatypes.html#open: the open type list, in its order."""


def test_the_open_type_has_fifty_types_in_the_order_of_the_specification() -> None:
    assert len(VALUE_OF_EXTENSION) == 50
    found = [element.name for element in elements("Extension")]
    assert found == ["id", "extension", "url", *(f"value{name}" for name in VALUE_OF_EXTENSION)]


ORDER = {
    "Observation": "id meta implicitRules language text contained extension modifierExtension identifier"
    " basedOn partOf status category code subject focus encounter effectiveDateTime"
    " effectivePeriod effectiveTiming effectiveInstant issued performer valueQuantity"
    " valueCodeableConcept valueString valueBoolean valueInteger valueRange valueRatio"
    " valueSampledData valueTime valueDateTime valuePeriod dataAbsentReason interpretation note"
    " bodySite method specimen device referenceRange hasMember derivedFrom component",
    "Observation.component": "id extension modifierExtension code valueQuantity valueCodeableConcept"
    " valueString valueBoolean valueInteger valueRange valueRatio valueSampledData valueTime valueDateTime"
    " valuePeriod dataAbsentReason interpretation referenceRange",
    "Quantity": "id extension value comparator unit system code",
    "SampledData": "id extension origin period factor lowerLimit upperLimit dimensions data",
    "HumanName": "id extension use text family given prefix suffix period",
    "Timing.repeat": "id extension boundsDuration boundsRange boundsPeriod count countMax duration"
    " durationMax durationUnit frequency frequencyMax period periodMax periodUnit dayOfWeek timeOfDay when"
    " offset",
    "Meta": "id extension versionId lastUpdated source profile security tag",
    "Money": "id extension value currency",
}


@pytest.mark.parametrize(("structure", "expected"), ORDER.items())
def test_elements_have_the_order_of_the_specification(structure: str, expected: str) -> None:
    """The pages of hl7.org/fhir/R4, read by eye."""
    assert [element.name for element in elements(structure)] == expected.split()


@pytest.mark.parametrize(
    ("structure", "choice", "count"),
    [
        ("Observation", "value[x]", 11),
        ("Observation.component", "value[x]", 11),
        ("Observation", "effective[x]", 4),
        ("Patient", "deceased[x]", 2),
        ("Patient", "multipleBirth[x]", 2),
        ("Condition", "onset[x]", 5),
        ("MedicationRequest", "medication[x]", 2),
        ("Timing.repeat", "bounds[x]", 3),
        ("Parameters.parameter", "value[x]", 50),
        ("Task.input", "value[x]", 50),
        ("ElementDefinition", "pattern[x]", 50),
        ("ElementDefinition", "minValue[x]", 9),
        ("Questionnaire.item.initial", "value[x]", 12),
        ("UsageContext", "value[x]", 4),
    ],
)
def test_a_choice_has_as_many_types_as_the_specification_gives_it(
    structure: str, choice: str, count: int
) -> None:
    assert sum(element.choice == choice for element in elements(structure)) == count


def test_there_are_twenty_primitives_and_none_of_r5() -> None:
    assert definitions.primitive_types() == set().union(*COLLAPSED.values())
    assert len(definitions.primitive_types()) == 20
