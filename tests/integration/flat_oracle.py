"""The oracle for flat tables: what a row must say, read from the NDJSON with the json module alone."""

from __future__ import annotations

import calendar
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

Row = dict[str, Any]


class Digits(str):
    """A number as it was written."""


def parse(line: bytes) -> Any:
    return json.loads(line, parse_float=Digits, parse_int=Digits)


def dig(value: Any, *path: str) -> Any:
    """Member by member, the first element of each list on the way; None where it ends."""
    for name in path:
        value = value[0] if isinstance(value, list) else value
        value = (value or {}).get(name)
    return value[0] if isinstance(value, list) else value


def every(value: Any, *path: str) -> list[Any] | None:
    """All values at a path, through all lists; None for none."""
    found = [value]
    for name in path:
        found = [each[name] for each in flat(found) if name in each]
    return flat(found) or None


def flat(values: list[Any]) -> list[Any]:
    return [inner for each in values for inner in (each if isinstance(each, list) else [each])]


def number(digits: Any) -> float | None:
    return None if digits is None else float(digits)


def whole(digits: Any) -> int | None:
    return None if digits is None else int(digits)


# --- dates ---


def span(text: str | None) -> tuple[datetime | None, datetime | None]:
    """The earliest and the latest instant that a date or dateTime can mean, in microseconds."""
    if text is None:
        return None, None
    if "T" not in text:
        parts = [int(part) for part in text.split("-")]
        year, month, day = (*parts, *(1, 1)[len(parts) - 1 :])
        last_month = month if len(parts) > 1 else 12
        last_day = day if len(parts) > 2 else calendar.monthrange(year, last_month)[1]
        begin = datetime(year, month, day, tzinfo=UTC)
        final = datetime(year, last_month, last_day, tzinfo=UTC) + timedelta(days=1)
        return begin, final - timedelta(microseconds=1)
    begin = datetime.fromisoformat(text).astimezone(UTC)
    seconds = text.split("T")[1].rstrip("Z").partition("+")[0].partition("-")[0]
    places = len(seconds.partition(".")[2])
    return begin, begin + timedelta(microseconds=10 ** (6 - min(places, 6)) - 1)


def date(name: str, text: str | None) -> Row:
    begin, final = span(text)
    return {name: text, f"{name}_start": begin, f"{name}_end": final}


def period(name: str, value: Any) -> Row:
    begin, final = dig(value, "start"), dig(value, "end")
    return {
        f"{name}_start": span(begin)[0],
        f"{name}_end": span(final)[1],
        f"{name}_start_text": begin,
        f"{name}_end_text": final,
    }


# --- codes and references ---


def coding(each: Any) -> Row:
    return {name: each.get(name) for name in ("system", "code", "display")}


def concept(name: str, value: Any, code: str = "") -> Row:
    all_codings = every(value, "coding") if value is not None else None
    return {
        code or f"{name}_code": dig(value, "coding", "code"),
        f"{name}_system": dig(value, "coding", "system"),
        f"{name}_display": dig(value, "coding", "display"),
        f"{name}_text": dig(value, "text"),
        f"{name}_codings": None if all_codings is None else [coding(each) for each in all_codings],
    }


def in_system(value: Any, *systems: str) -> str | None:
    codings = every(value, "coding") if value is not None else None
    return next((each["code"] for each in codings or [] if each.get("system") in systems), None)


def target(value: Any) -> tuple[str | None, str | None, str | None, str | None]:
    """Type, id, identifier system and value of a Reference, in the forms that the sandbox writes."""
    if not value:
        return None, None, None, None
    text = value.get("reference", "")
    stated, logical = value.get("type"), value.get("identifier", {})
    system, worth = logical.get("system"), logical.get("value")
    if text.startswith("urn:uuid:"):
        return stated, text[9:], system, worth
    if "?identifier=" in text:
        head, _, query = text.partition("?identifier=")
        left, _, right = unquote(query).partition("|")
        return head.split("/")[-1], None, system or left, worth or right
    if not text or text.startswith("#"):
        return stated, None, system, worth
    parts = text.partition("/_history")[0].split("/")
    return parts[-2], parts[-1], system, worth


def refer(name: str, value: Any, many: bool = False) -> Row:
    first = dig({"x": value}, "x")
    kind, logical_id, system, worth = target(first)
    row = {
        f"{name}_reference": dig(first, "reference"),
        f"{name}_type": kind,
        f"{name}_id": logical_id,
        f"{name}_display": dig(first, "display"),
        f"{name}_identifier_system": system,
        f"{name}_identifier_value": worth,
    }
    if many:
        row[f"{name}_ids"] = [target(each)[1] for each in value] if value else None
        row[f"{name}_types"] = [target(each)[0] for each in value] if value else None
    return row


def patient(value: Any) -> str | None:
    kind, logical_id, _, _ = target(value)
    return logical_id if kind == "Patient" else None


def money(name: str, value: Any) -> Row:
    digits = dig(value, "value")
    return {name: digits, f"{name}_numeric": number(digits), f"{name}_currency": dig(value, "currency")}


def observed(value: Any) -> Row:
    """The columns of `value[x]` of an Observation or a component."""
    kinds = [name.removeprefix("value") for name in value if name.startswith("value")]
    kind = kinds[0] if kinds else None
    given = value.get(f"value{kind}") if kind else None
    kind = (
        "".join((kind[0].lower(), kind[1:])) if kind in ("String", "Boolean", "Integer", "DateTime") else kind
    )
    quantity = given if kind == "Quantity" else None
    digits = dig(quantity, "value") if quantity else (given if kind == "integer" else None)
    begin, final = span(given) if kind == "dateTime" else (None, None)
    return {
        "value_type": kind,
        "value_numeric": number(digits),
        "value_decimal": digits,
        "value_unit": dig(quantity, "unit"),
        "value_unit_code": dig(quantity, "code"),
        "value_comparator": dig(quantity, "comparator"),
        "value_string": given if kind == "string" else None,
        "value_boolean": given if kind == "boolean" else None,
        "value_start": begin,
        "value_end": final,
        **concept("value", given if kind == "CodeableConcept" else None),
    }
