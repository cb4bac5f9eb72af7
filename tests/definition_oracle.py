"""The oracle for FHIR: does a parsed line fit R4, what must its table row hold, which instants do dates mean.

Written from the contract (facts/tables.md 1, docs/tables.md) and the names and types of the definitions; it
uses nothing else of the pipeline, and neither schemas nor shapes.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from exact_json import Number, parse

from pipeline.tables import definitions
from pipeline.tables.definitions import elements

Kind = Literal["text", "boolean", "integer", "decimal", "verbatim", "object"]

TYPED_EXTENSIONS = 2
"""Extensions in extensions that are columns; the next level is text."""
TYPED_RECURSION = 3
"""Backbone elements in themselves that are columns."""
TYPED_REFERENCES = 1
"""References in references (Reference.identifier.assigner) that are columns."""

OWN_COLUMNS = {"_unmapped", "_export_id", "_source_file", "_source_line"}
INTEGER_SPELLINGS = {"-0": "0"}
"""The only digits that do not come back as written: an integer column holds no minus zero. Decimals keep all
of theirs, `1E2` and `-0.0` included."""

INT32 = range(-(2**31), 2**31)


@dataclass(frozen=True, slots=True)
class Slot:
    """A member that a structure may have at one place."""

    kind: Kind
    type: str
    many: bool


@cache
def slots(structure: str) -> dict[str, tuple[str, bool]]:
    """JSON name -> (FHIR type, repeats); `_x` beside each primitive `x` has the type `Element`."""
    found: dict[str, tuple[str, bool]] = {}
    if structure == "Element":
        return {"id": ("string", False), "extension": ("Extension", True)}
    if definitions.is_resource_type(structure):
        found["resourceType"] = ("code", False)
    for element in elements(structure):
        found[element.name] = (element.type, element.many)
        if element.type in definitions.primitive_types():
            found[f"_{element.name}"] = ("Element", element.many)
    return found


def slot(structure: str, name: str, around: tuple[str, ...]) -> Slot | None:
    """`around` are the structures from the resource to `structure` itself."""
    found = slots(structure).get(name)
    if found is None:
        return None
    fhir_type, many = found
    return Slot(kind_of(fhir_type, around), fhir_type, many)


def kind_of(fhir_type: str, around: tuple[str, ...]) -> Kind:
    if fhir_type in definitions.primitive_types():
        if fhir_type in ("boolean", "decimal"):
            return "boolean" if fhir_type == "boolean" else "decimal"
        return "integer" if fhir_type in ("integer", "positiveInt", "unsignedInt") else "text"
    if fhir_type == "Resource":
        return "verbatim"
    limit = {"Extension": TYPED_EXTENSIONS, "Reference": TYPED_REFERENCES}.get(fhir_type, TYPED_RECURSION)
    if fhir_type not in ("Extension", "Reference") and "." not in fhir_type:
        return "object"
    return "verbatim" if around.count(fhir_type) >= limit else "object"


# --- does it fit -------------------------------------------------------------------------------------


@dataclass
class Judgement:
    """What R4 says to a parsed line."""

    misfits: set[str] = field(default_factory=set)
    """JSON paths of the values that do not fit; empty for a line that must arrive."""
    unmapped: dict[str, Any] = field(default_factory=dict)
    """JSON Pointer -> value of members that R4 does not define, or that are null."""
    back: Any = None
    """What must come back: the value itself, but for the exceptions (INTEGER_SPELLINGS)."""


def judge(value: Any, resource_type: str) -> Judgement:
    verdict = Judgement()
    if not isinstance(value, dict):
        verdict.misfits.add("")
        return verdict
    # Of several things that are wrong any one may be named.
    verdict.back = _object(value, resource_type, (resource_type,), Trail(), verdict)
    if value.get("resourceType") != resource_type:
        verdict.misfits.add("resourceType")
    return verdict


@dataclass(frozen=True, slots=True)
class Trail:
    """Where a value lies, as JSON path and as JSON Pointer."""

    path: str = ""
    pointer: str = ""

    def member(self, name: str) -> Trail:
        token = name.replace("~", "~0").replace("/", "~1")
        return Trail(f"{self.path}.{name}" if self.path else name, f"{self.pointer}/{token}")

    def item(self, position: int) -> Trail:
        return Trail(f"{self.path}[{position}]", f"{self.pointer}/{position}")


def _object(
    value: dict[str, Any], structure: str, around: tuple[str, ...], trail: Trail, verdict: Judgement
) -> dict[str, Any]:
    back = {}
    for name, content in value.items():
        here = trail.member(name)
        found = slot(structure, name, around)
        if found is None or content is None:
            verdict.unmapped[here.pointer] = content
            back[name] = content
        elif found.kind == "verbatim":
            back[name] = content
        elif not found.many:
            back[name] = _single(content, found, around, here, verdict)
        elif not isinstance(content, list):
            verdict.misfits.add(here.path)
        else:
            empty_allowed = found.kind != "object" or found.type == "Element"
            back[name] = [
                None
                if item is None and empty_allowed
                else _single(item, found, around, here.item(position), verdict)
                for position, item in enumerate(content)
            ]
    return back


def _single(value: Any, found: Slot, around: tuple[str, ...], here: Trail, verdict: Judgement) -> Any:
    if found.kind == "object":
        if isinstance(value, dict):
            return _object(value, found.type, (*around, found.type), here, verdict)
    elif found.kind == "integer":
        lexeme = value.lexeme if isinstance(value, Number) else ""
        # The longest int32 has ten digits; int() of a million takes its time.
        if re.fullmatch(r"-?[0-9]{1,10}", lexeme) and int(lexeme) in INT32:
            return Number(INTEGER_SPELLINGS.get(lexeme, lexeme))
    elif isinstance(value, {"text": str, "boolean": bool, "decimal": Number}[found.kind]):
        return value
    verdict.misfits.add(here.path)
    return value


# --- what the row must hold --------------------------------------------------------------------------


def row_mistakes(source: dict[str, Any], row: dict[str, Any], resource_type: str, line: str) -> list[str]:
    """Where a Parquet row (as Python values) is not what the contract makes of a line that fits.

    Looks at every member at every depth: typed or verbatim text as the contract says, the right digits, the
    derived numbers and instants, the unmapped members, and nothing besides.
    """
    verdict = judge(source, resource_type)
    found = list(_row_mistakes(source, row, resource_type, (resource_type,), "", line))
    unmapped = parse(row["_unmapped"].encode()) if row.get("_unmapped") is not None else {}
    if unmapped != verdict.unmapped:
        found.append(f"_unmapped: {unmapped!r} instead of {verdict.unmapped!r}")
    return found


def _row_mistakes(
    source: dict[str, Any], row: Any, structure: str, around: tuple[str, ...], path: str, line: str
) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{path}: {row!r} in place of a struct"
        return
    explained = set(OWN_COLUMNS) if not path else set()
    for name, value in source.items():
        found = slot(structure, name, around)
        if found is None or value is None:
            continue
        explained.add(name)
        here = f"{path}.{name}"
        if name not in row or row[name] is None:
            yield f"{here}: missing"
        elif found.kind == "verbatim":
            yield from _verbatim_mistakes(value, row[name], here, line)
        elif found.many:
            yield from _list_mistakes(value, row[name], found, around, here, line)
        else:
            yield from _value_mistakes(value, row[name], found, around, here, line)
        for derived, expected in derived_columns(name, found, value):
            explained.add(derived)
            if derived not in row:
                yield f"{path}.{derived}: no such column"
            elif not _same_derived(row[derived], expected):
                yield f"{path}.{derived}: {row[derived]!r} instead of {expected!r} of {value!r}"
    for name, content in row.items():
        if content is not None and name not in explained:
            yield f"{path}.{name}: {content!r} out of nothing"


def _verbatim_mistakes(value: Any, text: Any, here: str, line: str) -> Iterator[str]:
    if not isinstance(text, str):
        yield f"{here}: {text!r} in place of JSON text"
    elif text not in line:
        yield f"{here}: not verbatim: {text!r}"
    elif parse(text.encode()) != value or text != text.strip(" \t\r\n"):
        yield f"{here}: {text!r} is another value"


def _list_mistakes(
    value: list[Any], row: Any, found: Slot, around: tuple[str, ...], here: str, line: str
) -> Iterator[str]:
    if not isinstance(row, list) or len(row) != len(value):
        yield f"{here}: {row!r} in place of {len(value)} items"
        return
    for position, (item, cell) in enumerate(zip(value, row, strict=True)):
        if item is None or cell is None:
            if item is not cell:
                yield f"{here}[{position}]: {cell!r}"
        else:
            yield from _value_mistakes(item, cell, found, around, f"{here}[{position}]", line)


def _value_mistakes(
    value: Any, cell: Any, found: Slot, around: tuple[str, ...], here: str, line: str
) -> Iterator[str]:
    if found.kind == "object":
        yield from _row_mistakes(value, cell, found.type, (*around, found.type), here, line)
        return
    expected = value
    if isinstance(value, Number):
        expected = value.lexeme if found.kind == "decimal" else int(value.lexeme)
    if type(cell) is not type(expected) or cell != expected:
        yield f"{here}: {cell!r} instead of {expected!r}"


# --- derived columns ---------------------------------------------------------------------------------


def derived_columns(name: str, found: Slot, value: Any) -> Iterator[tuple[str, Any]]:
    """(column, value) for what stands beside a decimal or a date; lists where it repeats."""
    if found.kind == "decimal":
        yield f"__{name}_numeric", _each(value, lambda number: float(number.lexeme))
    elif found.type in ("date", "dateTime", "instant"):
        yield f"__{name}_start", _each(value, lambda text: (instants(text) or (None, None))[0])
        yield f"__{name}_end", _each(value, lambda text: (instants(text) or (None, None))[1])


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, list):
        return [None if item is None else change(item) for item in value]
    return change(value)


def _same_derived(found: Any, expected: Any) -> bool:
    # repr tells 0.0 from -0.0.
    return found == expected and repr(found) == repr(expected) if _floats(expected) else found == expected


def _floats(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and any(isinstance(v, float) for v in value))


_DATE = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})"
    r"(?:T([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]+))?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)
MICROSECOND = timedelta(microseconds=1)


def instants(text: str) -> tuple[datetime, datetime] | None:
    """The earliest and the latest instant that a FHIR date can mean, in UTC; None for what is no date."""
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        start = datetime(
            int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0)
        )
        if hour is None:
            return start.replace(tzinfo=UTC), _end_of_date(start, month, day).replace(tzinfo=UTC)
        digits = (fraction or "")[:6]
        start += timedelta(microseconds=int(digits.ljust(6, "0")))
        width = timedelta(microseconds=10 ** (6 - len(digits))) if second else timedelta(minutes=1)
        end = start + width - MICROSECOND
        offset = _offset(zone)
        return (
            None
            if offset is None
            else ((start - offset).replace(tzinfo=UTC), (end - offset).replace(tzinfo=UTC))
        )
    except (ValueError, OverflowError):
        return None


def _end_of_date(start: datetime, month: str | None, day: str | None) -> datetime:
    last_month = start.month if month else 12
    last_day = start.day if day else calendar.monthrange(start.year, last_month)[1]
    return start.replace(month=last_month, day=last_day, hour=23, minute=59, second=59, microsecond=999999)


def _offset(zone: str | None) -> timedelta | None:
    if zone in (None, "Z"):
        return timedelta(0)
    assert zone is not None
    hours, minutes = int(zone[1:3]), int(zone[4:])
    if minutes > 59 or hours * 60 + minutes > 14 * 60:
        return None
    sign = -1 if zone[0] == "-" else 1
    return sign * timedelta(hours=hours, minutes=minutes)
