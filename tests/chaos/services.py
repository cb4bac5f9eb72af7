"""The driver over the services: code server, daemon and webserver; schedule, sensor, run workers.

What is killed of the services comes back after a moment, as under any supervisor; workers and steps do not.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from chaos.command_line import Course, befall, kill_group, retry_held
from chaos.killing import At
from chaos.plan import Life
from chaos.site import BIN, SOURCE, Site, free_port

KILL_WITHIN = 150.0
"""Seconds for a moment to come; the schedule alone may take a minute."""

WORKER_WITHIN = 90.0
"""Seconds for a run worker or a step to be there, when one is to be killed and there is none."""

QUIET_WITHIN = 300.0
"""Seconds from the end of the faults until an export is published and nothing is open."""

BACK_AFTER = 1.0
"""Seconds until a killed service is started again."""

ENDS = ("held", "gone", "rejected", "cancelled", "withdrawn")

_PAGES = """{runsOrError{... on Runs{results{runId status tags{key value} runConfigYaml
  eventConnection{events{__typename ... on MessageEvent{message}
    ... on MaterializationEvent{metadataEntries{label description ... on TextMetadataEntry{text}
      ... on JsonMetadataEntry{jsonString}}}
    ... on ObservationEvent{metadataEntries{label description ... on TextMetadataEntry{text}}}
    ... on ExecutionStepFailureEvent{error{message stack cause{message stack}}}}}}}}}"""


class Services:
    """The three of them, each startable again."""

    def __init__(self, site: Site) -> None:
        self._site = site
        code, self.ui = free_port(), free_port()
        workspace = site.home / "workspace.yaml"
        entry = {"grpc_server": {"host": "127.0.0.1", "port": code, "location_name": "pipeline"}}
        workspace.write_text(yaml.safe_dump({"load_from": [entry]}))
        serve = ["dagster", "code-server", "start", "-m", "pipeline.definitions", "-h", "127.0.0.1"]
        self.workspace = ["-w", str(workspace)]
        self._commands = {
            "code server": [*serve, "-p", str(code)],
            "daemon": ["dagster-daemon", "run", *self.workspace],
            "webserver": ["dagster-webserver", "-h", "127.0.0.1", "-p", str(self.ui), *self.workspace],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """All; the code server first, and the rest when it serves."""
        self.spawn("code server")
        port = int(self._commands["code server"][-1])
        _eventually(lambda: _listens(port), 90)
        for name in ("daemon", "webserver"):
            self.spawn(name)

    def spawn(self, name: str) -> None:
        """One of them, in a session of its own, with its output in the logs."""
        program, *arguments = self._commands[name]
        with (self._site.logs / f"{name.replace(' ', '-')}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(BIN / program), *arguments],
                env=self._site.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._site.folder,
                start_new_session=True,
            )

    def kill(self, target: str) -> bool:
        """SIGKILL; False where no such process has come in time."""
        if target in ("run worker", "step process"):
            until = time.monotonic() + WORKER_WITHIN
            while not (found := self.workers()[target][:1]) and time.monotonic() < until:
                time.sleep(0.1)
            return _kill(found)
        victim = self._running[target]
        if target == "code server":
            # Its run workers are not killed with it: they are processes of their own, and go on.
            server = [psutil.Process(victim.pid), *psutil.Process(victim.pid).children(recursive=True)]
            _kill([each for each in server if not _is_spawned(each)])
        else:
            kill_group(victim.pid)
        victim.wait(30)
        time.sleep(BACK_AFTER)
        self.spawn(target)
        return True

    def stop(self) -> None:
        """All, run workers too."""
        workers = [each for found in self.workers().values() for each in found]
        for process in self._running.values():
            kill_group(process.pid)
            process.wait(30)
        _kill(workers)

    def workers(self) -> dict[str, list[psutil.Process]]:
        """Run workers are spawned by a code server, steps by a run worker; told by the lake they work for."""
        found: dict[str, list[psutil.Process]] = {"run worker": [], "step process": []}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if not _is_spawned(process) or process.environ().get("DAGSTER_HOME") != str(self._site.home):
                    continue
                above = process.parent()
                found["step process" if above and _is_spawned(above) else "run worker"].append(process)
        return found

    def dagster(self, *arguments: str) -> None:
        """A command of Dagster's own against this workspace, whose code server may just begin again."""
        port = int(self._commands["code server"][-1])
        _eventually(lambda: _listens(port), 90)
        subprocess.run(
            [str(BIN / "dagster"), *arguments, *self.workspace],
            env=self._site.environment,
            check=True,
            capture_output=True,
            cwd=self._site.folder,
            timeout=120,
        )

    def keep_pages(self) -> None:
        """What the UI shows of runs and their events, for the search for secrets."""
        base = f"http://127.0.0.1:{self.ui}"
        _eventually(lambda: _listens(self.ui), 90)
        page = httpx.get(base + "/", timeout=60).raise_for_status()
        told = httpx.post(base + "/graphql", json={"query": _PAGES}, timeout=120).raise_for_status()
        assert told.json().get("data", {}).get("runsOrError", {}).get("results"), told.text[:500]
        (self._site.logs / "page.html").write_bytes(page.content)
        (self._site.logs / "runs.json").write_bytes(told.content)


