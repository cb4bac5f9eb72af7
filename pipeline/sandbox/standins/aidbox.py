"""`aidbox` and `smartbox` (azure-and-aidbox B): one server, with or without tenants in its paths."""

from __future__ import annotations

import gzip
from dataclasses import replace

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.sandbox.accesslog import AccessLog
from pipeline.sandbox.addresses import Addresses, Served
from pipeline.sandbox.control import Control
from pipeline.sandbox.exporting import PlannedFile
from pipeline.sandbox.faults import Faults
from pipeline.sandbox.generator.groups import GROUPS
from pipeline.sandbox.jobs import Job
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import Refusal, broken, refuse
from pipeline.sandbox.reads import Reads
from pipeline.sandbox.standins.aidbox_token import AidboxTokens
from pipeline.sandbox.standins.export import Asked, Exports
from pipeline.sandbox.standins.landing import BlobStorage
from pipeline.sandbox.standins.registry import Registry, registered_client
from pipeline.sandbox.standins.signed import Signatures, blob_response, storage_error

_STATUS = "/$export-status/{job}"
_PARAMETERS = frozenset({"_outputFormat", "_type", "_since", "patient"})
_GZIP = "application/fhir+ndjson+gzip"
_PATHS = {"aidbox": "/fhir", "smartbox": "/tenant/{tenant}/bulk-api"}


def build(options: Options, addresses: Addresses) -> Served:
    """Either application. `--registered` begins with the client in place."""
    options = replace(options, one_at_a_time=True)
    base, path = addresses.base_url, _PATHS[options.stand_in or ""]
    own_path = path.format(tenant=options.tenant)
    registry = Registry(options)
    if options.registered:
        registry.put("Client", options.client_id, registered_client(options))
        link = {"id": options.client_id, "resourceType": "Client"}
        registry.put("AccessPolicy", options.client_id, {"engine": "allow", "link": [link]})
    tokens = AidboxTokens(options, registry, base + "/auth/token")
    exports = AidboxExports(options, addresses, path, tokens)
    reads = Reads(options, base + own_path, base + "/auth/token", tokens.bearers, exports.jobs)
    faults = Faults(exports.jobs, tokens.bearers, options.faults)
    control = Control(exports.jobs, tokens.bearers, faults)
    admin = ["GET", "PUT", "DELETE"]
    app = Starlette(
        routes=[
            Route("/control", control.endpoint, methods=["GET", "POST"]),
            Route("/auth/token", tokens.endpoint, methods=["POST"]),
            Route("/Client/{id}", registry.endpoint("Client"), methods=admin),
            Route("/AccessPolicy/{id}", registry.endpoint("AccessPolicy"), methods=admin),
            Route("/signed/{job}/{name}", exports.file),
            Route(path + "/.well-known/smart-configuration", reads.smart_configuration),
            Route(path + "/metadata", reads.capability_statement),
            Route(path + "/$export", exports.kick_off),
            Route(path + "/Patient/$export", exports.kick_off),
            Route(path + "/Group/{group}/$export", exports.kick_off),
            Route(path + _STATUS, exports.status),
            Route(path + _STATUS, exports.delete, methods=["DELETE"]),
            Route(path + "/{type}/{id}", reads.read),
            Route(path + "/{type}", reads.search),
        ],
        exception_handlers={HTTPException: refuse, Exception: broken},
    )
    logged = AccessLog(options.access_log, names_only=True).wrap(faults.wrap(app))
    return Served(logged, base + own_path, base + "/auth/token", base + "/auth/token")


