"""The kick-off request: headers and parameters, read as strictly as the specification allows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from pipeline.sandbox.generator.groups import is_member
from pipeline.sandbox.generator.kinds import SHARED
from pipeline.sandbox.generator.records import Window, patient_number, types_of
from pipeline.sandbox.generator.world import World
from pipeline.sandbox.outcomes import FHIR_JSON, Refusal, decoded
from pipeline.sandbox.typefilter import Filters, parse_type_filters

_FORMATS = ("application/fhir+ndjson", "application/ndjson", "ndjson")
_INSTANT = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?"
    r"(Z|[+-](0\d|1[0-4]):[0-5]\d)"
)
_ELEMENT = re.compile(r"(?:([A-Z][A-Za-z]+)\.)?([a-z][A-Za-z]*)")
_VALUES = {
    "_type": "valueString",
    "_typeFilter": "valueString",
    "_elements": "valueString",
    "_outputFormat": "valueString",
    "_since": "valueInstant",
    "_until": "valueInstant",
    "patient": "valueReference",
    "allowPartialManifests": "valueBoolean",
}
_ONCE = ("_since", "_until", "_outputFormat", "allowPartialManifests")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is asked for. `types` empty means all; `parameters` are the pairs as they came."""

    level: str
    group: str | None
    url: str
    parameters: tuple[tuple[str, str], ...]
    types: tuple[str, ...] = ()
    window: Window = Window()  # noqa: RUF009 - frozen
    filters: Filters = field(default_factory=lambda: Filters({}))
    elements: tuple[tuple[str | None, str], ...] = ()
    """(type or None for any, root element)"""
    patients: tuple[int, ...] = ()
    """Patient numbers, empty for no restriction."""
    ignored: tuple[str, ...] = ()
    """What `handling=lenient` let pass, one sentence each."""


def wants_asynchronous(request: Request) -> bool:
    """Check Accept and Prefer (protocol fact 10); the answer is whether handling is lenient."""
    accept = request.headers.get("accept", "")
    if accept.split(";")[0].strip() != FHIR_JSON or "," in accept:
        raise Refusal(400, "invalid", f"Accept must be exactly {FHIR_JSON}")
    wishes = [
        wish.split(";")[0].strip() for line in request.headers.getlist("prefer") for wish in line.split(",")
    ]
    if "respond-async" not in wishes:
        raise Refusal(400, "invalid", "Prefer: respond-async is required")
    return "handling=lenient" in wishes


async def request_parameters(request: Request) -> list[tuple[str, str]]:
    """(name, value) pairs of a GET query or a POST Parameters resource; Refusal 400 or 415."""
    if request.method == "GET":
        pairs = parse_qsl(request.url.query, keep_blank_values=True)
        if any(name == "patient" for name, _ in pairs):
            raise Refusal(400, "invalid", "patient is for POST requests only")
        return pairs
    if request.url.query:
        raise Refusal(400, "invalid", "A POST kick-off has its parameters in the body")
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != FHIR_JSON:
        raise Refusal(415, "not-supported", f"Content-Type must be {FHIR_JSON}")
    body = decoded(await request.body())
    if not isinstance(body, dict) or body.get("resourceType") != "Parameters":
        raise Refusal(400, "structure", "The body must be a Parameters resource")
    parameters = body.get("parameter", [])
    if not isinstance(parameters, list) or not all(isinstance(item, dict) for item in parameters):
        raise Refusal(400, "structure", "Parameters.parameter must be an array of objects")
    return [_posted(parameter) for parameter in parameters]


def _posted(parameter: dict[str, Any]) -> tuple[str, str]:
    name = parameter.get("name")
    if not isinstance(name, str):
        raise Refusal(400, "structure", "A parameter has no name")
    values = [key for key in parameter if key.startswith("value")]
    wanted = _VALUES.get(name)
    if len(values) != 1 or (wanted is not None and values[0] != wanted):
        raise Refusal(400, "structure", f"Parameter {name} must have one {wanted or 'value'}")
    value = parameter[values[0]]
    if wanted == "valueReference":
        value = value.get("reference") if isinstance(value, dict) else None
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str):
        raise Refusal(400, "structure", f"Parameter {name} has a value of the wrong kind")
    return name, value


