"""The columns of a choice such as `value[x]`: one set for all types that it can have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.tables import definitions
from pipeline.tables.definitions import Element
from pipeline.tables.flat.codes import coding, concept
from pipeline.tables.flat.column import BOOLEAN, DOUBLE, TEXT, TIMESTAMP, FlatColumn
from pipeline.tables.flat.links import refer
from pipeline.tables.flat.place import Place, coalesced
from pipeline.tables.flat.spot import Spot, column, derived, numeric
from pipeline.tables.flat.values import DATES, INTEGERS, QUANTITIES, attachment, bounds, identifier

Offered = dict[str, Spot]


def choice(name: str, elements: Sequence[Element], parent: Spot, short: str = "") -> list[FlatColumn]:
    """The columns of a choice such as `value[x]`: which type it has, and its value by kind of value.

    One set of columns for all types: `_numeric` holds a Quantity's value as well as an integer, `_start`
    a dateTime as well as the start of a Period.
    """
    short = short or elements[0].short
    offered = {element.type: parent / element.name for element in elements}

    def which(place: Place) -> str:
        cases = [
            f"WHEN {found.sql} IS NOT NULL THEN '{fhir_type}'"
            for fhir_type, where in offered.items()
            if (found := where.value(place)).exists
        ]
        return f"CASE {' '.join(cases)} END" if cases else "NULL"

    found = [FlatColumn(f"{name}_type", TEXT, f"{short}: which type it is given as", which)]
    for make in (_choice_numbers, _choice_texts, _choice_codes, _choice_times, _choice_others):
        found += make(name, offered, short)
    return found


def _first_of(spots: Sequence[Spot]) -> Callable[[Place], str]:
    return lambda place: coalesced(*(where.value(place).first().sql for where in spots))


def _choice_numbers(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    quantities = [where for kind, where in offered.items() if kind in QUANTITIES]
    digits = [
        where if kind == "decimal" else where / "value"
        for kind, where in offered.items()
        if kind in QUANTITIES or kind in ("decimal", "Money")
    ]
    integers = [where for kind, where in offered.items() if kind in INTEGERS]
    found = []
    if digits or integers:

        def number(place: Place) -> str:
            return coalesced(
                *(numeric(where)(place) for where in digits),
                *(where.value(place).first().sql for where in integers),
            )

        found.append(FlatColumn(f"{name}_numeric", DOUBLE, f"{short}: the number", number))

        def written(place: Place) -> str:
            whole = [where.value(place).first() for where in integers]
            return coalesced(
                *(where.value(place).first().sql for where in digits),
                *(f"CAST({place.sql} AS VARCHAR)" for place in whole if place.exists),
            )

        found.append(FlatColumn(f"{name}_decimal", TEXT, f"{short}: the digits as written", written))
    for part, member, meaning in (
        ("unit", "unit", "unit as shown"),
        ("unit_code", "code", "unit as a code"),
        ("unit_system", "system", "system of the unit's code"),
        ("comparator", "comparator", "<, <=, >= or >"),
    ):
        if quantities:
            spots = [where / member for where in quantities]
            found.append(FlatColumn(f"{name}_{part}", TEXT, f"{short}: {meaning}", _first_of(spots)))
    if "Money" in offered:
        found.append(column(f"{name}_currency", TEXT, offered["Money"] / "currency", f"{short}: currency"))
    return found


def _choice_texts(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    others = DATES | INTEGERS | {"boolean", "decimal", "time"}
    texts = [
        where
        for kind, where in offered.items()
        if kind in definitions.primitive_types() and kind not in others
    ]
    found = []
    if texts:
        found.append(FlatColumn(f"{name}_string", TEXT, f"{short}: given as text", _first_of(texts)))
    if "boolean" in offered:
        found.append(column(f"{name}_boolean", BOOLEAN, offered["boolean"], f"{short}: given as yes or no"))
    if "time" in offered:
        found.append(column(f"{name}_time", TEXT, offered["time"], f"{short}: given as a time of day"))
    return found


def _choice_codes(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    if "CodeableConcept" in offered:
        return concept(name, offered["CodeableConcept"], short)
    return coding(name, offered["Coding"], short) if "Coding" in offered else []


def _choice_times(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    instants = [where for kind, where in offered.items() if kind in DATES]
    starts, ends, texts = list(instants), list(instants), list(instants)
    if "Period" in offered:
        span = offered["Period"]
        starts, ends, texts = [*starts, span / "start"], [*ends, span / "end"], [*texts, span / "start"]
    if not starts:
        return []

    def of(spots: list[Spot], suffix: str) -> Callable[[Place], str]:
        return lambda place: coalesced(*(derived(where, suffix)(place) for where in spots))

    written = "as written (of a Period its start)" if "Period" in offered else "as written"
    return [
        FlatColumn(f"{name}_datetime", TEXT, f"{short}: {written}", _first_of(texts)),
        FlatColumn(f"{name}_start", TIMESTAMP, f"{short}: the earliest instant, UTC", of(starts, "start")),
        FlatColumn(f"{name}_end", TIMESTAMP, f"{short}: the latest instant, UTC", of(ends, "end")),
    ]


def _choice_others(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    found: list[FlatColumn] = []
    if "Range" in offered:
        found += bounds(name, offered["Range"], "low", "high", short)
    if "Ratio" in offered:
        found += bounds(name, offered["Ratio"], "numerator", "denominator", short)
    if "Identifier" in offered:
        found += identifier(f"{name}_identifier", offered["Identifier"], short)
    if "Attachment" in offered:
        found += attachment(f"{name}_attachment", offered["Attachment"], short)
    if "Reference" in offered:
        # `_type` says which type of value it is; the type of resource needs another name.
        prefix = f"{name}_reference"
        for each in refer(name, offered["Reference"], short):
            new = f"{prefix}_type" if each.name == f"{name}_type" else each.name
            new = f"{prefix}_display" if each.name == f"{name}_display" else new
            if each.name.startswith(f"{name}_identifier"):
                new = each.name.replace(name, prefix, 1)
            found.append(replace(each, name=new))
    return found
