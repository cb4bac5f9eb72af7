"""`_typeFilter` and search parameters: a small part of FHIR search; the rest is refused, not ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from pipeline.sandbox.generator.kinds import KINDS
from pipeline.sandbox.generator.records import Accept
from pipeline.sandbox.outcomes import Refusal

Json = dict[str, Any]

RESULT_PARAMETERS = frozenset(
    ("_sort", "_count", "_include", "_revinclude", "_summary", "_total", "_elements", "_contained", "_score")
)

_STATUS = "status"
_TOKENS: dict[str, dict[str, str]] = {
    "Patient": {"gender": "gender", "active": "active"},
    "Practitioner": {"gender": "gender"},
    "Encounter": {"status": _STATUS, "class": "class", "type": "type"},
    "Condition": {"code": "code", "category": "category", "clinical-status": "clinicalStatus"},
    "Observation": {"status": _STATUS, "code": "code", "category": "category"},
    "MedicationRequest": {"status": _STATUS, "intent": "intent", "code": "medicationCodeableConcept"},
    "Procedure": {"status": _STATUS, "code": "code"},
    "Immunization": {"status": _STATUS, "vaccine-code": "vaccineCode"},
    "AllergyIntolerance": {"code": "code", "category": "category", "criticality": "criticality"},
    "DiagnosticReport": {"status": _STATUS, "code": "code", "category": "category"},
    "DocumentReference": {"status": _STATUS, "type": "type"},
    "Coverage": {"status": _STATUS, "type": "type"},
    "Claim": {"status": _STATUS, "use": "use"},
    "ExplanationOfBenefit": {"status": _STATUS},
    "CarePlan": {"status": _STATUS, "category": "category"},
    "Goal": {"lifecycle-status": "lifecycleStatus"},
    "Location": {"status": _STATUS},
}
_DATES: dict[str, dict[str, tuple[str, ...]]] = {
    "Patient": {"birthdate": ("birthDate",)},
    "Encounter": {"date": ("period",)},
    "Observation": {"date": ("effectiveDateTime", "effectivePeriod")},
    "DiagnosticReport": {"date": ("effectiveDateTime",)},
    "Procedure": {"date": ("performedDateTime", "performedPeriod")},
    "Immunization": {"date": ("occurrenceDateTime",)},
    "MedicationRequest": {"authoredon": ("authoredOn",)},
    "Condition": {"recorded-date": ("recordedDate",)},
    "DocumentReference": {"date": ("date",)},
    "Claim": {"created": ("created",)},
}
_DATE = re.compile(
    r"(eq|ne|gt|lt|ge|le)?(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?)?)?"
)
_NEXT_QUERY = re.compile(r"[A-Z][A-Za-z]*\?")


@dataclass(frozen=True, slots=True)
class Filters:
    """For each filtered type the tests of its queries, of which a resource must pass one."""

    by_type: dict[str, tuple[Accept, ...]]

    def accept(self, resource_type: str) -> Accept | None:
        """The test for resources of that type, or None for no test."""
        tests = self.by_type.get(resource_type)
        if not tests:
            return None
        return lambda resource: any(test(resource) for test in tests)


def parse_type_filters(values: Iterable[str]) -> Filters:
    """`_typeFilter` values (repeated, or comma separated, commas inside escaped); Refusal 400 otherwise."""
    by_type: dict[str, tuple[Accept, ...]] = {}
    for value in values:
        for query in _queries(value):
            resource_type, mark, text = query.partition("?")
            if not mark or resource_type not in KINDS:
                raise Refusal(400, "value", "_typeFilter must be Type?query with a type of this server")
            test = accept_query(resource_type, parse_qsl(text, keep_blank_values=True))
            by_type[resource_type] = (*by_type.get(resource_type, ()), test)
    return Filters(by_type)


def accept_query(resource_type: str, parameters: Iterable[tuple[str, str]]) -> Accept:
    """The test that all those search parameters make; Refusal 400 for one that is not supported."""
    tests = [_parameter(resource_type, name, value) for name, value in parameters]
    return lambda resource: all(test(resource) for test in tests)


def _queries(value: str) -> list[str]:
    parts: list[str] = []
    for part in re.split(r"(?<!\\),", value):
        if parts and not _NEXT_QUERY.match(part):
            raise Refusal(400, "value", r"A comma inside a _typeFilter query must be escaped as \,")
        parts.append(part.replace("\\,", ","))
    return parts


def _parameter(resource_type: str, name: str, value: str) -> Accept:
    if name in RESULT_PARAMETERS:
        raise Refusal(400, "not-supported", f"{name} is a result parameter and cannot filter")
    values = value.split(",")
    if not value:
        raise Refusal(400, "value", f"{name} has no value")
    if name == "_id":
        return lambda resource: resource["id"] in values
    if name in ("patient", "subject"):
        wanted = {text if "/" in text else "Patient/" + text for text in values}
        return lambda resource: _subject(resource) in wanted
    element = _TOKENS.get(resource_type, {}).get(name)
    if element is not None:
        return lambda resource: any(_has_token(resource.get(element), text) for text in values)
    elements = _DATES.get(resource_type, {}).get(name)
    if elements is not None:
        tests = [_date_test(text) for text in values]
        return lambda resource: any(
            test(*found) for key in elements for found in _range(resource.get(key)) for test in tests
        )
    raise Refusal(400, "not-supported", f"Search parameter {name} is not supported for {resource_type}")


def _subject(resource: Json) -> str:
    for element in ("subject", "patient", "beneficiary"):
        reference = resource.get(element, {}).get("reference", "")
        found = re.search(r"Patient/[^/]+", reference)
        if found:
            return found[0]
    return ""


def _has_token(element: Any, wanted: str) -> bool:
    if isinstance(element, list):
        return any(_has_token(item, wanted) for item in element)
    if isinstance(element, bool):
        return wanted == str(element).lower()
    if isinstance(element, str):
        return wanted.rpartition("|")[2] == element
    if not isinstance(element, dict):
        return False
    if "coding" in element:
        return _has_token(element["coding"], wanted)
    system, bar, code = wanted.rpartition("|")
    return element.get("code") == code and (not bar or element.get("system") == system)


def _range(element: Any) -> list[tuple[datetime, datetime]]:
    if isinstance(element, dict):
        start = _range(element.get("start"))
        end = _range(element.get("end"))
        return [(start[0][0], end[0][1] if end else datetime.max.replace(tzinfo=UTC))] if start else []
    found = _DATE.fullmatch(element) if isinstance(element, str) else None
    return [_bounds(found)] if found else []


def _bounds(found: re.Match[str]) -> tuple[datetime, datetime]:
    year, month, day, hour, minute, second = (int(part) if part else None for part in found.groups()[1:7])
    assert year is not None  # noqa: S101 - the pattern requires it
    start = datetime(year, month or 1, day or 1, hour or 0, minute or 0, second or 0, tzinfo=UTC)
    zone = found[8]
    if zone and zone != "Z":
        shift = timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
        start = start - shift if zone[0] == "+" else start + shift
    if month is None:
        return start, start.replace(year=start.year + 1)
    if day is None:
        return start, (start + timedelta(days=32)).replace(day=1)
    return start, start + (timedelta(days=1) if hour is None else timedelta(seconds=1))


def _date_test(text: str) -> Callable[[datetime, datetime], bool]:
    found = _DATE.fullmatch(text)
    try:
        low, high = _bounds(found) if found else (None, None)
    except ValueError:
        low = high = None
    if found is None or low is None or high is None:
        raise Refusal(400, "value", "A date in a search is malformed")
    tests: dict[str, Callable[[datetime, datetime], bool]] = {
        "eq": lambda start, end: start >= low and end <= high,
        "ne": lambda start, end: not (start >= low and end <= high),
        "gt": lambda _start, end: end > high,
        "ge": lambda _start, end: end > low,
        "lt": lambda start, _end: start < low,
        "le": lambda start, _end: start < high,
    }
    return tests[found[1] or "eq"]