def drive(site: Site, course: Course) -> None:
    """The plan's one night, opened by the schedule; then until it is quiet."""
    (night,) = site.plan.nights
    services = Services(site)
    try:
        services.start()
        site.set_faults(night.faults)
        services.dagster("schedule", "start", f"{SOURCE}_schedule")
        for life in night.lives:
            _live(site, course, services, life)
        site.set_faults(())
        _settle(site, course, services)
        services.keep_pages()
    finally:
        services.stop()


def _settle(site: Site, course: Course, services: Services) -> None:
    """Until an export is published; then the schedule stops, and what is open comes to its end."""
    until = time.monotonic() + QUIET_WITHIN
    stopped = False
    while time.monotonic() < until:
        states = _states(site.source_folder / "exports")
        if "held" in states.values():
            retry_held(site, course)
        if not stopped and any(state == "published" for state in states.values()):
            services.dagster("schedule", "stop", f"{SOURCE}_schedule")
            stopped = True
        if stopped and "open" not in states.values() and not _busy(services):
            return
        time.sleep(1)
    course.problems.append(f"not quiet {QUIET_WITHIN:.0f} s after the faults: {sorted(states.items())}")


def _busy(services: Services) -> bool:
    return any(services.workers().values())


def _states(exports: Path) -> dict[str, str]:
    """By the names of facts alone."""
    found = {}
    for folder in sorted(exports.glob("*")):
        ended = next((state for state in ENDS if (folder / f"{state}.json").exists()), "open")
        held, retries = len(list(folder.glob("held*.json"))), len(list((folder / "retries").glob("*.json")))
        if ended == "held" and retries >= held:
            ended = "open"
        done = (folder / "receipts").exists() and (folder / "released.json").exists()
        found[folder.name] = "published" if done else ended
    return found


def _live(site: Site, course: Course, services: Services, life: Life) -> None:
    course.lives += 1
    over = threading.Event()
    server = threading.Thread(target=befall, args=(site, course, life, lambda: not over.is_set()))
    server.start()
    hit: list[bool] = []
    if life.kill:
        watcher = At(
            life.kill, site.source_folder, site.access_log, lambda: hit.append(services.kill(life.target))
        )
        until = time.monotonic() + KILL_WITHIN
        while time.monotonic() < until and not watcher.hit:
            time.sleep(0.1)
        watcher.end()
        if any(hit):
            course.killed_at(f"{life.target}: {life.kill.point or 'any moment'}")
    elif life.server:
        time.sleep(life.server_after)
    over.set()
    server.join()


def _is_spawned(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("spawn_main" in part for part in process.cmdline())
    return False


def _kill(processes: list[psutil.Process]) -> bool:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    return bool(processes)


def _listens(port: int) -> bool:
    import socket

    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _eventually(what: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            raise AssertionError(f"nothing in {seconds:.0f} s")
        time.sleep(0.2)
