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

_INTEGERS = frozenset({"integer", "positiveInt", "unsignedInt"})
_AS_JSON = frozenset({"Extension", "Resource"})


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


@cache
def members(structure: Structure) -> Mapping[str, Member]:
    """The members of a structure by JSON name, in table order.

    `resourceType` leads a resource; each primitive `x` is followed by its `_x` (rule 6). Raises ConfigError
    for a type that R4 4.0.1 does not define.
    """
    found: dict[str, Member] = {}
    if definitions.is_resource_type(structure.type):
        found["resourceType"] = Member("resourceType", "text", False, None, "code", "The resource type")
    for element in definitions.elements(structure.type):
        member = _member(element, structure)
        found[element.name] = member
        if element.type in definitions.primitive_types():
            beside = f"_{element.name}"
            short = f"Extensions of {element.name}, as JSON text"
            found[beside] = Member(beside, "json", False, None, "Element", short)
    return MappingProxyType(found)


def _member(element: definitions.Element, around: Structure) -> Member:
    if element.type in definitions.primitive_types():
        kind = _primitive_kind(element.type)
        return Member(element.name, kind, element.many, None, element.type, element.short)
    inner = None if element.type in _AS_JSON else _inside(element.type, around)
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
        return None if "Reference" in trail else Structure("Reference", ("Reference",))
    if "." not in type_or_path:
        # A data type never holds a backbone element, so only the Reference rule still matters inside it.
        return Structure(type_or_path, tuple(name for name in trail if name == "Reference"))
    if type_or_path not in _recursive_paths():
        return Structure(type_or_path, trail)
    if trail.count(type_or_path) >= MAX_RECURSION:
        return None
    return Structure(type_or_path, (*trail, type_or_path))


@cache
def _recursive_paths() -> frozenset[str]:
    """The backbone paths that are named again from inside themselves (`Questionnaire.item`)."""
    found: set[str] = set()
    for name in definitions.resource_types():
        waiting = [name]
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
