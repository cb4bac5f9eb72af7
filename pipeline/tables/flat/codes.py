"""The columns of codes: the first coding, the text, all codings, and the code of a well-known system."""

from __future__ import annotations

from pipeline.tables.flat.column import CODINGS, TEXT, FlatColumn
from pipeline.tables.flat.place import Place, one_of
from pipeline.tables.flat.spot import Spot, column


def _narrow_codings(codings: Place) -> str:
    """All codings as list<struct<system, code, display>>, whatever members the Parquet has."""
    element = codings.first()
    if not any(element.member(name).exists for name in ("system", "code", "display")):
        return "NULL"
    # DuckDB casts structs by member name: no lambda, no copy.
    return f"CAST({codings.sql} AS {CODINGS.sql})"


def code_name(name: str) -> str:
    """The code's own column: `status_reason_code`; `code` and `vaccine_code` are not doubled."""
    return name if name == "code" or name.endswith("_code") else f"{name}_code"


def concept(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """A CodeableConcept: its first coding, its text, all codings (of all concepts, where it repeats)."""
    first = where / "coding"

    def codings(place: Place) -> str:
        found = first.all(place) if many else first.value(place)
        sql = _narrow_codings(found)
        return f"nullif({sql}, [])" if many and sql != "NULL" else sql

    return [
        column(code_name(name), TEXT, first / "code", f"{description}: code of the first coding"),
        column(f"{name}_system", TEXT, first / "system", f"{description}: system of the first coding"),
        column(f"{name}_display", TEXT, first / "display", f"{description}: display of the first coding"),
        column(f"{name}_text", TEXT, where / "text", f"{description}: text"),
        FlatColumn(f"{name}_codings", CODINGS, f"{description}: all codings", codings),
    ]


def coding(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """A Coding: code, system, display; all of them, where it repeats."""
    found = [
        column(code_name(name), TEXT, where / "code", f"{description}: code"),
        column(f"{name}_system", TEXT, where / "system", f"{description}: system"),
        column(f"{name}_display", TEXT, where / "display", f"{description}: display"),
    ]
    if many:
        found.append(
            FlatColumn(
                f"{name}_codings", CODINGS, f"{description}: all codings",
                lambda place: _narrow_codings(where.all(place)),
            )
        )  # fmt: skip
    return found


def picked(name: str, where: Spot, systems: tuple[str, ...], label: str, *, many: bool = False) -> FlatColumn:
    """The code that a concept has in one well-known system, wherever it stands among the codings."""
    codings = where / "coding"

    def make(place: Place) -> str:
        found = codings.all(place) if many else codings.value(place)
        system, code = found.first().member("system"), found.first().member("code")
        if not (found.is_list and system.exists and code.exists):
            return "NULL"
        hit = found.where(lambda each: one_of(each.member("system").sql, systems)).member("code")
        if many:
            return hit.sql
        # Nearly always it is the first: no list has to be filtered then.
        return f"CASE WHEN {one_of(system.sql, systems)} THEN {code.sql} ELSE {hit.sql} END"

    return FlatColumn(name, TEXT, f"{label}: the first coding of that system", make)