def parse_request(
    world: World, level: str, group: str | None, url: str, pairs: Iterable[tuple[str, str]], *, lenient: bool
) -> ExportRequest:
    """The request that these parameters make; Refusal 400 for anything unknown or malformed.

    With `lenient`, unknown parameters and unknown types are left out and listed in `ignored`.
    """
    pairs = tuple(pairs)
    given: dict[str, list[str]] = {}
    ignored: list[str] = []
    for name, value in pairs:
        if name not in _VALUES:
            _refuse_unless(lenient, ignored, "not-supported", f"Parameter {name} is not supported")
        elif not value:
            raise Refusal(400, "value", f"Parameter {name} is empty")
        else:
            given.setdefault(name, []).append(value)
    for name in _ONCE:
        if len(given.get(name, [])) > 1:
            raise Refusal(400, "value", f"Parameter {name} may be given once")
    if given.get("_outputFormat", ["ndjson"])[0] not in _FORMATS:
        raise Refusal(400, "not-supported", "_outputFormat must be application/fhir+ndjson")
    if given.get("allowPartialManifests", ["true"])[0] not in ("true", "false"):
        raise Refusal(400, "value", "allowPartialManifests must be true or false")
    types = _types(level, _split(given.get("_type", [])), ignored, lenient=lenient)
    filters = parse_type_filters(given.get("_typeFilter", []))
    for name in filters.by_type:
        if types and name not in types:
            raise Refusal(400, "value", f"_typeFilter is for {name}, which _type leaves out")
    return ExportRequest(
        level=level,
        group=group,
        url=url,
        parameters=pairs,
        types=types,
        window=Window(_instant(given, "_since"), _instant(given, "_until")),
        filters=filters,
        elements=tuple(_element(text) for text in _split(given.get("_elements", []))),
        patients=tuple(sorted({_patient(world, level, group, text) for text in given.get("patient", [])})),
        ignored=tuple(ignored),
    )


def _refuse_unless(lenient: bool, ignored: list[str], code: str, sentence: str) -> None:
    if not lenient:
        raise Refusal(400, code, sentence)
    ignored.append(sentence)


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _types(level: str, names: list[str], ignored: list[str], *, lenient: bool) -> tuple[str, ...]:
    known = types_of(level)
    for name in names:
        if name not in known:
            _refuse_unless(
                lenient, ignored, "not-supported", f"Type {name[:64]} is not supported at this level"
            )
    if names and not set(names) & set(known):
        raise Refusal(400, "not-supported", "No type of _type is supported at this level")
    if names and level != "system" and set(names) <= set(SHARED):
        raise Refusal(400, "not-supported", "_type names only types outside the patient compartment")
    return tuple(name for name in known if name in names)


def _element(text: str) -> tuple[str | None, str]:
    found = _ELEMENT.fullmatch(text)
    if not found:
        raise Refusal(400, "value", "_elements takes root elements only, as [Type.]element")
    return found[1], found[2]


def _instant(given: dict[str, list[str]], name: str) -> int | None:
    values = given.get(name)
    return read_instant(name, values[0]) if values else None


def read_instant(name: str, text: str) -> int:
    """An instant in milliseconds; Refusal 400 where it is malformed or has no time zone."""
    found = _INSTANT.fullmatch(text)
    try:
        moment = datetime.fromisoformat(text) if found else None
    except ValueError:
        moment = None
    if moment is None:
        raise Refusal(400, "value", f"{name} must be an instant with a time zone")
    # Integers throughout: a float of this size has no exact milliseconds.
    return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000


def _patient(world: World, level: str, group: str | None, reference: str) -> int:
    if level == "system":
        raise Refusal(400, "invalid", "patient is not for system level exports")
    kind, _, identifier = reference.rpartition("/")
    number = patient_number(world, identifier) if kind == "Patient" else None
    if number is None:
        raise Refusal(400, "not-found", "patient names a patient who is not on this server")
    if group is not None and not is_member(world, group, number):
        raise Refusal(400, "not-found", "patient names a patient who is not in the group")
    return number
