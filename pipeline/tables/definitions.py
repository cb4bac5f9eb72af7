"""The R4 4.0.1 definitions: which elements a type has, in which order, of which types, once or many times.

Types, cardinality and order of every table come from here and never from data (facts/tables.md, rule 1).
The data file is made by `scripts/distil_r4.py` from the official CC0 package.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Element:
    """One JSON member of a structure; a choice such as `value[x]` gives one Element for each type."""

    name: str
    """The JSON member name: `valueQuantity`."""
    type: str
    """`string`, `HumanName`, `Resource`, or the path of a backbone element: `Observation.component`."""
    many: bool
    required: bool
    choice: str | None
    """`value[x]` where the element is one of a choice, else None."""
    short: str
    """The specification's short description."""


@cache
def _data() -> dict[str, Any]:
    packed = resources.files("pipeline.tables").joinpath("r4", "definitions.json.gz").read_bytes()
    data: dict[str, Any] = json.loads(gzip.decompress(packed))
    return data


@cache
def resource_types() -> tuple[str, ...]:
    """The 146 concrete resource types, in alphabetical order."""
    return tuple(_data()["resources"])


@cache
def primitive_types() -> frozenset[str]:
    """The 20 primitive types, `xhtml` among them."""
    return frozenset(_data()["primitives"])


def is_resource_type(name: str) -> bool:
    """True for the name of a concrete R4 resource type (`Patient`, not `patient`, not `Resource`)."""
    return name in _resource_set()


@cache
def _resource_set() -> frozenset[str]:
    return frozenset(resource_types())


@cache
def elements(type_or_path: str) -> tuple[Element, ...]:
    """The elements of a resource type, data type or backbone path, in the specification's order.

    Choices are spelled out: `value[x]` gives `valueQuantity`, `valueString`, ...; a backbone element that
    refers to another one (`Questionnaire.item.item`) has that one's path as its type. Raises ConfigError
    for a name that R4 4.0.1 does not define.
    """
    try:
        rows = _data()["structures"][type_or_path]
    except KeyError:
        raise ConfigError(
            f"{type_or_path!r} is not a structure of FHIR R4 4.0.1", "Resource types are written as in FHIR"
        ) from None
    found = []
    for name, types, least, many, short in rows:
        choice = name if name.endswith("[x]") else None
        for code in types:
            member = name[:-3] + code[0].upper() + code[1:] if choice else name
            found.append(Element(member, code, many, least > 0, choice, short))
    return tuple(found)


def table_name(resource_type: str) -> str:
    """The resource type as folder, table and asset name: `MedicationRequest` -> `medicationrequest`."""
    return resource_type.lower()


@cache
def _types_by_table() -> dict[str, str]:
    return {table_name(name): name for name in resource_types()}


def type_of_table(name: str) -> str | None:
    """The way back: `medicationrequest` -> `MedicationRequest`; None for what is no R4 resource type."""
    return _types_by_table().get(name)


def __getattr__(name: str) -> tuple[str, ...]:
    # The data file is read at the first use, not at import: loading the Dagster definitions must be quick.
    if name == "RESOURCE_TYPES":
        return resource_types()
    raise AttributeError(name)
