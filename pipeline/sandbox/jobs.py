"""Export jobs: in progress, complete, deleted; kept over a restart where a state folder is given."""

from __future__ import annotations

import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pipeline.sandbox.exporting import PlannedFile, exported_types, plan
from pipeline.sandbox.kickoff import ExportRequest, parse_request
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import Refusal
from pipeline.sandbox.scopes import Scopes


@dataclass(slots=True)
class Job:
    """One accepted kick-off. `files` is None until it is planned; `night` is the one of the kick-off."""

    id: str
    night: int
    request: ExportRequest
    lenient: bool
    types: tuple[str, ...]
    accepted: float
    files: list[PlannedFile] | None = None
    failed: bool = False
    deleted: bool = False
    manifest_reads: int = 0
    asked: tuple[tuple[str, str], ...] = ()
    """The parameters as they came, where the server translated them."""
    owner: str = ""
    """Who asked, where the server keeps callers apart."""
    container: str = ""
    """The container that was asked for."""
    failure: int = 0
    """The HTTP status with which it fails when its time is over; 0: it does not."""
    gone: int = 0
    """The HTTP status of every request for it, once it is forgotten; 0: it is not."""
    stuck: bool = False
    """It stays in progress for ever (protocol fact 25)."""
    lengths: dict[int, int] = field(default_factory=dict)
    _polled: float | None = None
    _hasty: int = 0

    def too_hasty(self, seconds: float) -> bool:
        """Note a poll; True at the third and later ones that came in less than half of `seconds`."""
        now = time.monotonic()
        if self._polled is not None and now - self._polled < seconds / 2:
            self._hasty += 1
        self._polled = now
        return self._hasty >= 3


Settle = Callable[[Job, list[PlannedFile]], list[PlannedFile]]
"""What a server does with the planned files before the job is complete; the files it then has."""


class Jobs:
    """All jobs and the night the server is in."""

    def __init__(self, options: Options, settle: Settle | None = None) -> None:
        self._options = options
        self._settle = settle
        self._state = options.state / "state.json" if options.state else None
        self._lock = threading.Lock()
        self.night = options.night
        self.kickoffs = 0
        self.all: dict[str, Job] = {}
        if self._state and self._state.exists():
            self._load(self._state)

    def accept(
        self,
        request: ExportRequest,
        scopes: Scopes,
        *,
        lenient: bool,
        asked: tuple[tuple[str, str], ...] = (),
        owner: str = "",
        container: str = "",
        failure: int = 0,
    ) -> Job:
        """A new job, planned in the background; Refusal 429 where another is in progress, if so set."""
        if self._options.one_at_a_time and any(
            self.state_of(job) == "in-progress" for job in self.all.values()
        ):
            wait = str(max(1, round(self._options.poll_seconds)))
            raise Refusal(429, "throttled", "Another export is in progress", {"Retry-After": wait})
        types = exported_types(request, scopes)
        job = Job(secrets.token_hex(8), self.night, request, lenient, types, time.time())
        job.asked, job.owner, job.container, job.failure = asked, owner, container, failure
        self.kickoffs += 1
        self.all[job.id] = job
        self._plan(job)
        self._save()
        return job

    def living(self, identifier: str) -> Job:
        """The job with that id; Refusal 404 where there is none or it was deleted, 404 or 410 once gone."""
        job = self.all.get(identifier)
        if job is not None and job.gone:
            raise Refusal(job.gone, "not-found", "There is no such export any more")
        if job is None or job.deleted:
            raise Refusal(404, "not-found", "There is no such export")
        return job

    def delete(self, job: Job) -> None:
        """Cancel the job, or drop its files."""
        job.deleted = True
        self._save()

    def doom(self, path: str, *, gone: int | None, stuck: bool, failed: int | None) -> bool:
        """Let the job that a path names be gone, stuck or failed from now on; False where nothing changes."""
        job = next((job for job in self.all.values() if job.id in path), None)
        if job is None or not (gone or stuck or failed):
            return False
        job.gone, job.stuck = gone or 0, stuck
        if failed:
            job.failed, job.failure = True, failed
        self._save()
        return True

    def set_night(self, night: int) -> None:
        """Later kick-offs see the data of that night."""
        self.night = night
        self._save()

    def state_of(self, job: Job) -> str:
        """deleted, gone, failed, in-progress or complete."""
        if job.deleted:
            return "deleted"
        if job.gone:
            return "gone"
        if job.failed:
            return "failed"
        if job.files is None or self.progress(job) < 1:
            return "in-progress"
        return "failed" if job.failure else "complete"

    def progress(self, job: Job) -> float:
        """The share of the export time that has passed, 0 .. 1."""
        most = 0.99 if job.stuck else 1.0
        if self._options.export_seconds <= 0:
            return most
        return min(most, (time.time() - job.accepted) / self._options.export_seconds)

    def describe(self) -> list[dict[str, Any]]:
        """The jobs as the control endpoint lists them, oldest first."""
        return [
            {
                "id": job.id,
                "state": self.state_of(job),
                "level": job.request.level,
                "group": job.request.group,
                "parameters": [list(pair) for pair in job.asked or job.request.parameters],
                "night": job.night,
                "deleted": job.deleted,
                "manifest_reads": job.manifest_reads,
            }
            for job in self.all.values()
        ]

    def _plan(self, job: Job) -> None:
        def run() -> None:
            try:
                world = self._options.world(job.night)
                files = plan(world, job.request, job.types, self._options.file_lines)
                job.files = files if self._settle is None else self._settle(job, files)
            except Exception:  # noqa: BLE001 - the job answers with it, the process goes on
                job.failed = True
                traceback.print_exc(file=sys.stderr)

        threading.Thread(target=run, name=f"plan-{job.id}", daemon=True).start()

    def _save(self) -> None:
        if self._state is None:
            return
        jobs = [
            {
                "id": job.id,
                "night": job.night,
                "level": job.request.level,
                "group": job.request.group,
                "url": job.request.url,
                "parameters": job.request.parameters,
                "lenient": job.lenient,
                "types": job.types,
                "accepted": job.accepted,
                "deleted": job.deleted,
                "asked": job.asked,
                "owner": job.owner,
                "container": job.container,
                "failure": job.failure,
                "failed": job.failed,
                "gone": job.gone,
                "stuck": job.stuck,
            }
            for job in self.all.values()
        ]
        content = {"night": self.night, "kickoffs": self.kickoffs, "jobs": jobs}
        with self._lock:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            draft = self._state.with_suffix(".tmp")
            draft.write_bytes(msgspec.json.encode(content))
            draft.replace(self._state)

    def _load(self, path: Path) -> None:
        content = msgspec.json.decode(path.read_bytes())
        self.night, self.kickoffs = content["night"], content["kickoffs"]
        for kept in content["jobs"]:
            world = self._options.world(kept["night"])
            pairs = [(name, value) for name, value in kept["parameters"]]
            request = parse_request(
                world, kept["level"], kept["group"], kept["url"], pairs, lenient=kept["lenient"]
            )
            job = Job(
                kept["id"], kept["night"], request, kept["lenient"], tuple(kept["types"]), kept["accepted"]
            )
            job.deleted = kept["deleted"]
            job.asked = tuple((name, value) for name, value in kept["asked"])
            job.owner, job.container, job.failure = kept["owner"], kept["container"], kept["failure"]
            job.failed, job.gone, job.stuck = (
                kept.get("failed", False),
                kept.get("gone", 0),
                kept.get("stuck", False),
            )
            self.all[job.id] = job
            if not job.deleted:
                self._plan(job)
