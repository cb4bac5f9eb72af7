"""In = out + quarantined, over resources of every R4 type (issue 3, point 5; facts/tables.md 2).

Each conversion holds every backbone element of its type and some data types, whole, and random resources
beside them; over all types that is each of the 8,190 elements of R4, with its primitive extension.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import pytest
from conversion import check, convert
from exact_json import Number
from generated_resources import Writer, lines_of

from pipeline.tables import definitions
from pipeline.tables.definitions import Element, elements

RANDOM_LINES = 6

Path = tuple[Element, ...]

SIMPLE: dict[str, Any] = {
    "boolean": True,
    "decimal": Number("1.50"),
    "integer": Number("-7"),
    "positiveInt": Number("1"),
    "unsignedInt": Number("0"),
    "date": "2020-02",
    "dateTime": "2020-02-29T10:00:00+02:00",
    "instant": "2020-02-29T10:00:00.5Z",
    "time": "10:00:00",
    "Resource": {"resourceType": "Basic"},
}


@cache
def paths() -> dict[str, dict[str, Path]]:
    """Resource type -> structure -> members that lead to it; each structure once, where it is met first."""
    met: set[str] = set()
    found: dict[str, dict[str, Path]] = {}
    for resource_type in definitions.resource_types():
        found[resource_type] = {resource_type: ()}
        met.add(resource_type)
        waiting: list[tuple[str, Path]] = [(resource_type, ())]
        while waiting:
            structure, path = waiting.pop(0)
            for element in elements(structure):
                inner = element.type
                if inner in definitions.primitive_types() or inner == "Resource" or inner in met:
                    continue
                met.add(inner)
                found[resource_type][inner] = (*path, element)
                waiting.append((inner, (*path, element)))
    return found


def full(structure: str) -> dict[str, Any]:
    """An object with every member that the structure may have, all types of each choice among them."""
    found: dict[str, Any] = {}
    for element in elements(structure):
        simple = SIMPLE.get(
            element.type, "a" if element.type in definitions.primitive_types() else {"id": "b"}
        )
        found[element.name] = [simple] if element.many else simple
        if element.type in definitions.primitive_types():
            beside = {"id": "c", "extension": [{"url": "d"}]}
            found[f"_{element.name}"] = [beside] if element.many else beside
    return found


def line(resource_type: str, structure: str, path: Path) -> bytes:
    value: Any = full(structure)
    for element in reversed(path):
        value = {element.name: [value] if element.many else value}
    return Writer(0).line({"resourceType": resource_type, **value})


@pytest.mark.parametrize("resource_type", definitions.resource_types())
def test_resources_of_every_type_arrive_whole_and_come_back(resource_type: str) -> None:
    """Each equal by number lexeme, each row as the contract has it, derived columns too; none refused."""
    lines = [line(resource_type, name, path) for name, path in paths()[resource_type].items()]
    tape = Random(resource_type).randbytes(RANDOM_LINES * 220)
    lines += lines_of(tape, resource_type, RANDOM_LINES)
    data = b"\n".join(lines)
    found = convert(resource_type, {"a.ndjson": [data]})
    check(resource_type, {"a.ndjson": data}, found)
    assert (found.refused, len(found.back)) == ({}, len(lines))


def test_no_element_was_left_out() -> None:
    structures = [name for found in paths().values() for name in found]
    assert len(structures) == len(set(structures)) == 658
    assert sum(len(elements(name)) for name in structures) == 8190
