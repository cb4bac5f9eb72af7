"""The columns that an element of FHIR gets in a flat table, by its data type.

Everything is told from the definitions: which columns there are, what they are called and of which type they
are never depends on data. The same rules serve top-level elements, elements inside backbone elements,
components and items.
"""

from __future__ import annotations

from pipeline.tables import definitions
from pipeline.tables.flat.choices import choice
from pipeline.tables.flat.codes import coding, concept
from pipeline.tables.flat.column import BOOLEAN, INTEGER, TEXT, ColumnType, FlatColumn, snake_case
from pipeline.tables.flat.links import refer
from pipeline.tables.flat.spot import Spot, column, joined
from pipeline.tables.flat.values import (
    DATES,
    INTEGERS,
    QUANTITIES,
    address,
    attachment,
    bounds,
    date,
    decimal,
    human_name,
    identifier,
    money,
    period,
    quantity,
    telecom,
)


def by_type(  # noqa: PLR0912 - a table of rules
    fhir_type: str, name: str, where: Spot, description: str, *, many: bool = False
) -> list[FlatColumn]:
    """The columns of an element of a data type; none for what stays in the deep table."""
    if fhir_type in DATES:
        return date(name, where, description)
    if fhir_type == "decimal":
        return decimal(name, where, description)
    if fhir_type in definitions.primitive_types():
        return _primitive(fhir_type, name, where, description, many=many)
    if fhir_type in QUANTITIES:
        return quantity(name, where, description)
    match fhir_type:
        case "CodeableConcept":
            return concept(name, where, description, many=many)
        case "Coding":
            return coding(name, where, description, many=many)
        case "Reference":
            return refer(name, where, description, many=many)
        case "Identifier":
            return identifier(name, where, description, many=many)
        case "Period":
            return period(name, where, description)
        case "Money":
            return money(name, where, description)
        case "Range":
            return bounds(name, where, "low", "high", description)
        case "Ratio":
            return bounds(name, where, "numerator", "denominator", description)
        case "HumanName":
            return human_name(name, where, description)
        case "Address":
            return address(name, where, description)
        case "ContactPoint":
            return telecom("" if name == "telecom" else f"{name}_", where, description)
        case "Attachment":
            return attachment(name, where, description)
        case "Annotation":
            texts = Spot((), where.base)
            notes = joined(texts, *where.path, "text", by="\n")
            return [FlatColumn(f"{name}_text", TEXT, f"{description}: all of them, a line each", notes)]
        case "Dosage":
            return [column(f"{name}_text", TEXT, where / "text", f"{description}: text of the first")]
    return []


def _primitive(fhir_type: str, name: str, where: Spot, description: str, *, many: bool) -> list[FlatColumn]:
    kind = BOOLEAN if fhir_type == "boolean" else INTEGER if fhir_type in INTEGERS else TEXT
    if not many:
        return [column(name, kind, where, description)]
    every = ColumnType(kind.scalar, many=True)
    return [
        column(name, kind, where, f"{description}: the first"),
        FlatColumn(f"{name}_all", every, f"{description}: all", lambda place: where.all(place).sql),
    ]


def element(resource_type: str, path: str, name: str = "") -> list[FlatColumn]:
    """The columns of one element by its path: `code`, `value[x]`, `participant.individual`.

    Inside a repeating backbone element it is the first one's; references and codings list all. `name`
    replaces the name made from the last part of the path.
    """
    structure, many = resource_type, False
    *around, last = path.split(".")
    for step in around:
        inner = next(each for each in definitions.elements(structure) if each.name == step)
        structure, many = inner.type, many or inner.many
    return of_structure(structure, last, Spot(tuple(around)), many=many, name=name)


def of_structure(
    structure: str, member: str, parent: Spot, *, many: bool = False, name: str = ""
) -> list[FlatColumn]:
    """The columns of a member (or a choice, `value[x]`) of a structure that lies at `parent`."""
    found = [each for each in definitions.elements(structure) if member in (each.name, each.choice)]
    name = name or snake_case(member)
    if member.endswith("[x]"):
        return choice(name, found, parent)
    only = found[0]
    return by_type(only.type, name, parent / member, only.short, many=many or only.many)
