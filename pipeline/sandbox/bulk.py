"""The bulk export endpoints: kick-off, status, manifest pages, files, delete."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from email.utils import formatdate
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pipeline.sandbox.exporting import PlannedFile, chunks, lines_of, part
from pipeline.sandbox.generator.datatypes import instant
from pipeline.sandbox.generator.groups import GROUPS
from pipeline.sandbox.generator.world import night_instant
from pipeline.sandbox.jobs import Job, Jobs
from pipeline.sandbox.kickoff import parse_request, request_parameters, wants_asynchronous
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import FHIR_JSON, Refusal, json_response, operation_outcome
from pipeline.sandbox.tokens import Tokens, authorize_type

_NDJSON = "application/fhir+ndjson"
_LIFETIME = 24 * 3600
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class BulkExport:
    """The endpoints; `base_url` is the server's own, without a final slash."""

    def __init__(self, options: Options, base_url: str, tokens: Tokens, jobs: Jobs) -> None:
        self._options = options
        self._base = base_url
        self._tokens = tokens
        self._jobs = jobs
        self._secret = secrets.token_bytes(16)

    async def kick_off(self, request: Request) -> Response:
        """`$export` of the system, of all patients or of a group: 202 and where to ask for its state."""
        scopes = self._tokens.authorize(request)
        group = request.path_params.get("group")
        if group is not None and group not in GROUPS:
            raise Refusal(404, "not-found", "There is no such Group")
        level = "group" if group else "patient" if "/Patient/" in request.url.path else "system"
        lenient = wants_asynchronous(request)
        pairs = await request_parameters(request)
        world = self._options.world(self._jobs.night)
        url = self._base + request.url.path + (f"?{request.url.query}" if request.url.query else "")
        export = parse_request(world, level, group, url, pairs, lenient=lenient)
        for resource_type in export.types:
            authorize_type(scopes, resource_type)
        job = self._jobs.accept(export, scopes, lenient=lenient)
        outcome = operation_outcome("informational", "The export was accepted", "information")
        where = f"{self._base}/bulk/status/{job.id}"
        return json_response(outcome, 202, FHIR_JSON, {"Content-Location": where})

    async def status(self, request: Request) -> Response:
        """202 with progress, 200 with the first manifest page, or what went wrong."""
        self._tokens.authorize(request)
        job = self._jobs.living(request.path_params["job"])
        if request.headers.get("accept", "").split(";")[0].strip() != "application/json":
            raise Refusal(400, "invalid", "Accept must be application/json")
        state = self._jobs.state_of(job)
        if state == "failed":
            raise Refusal(job.failure or 500, "exception", "The export failed")
        if state == "complete":
            job.manifest_reads += 1
            return self._manifest_page(job, 1)
        return self._in_progress(job)

    async def manifest_page(self, request: Request) -> Response:
        """A further page of the manifest."""
        self._tokens.authorize(request)
        job = self._jobs.living(request.path_params["job"])
        if self._jobs.state_of(job) != "complete":
            raise Refusal(404, "not-found", "The manifest is not there yet")
        return self._manifest_page(job, request.path_params["page"])

    async def delete(self, request: Request) -> Response:
        """Cancel the job, or drop its files: 202, afterwards 404."""
        self._tokens.authorize(request)
        self._jobs.delete(self._jobs.living(request.path_params["job"]))
        outcome = operation_outcome("informational", "The export was deleted", "information")
        return json_response(outcome, 202, FHIR_JSON)

    async def file(self, request: Request) -> Response:
        """One file, made while it is sent."""
        scopes = self._tokens.authorize(request)
        job = self._jobs.living(request.path_params["job"])
        number = request.path_params["number"]
        if job.files is None or self._jobs.state_of(job) != "complete" or number >= len(job.files):
            raise Refusal(404, "not-found", "There is no such file")
        self._check_signature(request, job, number)
        planned = job.files[number]
        if planned.kind == "output":
            authorize_type(scopes, planned.resource_type)
        if "range" in request.headers and self._options.gzip != "bare":
            partial = await self._partial(request, job, number)
            if partial is not None:
                return partial
        offered = [
            part.split(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")
        ]
        accepted = self._options.gzip == "accepted" and "gzip" in offered
        headers = {
            "ETag": f'"{job.id}-{number}-gzip"' if accepted else self._etag(job, number),
            "Vary": "Accept-Encoding",
            "Accept-Ranges": "bytes",
            "Expires": formatdate(job.accepted + _LIFETIME, usegmt=True),
        }
        if accepted:
            headers["Content-Encoding"] = "gzip"
        body = chunks(self._lines(job, planned), compress=accepted or self._options.gzip == "bare")
        return StreamingResponse(body, 200, headers, _NDJSON)

    def _in_progress(self, job: Job) -> Response:
        pace = self._options.poll_seconds
        headers = {"Retry-After": str(max(1, math.ceil(pace)))} if pace > 0 else {}
        if pace > 0 and job.too_hasty(pace):
            raise Refusal(429, "throttled", "Polling faster than Retry-After asks for", headers)
        share = self._jobs.progress(job)
        done = int(share * len(job.types))
        headers["X-Progress"] = f"{int(share * 100)}%, {done} of {len(job.types)} types"
        return Response(status_code=202, headers=headers)

    def _manifest_page(self, job: Job, page: int) -> Response:
        files = job.files or []
        size = self._options.page_size or max(1, len(files))
        pages = max(1, -(-len(files) // size))
        if not 1 <= page <= pages:
            raise Refusal(404, "not-found", "There is no such manifest page")
        manifest: dict[str, Any] = {
            "transactionTime": instant(night_instant(job.night)),
            "request": job.request.url,
            "requiresAccessToken": True,
            "output": [],
            "deleted": [],
            "error": [],
            "extension": {"https://ehr.sandbox.example/night": job.night},
        }
        for number in range((page - 1) * size, min(page * size, len(files))):
            planned = files[number]
            entry = {
                "type": planned.resource_type,
                "url": self._file_url(job, number),
                "count": planned.count,
            }
            manifest[planned.kind].append(entry)
        if page < pages:
            following = f"{self._base}/bulk/status/{job.id}/pages/{page + 1}"
            manifest["link"] = [{"relation": "next", "url": following}]
        return json_response(manifest, headers={"Expires": formatdate(time.time() + _LIFETIME, usegmt=True)})

    def _lines(self, job: Job, planned: PlannedFile) -> Any:
        return lines_of(self._options.world(job.night), job.request, job.types, planned)

    def _file_url(self, job: Job, number: int) -> str:
        reading = job.manifest_reads
        signature = self._signature(job, number, reading)
        return f"{self._base}/bulk/files/{job.id}/{number}.ndjson?r={reading}&sig={signature}"

    def _signature(self, job: Job, number: int, reading: int) -> str:
        text = f"{job.id}/{number}/{reading}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:32]

    def _check_signature(self, request: Request, job: Job, number: int) -> None:
        reading = request.query_params.get("r", "")
        given = request.query_params.get("sig", "")
        if not reading.isdecimal() or not hmac.compare_digest(
            given.encode(), self._signature(job, number, int(reading)).encode()
        ):
            raise Refusal(403, "security", "The signature of the file URL is missing or wrong")

    @staticmethod
    def _etag(job: Job, number: int) -> str:
        return f'"{job.id}-{number}"'

    async def _partial(self, request: Request, job: Job, number: int) -> Response | None:
        """206 or 416 for one byte range of the uncompressed file; None where the whole file is to be sent."""
        found = _RANGE.fullmatch(request.headers["range"].strip())
        if found is None or not (found[1] or found[2]):
            return None
        if request.headers.get("if-range", self._etag(job, number)) != self._etag(job, number):
            return None
        planned = (job.files or [])[number]
        if number not in job.lengths:
            job.lengths[number] = await run_in_threadpool(
                lambda: sum(len(text) for text in self._lines(job, planned))
            )
        length = job.lengths[number]
        if found[1]:
            start, stop = int(found[1]), min(length, int(found[2]) + 1) if found[2] else length
        else:
            start, stop = max(0, length - int(found[2])), length
        if start >= stop:
            raise Refusal(
                416, "invalid", "The range is outside the file", {"Content-Range": f"bytes */{length}"}
            )
        headers = {
            "ETag": self._etag(job, number),
            "Content-Range": f"bytes {start}-{stop - 1}/{length}",
            "Content-Length": str(stop - start),
            "Vary": "Accept-Encoding",
        }
        body = part(chunks(self._lines(job, planned), compress=False), start, stop)
        return StreamingResponse(body, 206, headers, _NDJSON)
