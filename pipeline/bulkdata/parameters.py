"""What to ask for: the kick-off parameters of protocol fact 13, checked when they are put together."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from pipeline.errors import ConfigError

NDJSON = "application/fhir+ndjson"

# Longer than FHIR's 64: Epic's ids have up to 88 characters (protocol fact 34).
_PATH_SEGMENT = re.compile(r"[A-Za-z0-9\-._~]{1,256}")
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ELEMENT = re.compile(r"([A-Z][A-Za-z]{1,63}\.)?[a-z_][A-Za-z0-9]{0,63}")
_CODE = re.compile(r"[A-Za-z0-9_\-.]{1,64}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_FILTER = re.compile(r"(?P<type>[A-Z][A-Za-z]{1,63})\?(?P<query>[^\s?#][^\s#]*)")
_RESULT_PARAMETERS = frozenset(
    {
        "_sort",
        "_count",
        "_include",
        "_revinclude",
        "_summary",
        "_total",
        "_elements",
        "_contained",
        "_containedType",
        "_score",
        "_graph",
        "_maxresults",
    }
)


@dataclass(frozen=True)
class KickoffParameters:
    """One `$export` request. Empty tuples and None mean: not sent.

    `since` and `until` are FHIR instants as text. `patients` are ids or `Patient/id`; they make it a POST
    (fact 13). `type_filters` are `Type?query`; several on one type mean OR (fact 14). Raises ConfigError when
    it cannot be sent.
    """

    level: Literal["group", "patient", "system"]
    group: str | None = None
    types: tuple[str, ...] = ()
    type_filters: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    patients: tuple[str, ...] = ()
    output_format: str | None = NDJSON
    include_associated_data: tuple[str, ...] = ()
    organize_output_by: str | None = None
    allow_partial_manifests: bool = False
    lenient: bool = False

    def __post_init__(self) -> None:
        self._check_level()
        _check_each("types", self.types, _TYPE, "a resource type such as Patient")
        _check_each("elements", self.elements, _ELEMENT, "a root element such as id or Patient.birthDate")
        _check_each("include_associated_data", self.include_associated_data, _CODE, "a code")
        if self.organize_output_by is not None:
            _check_each("organize_output_by", (self.organize_output_by,), _TYPE, "a resource type")
        for one in self.type_filters:
            self._check_filter(one)
        self._check_window()
        for patient in self.patients:
            if not _PATH_SEGMENT.fullmatch(patient.removeprefix("Patient/")):
                raise ConfigError(
                    "a patient is not named by its FHIR id", "Use ids such as 123 or Patient/123."
                )

    @property
    def must_post(self) -> bool:
        """Whether only a POST can carry these parameters."""
        return bool(self.patients)

    @property
    def path(self) -> str:
        """The operation's path below the FHIR base."""
        if self.level == "group":
            return f"Group/{self.group}/$export"
        return "Patient/$export" if self.level == "patient" else "$export"

    def as_query(self, until_parameter: str = "_until") -> list[tuple[str, str]]:
        """Name and plain value of each query parameter; lists joined by commas (fact 13).

        A comma inside a filter is written `%2C`, so that only the join is a bare comma (fact 14); a server
        reads each filter as a URL query, which turns it back. A backslash would mean a literal comma there,
        no longer OR. Raises ConfigError with patients (POST only).
        """
        if self.patients:
            raise ConfigError("a list of patients cannot be sent by GET", "Kick off by POST.")
        pairs = [
            ("_outputFormat", self.output_format or ""),
            ("_since", self.since or ""),
            (until_parameter, self.until or ""),
            ("_type", ",".join(self.types)),
            ("_typeFilter", ",".join(self._escaped_filters())),
            ("_elements", ",".join(self.elements)),
            ("includeAssociatedData", ",".join(self.include_associated_data)),
            ("organizeOutputBy", self.organize_output_by or ""),
            ("allowPartialManifests", "true" if self.allow_partial_manifests else ""),
        ]
        return [(name, value) for name, value in pairs if value]

    def as_parameters(self, until_parameter: str = "_until") -> dict[str, Any]:
        """The same as a FHIR Parameters resource, for POST.

        Lists of codes are joined by commas as in a query; filters and patients are one parameter each, which
        every version of the specification reads alike.
        """
        joined = [
            ("_outputFormat", "valueString", self.output_format),
            ("_since", "valueInstant", self.since),
            (until_parameter, "valueInstant", self.until),
            ("_type", "valueString", ",".join(self.types)),
            *(("_typeFilter", "valueString", one) for one in self._escaped_filters()),
            ("_elements", "valueString", ",".join(self.elements)),
            ("includeAssociatedData", "valueString", ",".join(self.include_associated_data)),
            ("organizeOutputBy", "valueString", self.organize_output_by),
            ("allowPartialManifests", "valueBoolean", self.allow_partial_manifests),
        ]
        parameter: list[dict[str, Any]] = [
            {"name": name, member: value} for name, member, value in joined if value
        ]
        parameter += [
            {"name": "patient", "valueReference": {"reference": f"Patient/{each.removeprefix('Patient/')}"}}
            for each in self.patients
        ]
        return {"resourceType": "Parameters", "parameter": parameter}

    def names(self, until_parameter: str = "_until") -> frozenset[str]:
        """The names of the parameters that would be sent."""
        return frozenset(each["name"] for each in self.as_parameters(until_parameter)["parameter"])

    def prefer(self) -> str:
        """The `Prefer` header (facts 10 and 12)."""
        return "respond-async, handling=lenient" if self.lenient else "respond-async"

    def fingerprint(self) -> str:
        """sha256 (hex) of what the export covers: level, group, types, filters, elements, patients.

        Order and repetition do not matter; the time window, the format and the like do not count.
        Two exports may share a watermark only when their fingerprints are equal.
        """
        covered: dict[str, Any] = {
            "level": self.level,
            "group": self.group if self.level == "group" else None,
            "types": sorted(set(self.types)),
            "type_filters": sorted(set(self.type_filters)),
            "elements": sorted(set(self.elements)),
        }
        if self.patients:
            covered["patients"] = sorted({each.removeprefix("Patient/") for each in self.patients})
        canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _escaped_filters(self) -> list[str]:
        return [each.replace(",", "%2C") for each in self.type_filters]

    def _check_level(self) -> None:
        if self.level not in ("group", "patient", "system"):
            raise ConfigError("the export level is unknown", "Use group, patient or system.")
        if self.level == "group":
            if not self.group:
                raise ConfigError("level group needs the id of a Group", "Set export.group.")
            if not _PATH_SEGMENT.fullmatch(self.group) or self.group in (".", ".."):
                raise ConfigError(
                    "the group is not named by its FHIR id",
                    "Set export.group to the id alone: letters, digits, '-' and '.'.",
                )
        if self.level == "system" and self.patients:
            raise ConfigError(
                "a list of patients does not go with level system", "Use level patient or group."
            )

    def _check_filter(self, one: str) -> None:
        match = _FILTER.fullmatch(one)
        if match is None:
            raise ConfigError(
                "a type filter does not have the form Type?query",
                "Write filters such as Observation?category=laboratory.",
            )
        for part in match["query"].split("&"):
            name = part.partition("=")[0].partition(":")[0]
            if name in _RESULT_PARAMETERS:
                raise ConfigError(
                    f"a type filter on {match['type']} uses the result parameter {name}",
                    "Filters may only select; remove it (protocol fact 14).",
                )
        if self.types and match["type"] not in self.types:
            raise ConfigError(
                f"a type filter names {match['type']}, which export.types does not hold",
                "Add the type to export.types or remove the filter.",
            )

    def _check_window(self) -> None:
        moments: list[datetime] = []
        for name, value in (("since", self.since), ("until", self.until)):
            if value is None:
                continue
            try:
                readable = _INSTANT.fullmatch(value) is not None
                moments.append(datetime.fromisoformat(value))
            except ValueError:
                readable = False
            if not readable:
                raise ConfigError(f"{name} is not an instant", "Use a form such as 2026-01-31T00:00:00Z.")
        if len(moments) == 2 and moments[0] >= moments[1]:
            raise ConfigError("since is not before until", "Correct the time window of the export.")


def encode_query(pairs: list[tuple[str, str]]) -> str:
    """The query string; `+` and everything else that a server could misread is escaped (azure-and-aidbox
    D).
    """
    return "&".join(f"{quote(name, safe='$')}={quote(value, safe=',/:')}" for name, value in pairs)


def _check_each(name: str, values: tuple[str, ...], form: re.Pattern[str], what: str) -> None:
    for value in values:
        if not form.fullmatch(value):
            raise ConfigError(f"{name} holds something that is not {what}", f"Correct export.{name}.")
