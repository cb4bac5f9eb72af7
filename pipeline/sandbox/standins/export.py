"""The endpoints of a bulk export as far as all five systems have them alike: kick-off, status, delete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.exporting import PlannedFile, lines_of
from pipeline.sandbox.generator.datatypes import instant
from pipeline.sandbox.generator.world import night_instant
from pipeline.sandbox.jobs import Job, Jobs
from pipeline.sandbox.kickoff import ExportRequest, parse_request, wants_asynchronous
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import FHIR_JSON, Refusal, json_response, operation_outcome
from pipeline.sandbox.tokens import Gate, authorize_type

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A kick-off as one system reads it: `pairs` in the words of the sandbox, `raw` as they came."""

    pairs: tuple[Pair, ...]
    raw: tuple[Pair, ...]
    owner: str = ""
    container: str = ""
    failure: int = 0


class Exports(ABC):
    """`path` is the one of the FHIR base, `status` the one of a job below it, with `{job}` in it."""

    def __init__(self, options: Options, base_url: str, path: str, status: str, gate: Gate) -> None:
        self._options = options
        self._base = base_url
        self._path = path
        self._status = status
        self._gate = gate
        self.jobs = Jobs(options, self.settle)

    @abstractmethod
    def read(self, request: Request, level: str) -> Asked:
        """The parameters, judged; Refusal 400 and others."""

    @abstractmethod
    def manifest(self, request: Request, job: Job, files: list[PlannedFile]) -> Response:
        """The answer of a job that is complete."""

    def settle(self, _job: Job, files: list[PlannedFile]) -> list[PlannedFile]:
        """What is done with the planned files before the job is complete."""
        return [file for file in files if file.kind == "output"]

    def narrow(self, export: ExportRequest) -> ExportRequest:
        """The request as the system carries it out."""
        return export

    def failed(self, job: Job) -> Response:
        """The answer of a job that is not going to be complete."""
        raise Refusal(
            job.failure or 500, "exception", "export operation failed for reason: see the server's log"
        )

    async def kick_off(self, request: Request) -> Response:
        """202, a bare one, and where to ask for the job's state."""
        scopes = self._gate.authorize(request)
        wants_asynchronous(request)
        group = request.path_params.get("group")
        level = "group" if group else "patient" if "/Patient/" in request.url.path else "system"
        asked = self.read(request, level)
        world = self._options.world(self.jobs.night)
        url = self._base + request.url.path + (f"?{request.url.query}" if request.url.query else "")
        export = parse_request(world, level, group, url, asked.pairs, lenient=False)
        for resource_type in export.types:
            authorize_type(scopes, resource_type)
        job = self.jobs.accept(
            self.narrow(export),
            scopes,
            lenient=False,
            asked=asked.raw,
            owner=asked.owner,
            container=asked.container,
            failure=asked.failure or self._options.fail_with,
        )
        return Response(status_code=202, headers={"Content-Location": self.location(request, job)})

    async def status(self, request: Request) -> Response:
        """202, a bare one, the manifest, or how the job failed."""
        self._gate.authorize(request)
        job = self.job_of(request)
        if request.headers.get("accept", "").split(";")[0].strip() != "application/json":
            raise Refusal(400, "invalid", "Accept must be application/json")
        state = self.jobs.state_of(job)
        if state == "in-progress":
            return Response(status_code=202)
        if state == "failed":
            return self.failed(job)
        job.manifest_reads += 1
        return self.manifest(request, job, job.files or [])

    async def delete(self, request: Request) -> Response:
        """Cancel the job: 202, afterwards 404."""
        self._gate.authorize(request)
        self.jobs.delete(self.job_of(request))
        return Response(status_code=202)

    def job_of(self, request: Request) -> Job:
        """The job that the path names; Refusal 404 where there is none."""
        return self.jobs.living(request.path_params["job"])

    def location(self, _request: Request, job: Job) -> str:
        """The status URL of a job, as Content-Location has it."""
        origin = "" if self._options.relative_location else self._base
        return origin + self._path + self._status.format(job=job.id)

    def lines(self, job: Job, planned: PlannedFile) -> Iterator[bytes]:
        """The lines of a file, with the line ends that are asked for."""
        found = lines_of(self._options.world(job.night), job.request, job.types, planned)
        if self._options.line_ends == "crlf":
            return (text[:-1] + b"\r\n" for text in found)
        return found

    def body(self, job: Job, planned: PlannedFile) -> bytes:
        """A whole file."""
        return b"".join(self.lines(job, planned))

    @staticmethod
    def transaction_time(job: Job) -> str:
        """The instant as of which the data is: when the job was created."""
        return instant(night_instant(job.night))

    @staticmethod
    def respond(manifest: dict[str, Any]) -> Response:
        """A manifest as an answer."""
        return json_response(manifest)


def refused(status: int, code: str, sentence: str) -> Response:
    """An OperationOutcome as an answer."""
    return json_response(operation_outcome(code, sentence), status, FHIR_JSON)
