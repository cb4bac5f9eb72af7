"""What each FHIR element becomes in a table: its kind, whether it repeats, where recursion is cut.

Sits between the definitions (what FHIR says) and the schema, the conversion and the way back, which all
walk the same shape; so a change of a rule here changes all three together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, NamedTuple

from pipeline.tables import definitions

Kind = Literal["text", "boolean", "integer", "decimal", "json", "struct"]

MAX_RECURSION = 3
"""How often a structure may lie inside itself as columns; deeper levels are JSON text (rule 6)."""
MAX_EXTENSIONS = 2
"""How often an extension may lie inside an extension as columns (rule 6)."""

_INTEGERS = frozenset({"integer", "positiveInt", "unsignedInt"})
_DATES = frozenset({"date", "dateTime", "instant"})


class Structure(NamedTuple):
    """One place in a resource where a structure lies: its type, and the recursive structures around it."""

    type: str
    trail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One JSON member of a structure and its form in the table."""

    name: str
    kind: Kind
    many: bool
    """True where the JSON value is an array of values of this kind (never for `json`: one text holds all)."""
    structure: Structure | None
    """Where to look on, for kind `struct`."""
    fhir_type: str
    short: str

    @property
    def derived(self) -> tuple[str, ...]:
        """Names of the columns that are computed from this member and stand behind it (rule 5)."""
        if self.kind == "decimal":
            return (f"__{self.name}_numeric",)
        if self.fhir_type in _DATES:
            return (f"__{self.name}_start", f"__{self.name}_end")
        return ()

    @property
    def floor(self) -> bool:
        """Whether a table may have it before any data: extensions come when they are first seen (rule 2)."""
        return self.kind != "json" and self.fhir_type not in ("Extension", ELEMENT)


ELEMENT = "Element"
"""The type of `_birthDate`: what a primitive carries besides its value, an id and extensions."""


@cache
def members(structure: Structure) -> Mapping[str, Member]:
    """The members of a structure by JSON name, in table order.

    `resourceType` leads a resource; each primitive `x` is followed by its `_x` (rule 6). Raises ConfigError
    for a type that R4 4.0.1 does not define.
    """
    found: dict[str, Member] = {}
    if definitions.is_resource_type(structure.type):
        found["resourceType"] = Member("resourceType", "text", False, None, "code", "The resource type")
    for element in _elements(structure.type):
        member = _member(element, structure)
        found[element.name] = member
        if structure.type != ELEMENT and element.type in definitions.primitive_types():
            beside = f"_{element.name}"
            inner = _inside(ELEMENT, structure)
            found[beside] = Member(
                beside, "struct", element.many, inner, ELEMENT, f"Id and extensions of {element.name}"
            )
    return MappingProxyType(found)


def _elements(type_or_path: str) -> tuple[definitions.Element, ...]:
    if type_or_path == ELEMENT:
        return tuple(e for e in definitions.elements("Extension") if e.name in ("id", "extension"))
    return definitions.elements(type_or_path)


def _member(element: definitions.Element, around: Structure) -> Member:
    if element.type in definitions.primitive_types():
        kind = _primitive_kind(element.type)
        return Member(element.name, kind, element.many, None, element.type, element.short)
    inner = None if element.type == "Resource" else _inside(element.type, around)
    if inner is None:
        return Member(element.name, "json", False, None, element.type, element.short)
    return Member(element.name, "struct", element.many, inner, element.type, element.short)


def _primitive_kind(fhir_type: str) -> Kind:
    if fhir_type == "boolean":
        return "boolean"
    if fhir_type == "decimal":
        return "decimal"
    return "integer" if fhir_type in _INTEGERS else "text"


def _inside(type_or_path: str, around: Structure) -> Structure | None:
    """The structure one step further in, or None where recursion is cut."""
    trail = around.trail
    if type_or_path == "Reference":
        # Reference.identifier.assigner is a Reference again: one level is enough (rule 6).
        return None if "Reference" in trail else Structure("Reference", (*_lasting(trail), "Reference"))
    if type_or_path == "Extension":
        if trail.count("Extension") >= MAX_EXTENSIONS:
            return None
        return Structure("Extension", (*_lasting(trail), "Extension"))
    if "." not in type_or_path:
        return Structure(type_or_path, _lasting(trail))
    if type_or_path not in _recursive_paths(type_or_path.split(".", maxsplit=1)[0]):
        return Structure(type_or_path, trail)
    if trail.count(type_or_path) >= MAX_RECURSION:
        return None
    return Structure(type_or_path, (*trail, type_or_path))


def _lasting(trail: tuple[str, ...]) -> tuple[str, ...]:
    # A data type never holds a backbone element, so only these two rules still matter inside it.
    return tuple(name for name in trail if name in ("Reference", "Extension"))


@cache
def _recursive_paths(resource_type: str) -> frozenset[str]:
    """The backbone paths of a resource that are named again from inside themselves (`Questionnaire.item`)."""
    found: set[str] = set()
    waiting = [resource_type]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        for element in definitions.elements(path):
            if "." not in element.type:
                continue
            if f"{path}.".startswith(f"{element.type}."):
                found.add(element.type)
            if element.type not in seen:
                seen.add(element.type)
                waiting.append(element.type)
    return frozenset(found)
