"""The columns of the data types that hold values: numbers, times, names, addresses, identifiers."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.tables.flat.column import DOUBLE, IDENTIFIERS, INTEGER, TEXT, TIMESTAMP, FlatColumn
from pipeline.tables.flat.place import Place
from pipeline.tables.flat.spot import Spot, column, derived, joined, listed, numeric

QUANTITIES = frozenset(
    {"Quantity", "Age", "Count", "Distance", "Duration", "MoneyQuantity", "SimpleQuantity"}
)


DATES = frozenset({"date", "dateTime", "instant"})


INTEGERS = frozenset({"integer", "positiveInt", "unsignedInt"})


def decimal(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(name, TEXT, where, f"{description}: the digits as written"),
        FlatColumn(f"{name}_numeric", DOUBLE, f"{description}: as a number", numeric(where)),
    ]


def date(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(name, TEXT, where, f"{description}: as written"),
        FlatColumn(
            f"{name}_start", TIMESTAMP, f"{description}: the earliest instant it can mean, UTC",
            derived(where, "start"),
        ),
        FlatColumn(
            f"{name}_end", TIMESTAMP, f"{description}: the latest instant it can mean, UTC",
            derived(where, "end"),
        ),
    ]  # fmt: skip


def period(name: str, where: Spot, description: str) -> list[FlatColumn]:
    start, end = where / "start", where / "end"
    return [
        FlatColumn(
            f"{name}_start", TIMESTAMP, f"{description}: the earliest instant of its start, UTC",
            derived(start, "start"),
        ),
        FlatColumn(
            f"{name}_end", TIMESTAMP, f"{description}: the latest instant of its end, UTC",
            derived(end, "end"),
        ),
        column(f"{name}_start_text", TEXT, start, f"{description}: its start as written"),
        column(f"{name}_end_text", TEXT, end, f"{description}: its end as written"),
    ]  # fmt: skip


def quantity(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        *decimal(name, where / "value", description),
        column(f"{name}_unit", TEXT, where / "unit", f"{description}: unit as shown"),
        column(f"{name}_unit_code", TEXT, where / "code", f"{description}: unit as a code (UCUM)"),
        column(f"{name}_comparator", TEXT, where / "comparator", f"{description}: <, <=, >= or >"),
    ]


def money(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        *decimal(name, where / "value", description),
        column(f"{name}_currency", TEXT, where / "currency", f"{description}: currency (ISO 4217)"),
    ]


def bounds(name: str, where: Spot, low: str, high: str, description: str) -> list[FlatColumn]:
    """A Range (`low`, `high`) or a Ratio (`numerator`, `denominator`)."""
    return [
        *decimal(f"{name}_{low}", where / low / "value", f"{description}, {low}"),
        column(f"{name}_{low}_unit", TEXT, where / low / "unit", f"{description}, {low}: unit"),
        *decimal(f"{name}_{high}", where / high / "value", f"{description}, {high}"),
        column(f"{name}_{high}_unit", TEXT, where / high / "unit", f"{description}, {high}: unit"),
    ]


def identifier(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """An Identifier: system and value; all of them with use and type, where it repeats."""
    found = [
        column(f"{name}_system", TEXT, where / "system", f"{description}: system"),
        column(f"{name}_value", TEXT, where / "value", f"{description}: value"),
    ]
    if not many:
        return found

    def one(each: Place) -> dict[str, str]:
        parts = {part: each.member(part).sql for part in ("use", "system", "value")}
        return {**parts, "type_code": each.at("type", "coding", "code").sql}

    all_of_them = f"{name}s" if name.endswith("identifier") else f"{name}_identifiers"
    every = FlatColumn(
        all_of_them, IDENTIFIERS, f"{description}: all of them", listed(where, IDENTIFIERS, one)
    )
    return [*found, every]


def human_name(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(f"{name}_family", TEXT, where / "family", f"{description}: family name"),
        FlatColumn(f"{name}_given", TEXT, f"{description}: given names, joined", joined(where, "given")),
        FlatColumn(f"{name}_prefix", TEXT, f"{description}: prefixes, joined", joined(where, "prefix")),
        FlatColumn(f"{name}_suffix", TEXT, f"{description}: suffixes, joined", joined(where, "suffix")),
        column(f"{name}_text", TEXT, where / "text", f"{description}: as one text"),
    ]


def address(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        FlatColumn(
            f"{name}_line", TEXT, f"{description}: street lines, joined by a comma",
            joined(where, "line", by=", "),
        ),
        column(f"{name}_city", TEXT, where / "city", f"{description}: city"),
        column(f"{name}_district", TEXT, where / "district", f"{description}: district or county"),
        column(f"{name}_state", TEXT, where / "state", f"{description}: state"),
        column(f"{name}_postal_code", TEXT, where / "postalCode", f"{description}: postal code"),
        column(f"{name}_country", TEXT, where / "country", f"{description}: country"),
    ]  # fmt: skip


def telecom(prefix: str, where: Spot, description: str) -> list[FlatColumn]:
    """The first phone number and e-mail address: `phone`, `email`."""

    def of_system(system: str) -> Callable[[Place], str]:
        def make(place: Place) -> str:
            points = where.all(place)

            def is_it(each: Place) -> str | None:
                kind = each.member("system")
                return f"{kind.sql} = '{system}'" if kind.exists else None

            return points.where(is_it).member("value").sql

        return make

    return [
        FlatColumn(f"{prefix}phone", TEXT, f"{description}: the first phone number", of_system("phone")),
        FlatColumn(f"{prefix}email", TEXT, f"{description}: the first e-mail address", of_system("email")),
    ]


def attachment(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(f"{name}_content_type", TEXT, where / "contentType", f"{description}: content type"),
        column(f"{name}_url", TEXT, where / "url", f"{description}: URL of the content"),
        column(f"{name}_title", TEXT, where / "title", f"{description}: title"),
        column(f"{name}_size", INTEGER, where / "size", f"{description}: bytes of the content"),
        *date(f"{name}_creation", where / "creation", f"{description}: created"),
    ]
