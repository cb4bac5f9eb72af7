"""`azure-fhir` and `azure-export`: Microsoft's FHIR server behind Entra (azure-and-aidbox C and D)."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pipeline.sandbox.accesslog import AccessLog
from pipeline.sandbox.addresses import Addresses, Served
from pipeline.sandbox.control import Control
from pipeline.sandbox.exporting import PlannedFile, chunks
from pipeline.sandbox.faults import Faults
from pipeline.sandbox.jobs import Job
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import Refusal, broken, refuse
from pipeline.sandbox.reads import Reads
from pipeline.sandbox.standins.bearer import Bearers, keys_from, needs_role
from pipeline.sandbox.standins.landing import BlobStorage
from pipeline.sandbox.standins.microsoft import MicrosoftExports
from pipeline.sandbox.tokens import Gate

_ROLE = "FHIR Data Exporter"
_STATUS = "/_operations/export/{job}"


def build(options: Options, addresses: Addresses) -> Served:
    """Either application; its FHIR base is the origin itself."""
    base = addresses.base_url
    if options.token_keys is None:
        raise ValueError(f"--as {options.stand_in} needs --token-keys")
    if options.storage is None and options.stand_in == "azure-export":
        raise ValueError("--as azure-export needs --storage")
    audience = options.token_audience or base
    role = _ROLE if options.token_role is None else options.token_role
    gate = Bearers([keys_from(options.token_keys)], audience, options.token_issuer, needs_role(role))
    storage = None if options.storage is None else BlobStorage(options.storage)
    exports = AzureExports(options, base, gate, storage)
    reads = Reads(options, base, None, gate, exports.jobs)
    faults = Faults(exports.jobs, gate, options.faults)
    control = Control(exports.jobs, gate, faults)
    app = Starlette(
        routes=[
            Route("/control", control.endpoint, methods=["GET", "POST"]),
            Route("/metadata", reads.capability_statement),
            Route("/$export", exports.kick_off),
            Route("/Patient/$export", exports.kick_off),
            Route("/Group/{group}/$export", exports.kick_off),
            Route(_STATUS, exports.status),
            Route(_STATUS, exports.delete, methods=["DELETE"]),
            Route("/_export/{job}/{path:path}", exports.file),
            Route("/{type}/{id}", reads.read),
            Route("/{type}", reads.search),
        ],
        exception_handlers={HTTPException: refuse, Exception: broken},
    )
    logged = AccessLog(options.access_log, names_only=True).wrap(faults.wrap(app))
    return Served(logged, base, None, audience)


class AzureExports(MicrosoftExports):
    """Files lie in the customer's storage, without one on the server itself."""

    def __init__(self, options: Options, base_url: str, gate: Gate, storage: BlobStorage | None) -> None:
        self._storage = storage
        super().__init__(options, base_url, "", _STATUS, gate)

    def settle(self, job: Job, files: list[PlannedFile]) -> list[PlannedFile]:
        """Write the files; a job that fails leaves half of them behind, a deleted one stops."""
        from azure.core.exceptions import HttpResponseError

        files = super().settle(job, files)
        if self._storage is None:
            return files
        for number in range(len(files) // 2 if job.failure else len(files)):
            if job.deleted:
                break
            try:
                self._storage.write(*self._place(job, files, number), self.body(job, files[number]))
            except HttpResponseError as error:
                job.failure = error.status_code or 500
                break
        return files

    def manifest(self, request: Request, job: Job, files: list[PlannedFile]) -> Response:  # noqa: ARG002
        """`error` is always empty here (protocol fact 22)."""
        return self.respond(
            {
                "transactionTime": self.transaction_time(job),
                "request": job.request.url,
                "requiresAccessToken": self._storage is None,
                "output": [
                    {
                        "type": file.resource_type,
                        "url": self._url(job, files, number),
                        "count": file.count,
                    }
                    for number, file in enumerate(self.shown(files))
                ],
                "error": [],
                "issues": [],
            }
        )

    async def file(self, request: Request) -> Response:
        """A file on the server itself, with the bearer."""
        self._gate.authorize(request)
        job = self.job_of(request)
        files = job.files if self.jobs.state_of(job) == "complete" else None
        for number, file in enumerate(files or []):
            if (
                self._storage is None
                and self._place(job, files or [], number)[1] == request.path_params["path"]
            ):
                return StreamingResponse(
                    chunks(self.lines(job, file), compress=False), media_type="application/fhir+ndjson"
                )
        raise Refusal(404, "not-found", "There is no such file")

    def _url(self, job: Job, files: list[PlannedFile], number: int) -> str:
        container, name = self._place(job, files, number)
        if self._storage is None:
            return f"{self._base}/_export/{job.id}/{name}"
        return self._storage.url(container, name)

    def _place(self, job: Job, files: list[PlannedFile], number: int) -> tuple[str, str]:
        path = self.blob_path(job, files, number)
        container = job.container or self._options.storage_container
        if container:
            return container, path
        folder, _, name = path.partition("/")
        return folder, name
