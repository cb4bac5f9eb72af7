"""How Microsoft's FHIR server reads a kick-off (azure-and-aidbox D) and names its files."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from pipeline.sandbox.exporting import PlannedFile, patients_of
from pipeline.sandbox.generator.datatypes import instant
from pipeline.sandbox.generator.groups import GROUPS
from pipeline.sandbox.generator.records import count_by_patient
from pipeline.sandbox.generator.world import night_instant
from pipeline.sandbox.jobs import Job
from pipeline.sandbox.kickoff import ExportRequest, read_instant
from pipeline.sandbox.outcomes import Refusal
from pipeline.sandbox.standins.export import Asked, Exports, Pair

_PASSED_ON = ("_outputFormat", "_since", "_till", "_type", "_typeFilter")
_KNOWN = frozenset(
    (*_PASSED_ON, "_container", "_format", "_isParallel", "includeAssociatedData", "_maxCount")
)
_ANONYMIZATION = "_anonymizationConfig"
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")
_QUERY = re.compile(r"[A-Z][A-Za-z]+\?.+")
_VALUES = {
    "_container": _CONTAINER,
    "_format": re.compile(r"json|application/(fhir\+)?json"),
    "_isParallel": re.compile(r"true|false"),
    "includeAssociatedData": re.compile(r"_(history|deleted)(,_(history|deleted))*"),
    "_maxCount": re.compile(r"[1-9]\d{0,8}"),
}


class Clock:
    """Brings `_till` and `_since`, which a client takes from the real clock, into the sandbox's time.

    The data of the sandbox ends with its night. A `_till` behind that, but not in the real future, means
    everything of that night, and a later `_since` of the same instant begins right there.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}

    def till(self, moment: int, night: int) -> int:
        """The end of the window; Refusal 400 where it lies in the future."""
        now = night_instant(night)
        if moment <= now:
            return moment
        if moment > time.time() * 1000:
            raise Refusal(400, "value", "_till is in the future")
        self._ends[moment] = now
        return now

    def since(self, moment: int) -> int:
        """The start of the window."""
        earlier = [end for end in self._ends if end <= moment]
        return self._ends[max(earlier)] if earlier else moment


class MicrosoftExports(Exports):
    """What API Management's backend and the Azure servers have in common."""

    forced = frozenset[str]()
    """Parameters that are replaced before the server reads them, so that what came does not matter."""

    def __init__(self, *arguments: Any) -> None:
        self._clock = Clock()
        super().__init__(*arguments)

    def read(self, request: Request, level: str) -> Asked:  # noqa: ARG002 - the same at all levels
        """Strict: unknown parameters, values in the wrong case and unescaped plus signs get 400."""
        raw = tuple(parse_qsl(request.url.query, keep_blank_values=True))
        given: dict[str, str] = {}
        for name, value in raw:
            if name in self.forced:
                continue
            _check(name, value)
            # The first of a repeated parameter is the one that counts (protocol fact 13).
            given.setdefault(name, value)
        if "_typeFilter" in given and "_type" not in given:
            raise Refusal(400, "invalid", "_typeFilter needs _type")
        if "_typeFilter" in given and "includeAssociatedData" in given:
            raise Refusal(400, "invalid", "includeAssociatedData does not work with _typeFilter")
        group = request.path_params.get("group")
        return Asked(
            pairs=tuple(self._passed_on(given)),
            raw=raw,
            container=given.get("_container", ""),
            failure=404 if group is not None and group not in GROUPS else 0,
        )

    def narrow(self, export: ExportRequest) -> ExportRequest:
        """With `since_by_patient`: only patients whose own resource changed are walked (protocol, 6)."""
        if not self._options.since_by_patient or export.window.since is None or export.level == "system":
            return export
        world = self._options.world(self.jobs.night)
        everyone = patients_of(world, export, 0, world.patient_count())
        changed = [
            number for number, lines in count_by_patient(world, "Patient", everyone, export.window) if lines
        ]
        return replace(export, patients=tuple(changed) or (-1,))

    def shown(self, files: list[PlannedFile]) -> list[PlannedFile]:
        """The files of the manifest: half of them where the system itself cancelled the job."""
        return files[: len(files) // 2] if self._options.cancelled_by_server else files

    @staticmethod
    def blob_path(job: Job, files: list[PlannedFile], number: int) -> str:
        """The path of a file in its container: `export-{job}/{Type}-{subjob}-{seq}.ndjson`, or by time."""
        kind = files[number].resource_type
        sequence = sum(file.resource_type == kind for file in files[:number])
        folder = f"export-{job.id}"
        if job.container:
            folder = f"{datetime.fromtimestamp(job.accepted, UTC):%Y%m%dT%H%M%S}-{job.id}"
        return f"{folder}/{kind}-{job.types.index(kind) + 1}-{sequence + 1}.ndjson"

    def _passed_on(self, given: dict[str, str]) -> list[Pair]:
        pairs: list[Pair] = []
        for name in _PASSED_ON:
            value = given.get(name)
            if value is None:
                continue
            if name == "_typeFilter":
                pairs += [(name, query) for query in _queries(value)]
            elif name == "_till":
                until = self._clock.till(read_instant(name, value), self.jobs.night)
                pairs.append(("_until", instant(until)))
            elif name == "_since":
                pairs.append((name, instant(self._clock.since(read_instant(name, value)))))
            else:
                pairs.append((name, value))
        return pairs


def _check(name: str, value: str) -> None:
    if name not in _KNOWN and not name.startswith(_ANONYMIZATION):
        raise Refusal(400, "not-supported", f"Parameter {name} is not supported")
    pattern = _VALUES.get(name)
    if not value or (pattern is not None and not pattern.fullmatch(value)):
        raise Refusal(400, "value", f"The value of {name} is not supported")


def _queries(value: str) -> list[str]:
    queries = value.split(",")
    if not all(_QUERY.fullmatch(query) for query in queries):
        raise Refusal(400, "value", "_typeFilter must be Type?query; a comma always begins another one")
    return queries
