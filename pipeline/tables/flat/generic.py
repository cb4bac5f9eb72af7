"""The frame of every flat table, and the flat form by rule for types without hand-chosen columns."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.tables import definitions
from pipeline.tables.flat.column import LINE, TEXT, TEXTS, FlatColumn
from pipeline.tables.flat.elements import element
from pipeline.tables.flat.links import patient_id
from pipeline.tables.flat.spot import column, spot
from pipeline.tables.flat.values import date
from pipeline.tables.schema import EXPORT_ID, SOURCE_FILE, SOURCE_LINE

_PATIENT_ELEMENTS = ("patient", "subject", "beneficiary", "individual", "for", "candidate")
_ONLY_PATIENTS = frozenset({"patient", "beneficiary", "candidate", "individual"})
_OWN = frozenset(
    {"id", "meta", "implicitRules", "language", "text", "contained", "extension", "modifierExtension"}
)
RENAMED = {
    # `last_updated` is that of `meta`, `subscriber_id` the id of the reference `subscriber`.
    ("CatalogEntry", "lastUpdated"): "entry_last_updated",
    ("Coverage", "subscriberId"): "subscriber_number",
}
"""Elements whose own name would be that of another column."""


def framed(resource_type: str, columns: Iterable[FlatColumn]) -> tuple[FlatColumn, ...]:
    """Columns between what leads every flat table (`id`, `patient_id`, `meta`) and its lineage.

    `patient_id` leads; the column of that name which an element `patient` would give is the same.
    """
    patient = patient_columns(resource_type)
    taken = {each.name for each in patient}
    inner = [each for each in columns if each.name not in taken]
    return (*_identity(resource_type), *patient, *_meta(), *inner, *lineage())


def _identity(resource_type: str) -> list[FlatColumn]:
    return [column("id", TEXT, spot("id"), f"Logical id of the {resource_type}")]


def _meta() -> list[FlatColumn]:
    meta = spot("meta")
    profiles = meta / "profile"
    return [
        *date("last_updated", meta / "lastUpdated", "When the server changed it last"),
        column("meta_version_id", TEXT, meta / "versionId", "Version of the resource on its server"),
        column("meta_source", TEXT, meta / "source", "Where the resource came from"),
        FlatColumn(
            "meta_profiles",
            TEXTS,
            "Profiles that it claims to fulfil",
            lambda place: profiles.value(place).sql,
        ),
    ]


def lineage() -> list[FlatColumn]:
    """The lineage of the row: the same as in the deep table."""
    return [
        column(EXPORT_ID, TEXT, spot(EXPORT_ID), "The export run that brought this row"),
        column(SOURCE_FILE, TEXT, spot(SOURCE_FILE), "The file it came in"),
        column(SOURCE_LINE, LINE, spot(SOURCE_LINE), "The line of that file, counted from 1"),
    ]


def patient_columns(resource_type: str) -> list[FlatColumn]:
    """`patient_id`, for a type with an element that says which patient it is about; else nothing."""
    found = {each.name for each in definitions.elements(resource_type) if each.type == "Reference"}
    for name in _PATIENT_ELEMENTS:
        if name in found:
            always = name in _ONLY_PATIENTS
            which = f"Bare id of the {name}" + ("" if always else ", where it is a Patient")
            what = f"{which}: joins with patient_flat.id"
            return [patient_id(spot(name), always=always, description=what)]
    return []


def generic_columns(resource_type: str) -> tuple[FlatColumn, ...]:
    """The columns of any resource type: every top-level element that is no backbone element."""
    found: list[FlatColumn] = []
    choices: set[str] = set()
    for each in definitions.elements(resource_type):
        if each.name in _OWN or each.choice in choices:
            continue
        if each.choice:
            choices.add(each.choice)
        found += element(resource_type, each.choice or each.name, RENAMED.get((resource_type, each.name), ""))
    return framed(resource_type, found)