class AidboxExports(Exports):
    """One export at a time on the whole box; files behind signed URLs that die soon."""

    def __init__(self, options: Options, addresses: Addresses, path: str, tokens: AidboxTokens) -> None:
        self._storage = None if options.storage is None else BlobStorage(options.storage)
        self._signatures = Signatures(addresses.storage_url, options.signed_url_seconds)
        super().__init__(options, addresses.base_url, path, _STATUS, tokens.bearers)

    def read(self, request: Request, level: str) -> Asked:
        """`_outputFormat`, `_type`, `_since` and `patient` only; `patient` is good in a GET here."""
        if self._options.no_storage:
            raise Refusal(500, "exception", "No storage is configured for bulk export")
        group = request.path_params.get("group")
        if group is not None and group not in GROUPS:
            raise Refusal(404, "not-found", "There is no such Group")
        raw = tuple(request.query_params.multi_items())
        pairs = []
        for name, value in raw:
            if name not in _PARAMETERS:
                raise Refusal(400, "not-supported", f"Parameter {name} is not supported")
            if name == "_outputFormat" and value == _GZIP:
                continue
            values = value.split(",") if name == "patient" else [value]
            prefix = "Patient/" if name == "patient" else ""
            pairs += [(name, prefix + each.removeprefix("Patient/") if prefix else each) for each in values]
        if level == "system" and any(name == "patient" for name, _ in pairs):
            raise Refusal(400, "invalid", "patient is not for system level exports")
        return Asked(tuple(pairs), raw, owner=request.path_params.get("tenant", ""))

    def location(self, request: Request, job: Job) -> str:
        """Relative, with the dollar sign (protocol fact 17)."""
        path = self._path.format(tenant=request.path_params.get("tenant", ""))
        return path + self._status.format(job=job.id)

    def job_of(self, request: Request) -> Job:
        """A job of another tenant is none."""
        job = super().job_of(request)
        if job.owner != request.path_params.get("tenant", ""):
            raise Refusal(404, "not-found", "There is no such export")
        return job

    def settle(self, job: Job, files: list[PlannedFile]) -> list[PlannedFile]:
        """Write the files where there is a storage account."""
        files = super().settle(job, files)
        if self._storage is not None:
            for number in range(len(files)):
                content = self._content(job, files, number)
                self._storage.write(self._container, f"{job.id}/{self._name(job, files, number)}", content)
        return files

    def manifest(self, request: Request, job: Job, files: list[PlannedFile]) -> Response:  # noqa: ARG002
        """Signed URLs, new ones each time; `request` and `error` are missing, `status` is extra."""
        return self.respond(
            {
                "status": "completed",
                "transactionTime": self.transaction_time(job),
                "requiresAccessToken": False,
                "output": [
                    {
                        "type": file.resource_type,
                        "url": self._url(job, self._name(job, files, number)),
                        "count": file.count,
                    }
                    for number, file in enumerate(files)
                ],
            }
        )

    async def file(self, request: Request) -> Response:
        """A file by its signature; a bearer here is refused."""
        problem = self._signatures.problem(request)
        if problem is not None:
            return problem
        job = self.jobs.all.get(request.path_params["job"])
        files = job.files if job is not None and self.jobs.state_of(job) == "complete" else None
        if job is not None and files is not None:
            names = [self._name(job, files, number) for number in range(len(files))]
            if request.path_params["name"] in names:
                number = names.index(request.path_params["name"])
                content = await run_in_threadpool(self._content, job, files, number)
                return blob_response(request, content, "application/fhir+ndjson")
        return storage_error(404, "BlobNotFound")

    @property
    def _container(self) -> str:
        return self._options.storage_container or "aidbox"

    def _url(self, job: Job, name: str) -> str:
        if self._storage is None:
            return self._signatures.url(f"/signed/{job.id}/{name}")
        return self._storage.signed_url(self._container, f"{job.id}/{name}", self._options.signed_url_seconds)

    def _content(self, job: Job, files: list[PlannedFile], number: int) -> bytes:
        body = self.body(job, files[number])
        return gzip.compress(body, 1, mtime=0) if _packed(job) else body

    @staticmethod
    def _name(job: Job, files: list[PlannedFile], number: int) -> str:
        return f"{files[number].resource_type}-{number}.ndjson" + (".gz" if _packed(job) else "")


def _packed(job: Job) -> bool:
    return ("_outputFormat", _GZIP) in job.asked
