"""The driver over the command line: `fhir-export run SOURCE --wait`, killed and run again till quiet."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chaos.killing import At
from chaos.plan import Life, Night
from chaos.site import BIN, SOURCE, Site

PATIENCE = 200.0
"""Seconds for one life; one that takes longer hangs."""

CLEAN_LIVES = 4
"""After the faults of a night are over: so many runs at most until it is published."""


@dataclass
class Course:
    """What happened."""

    lives: int = 0
    kill_points: dict[str, int] = field(default_factory=dict)
    """Kills, by kill point."""
    events: dict[str, int] = field(default_factory=dict)
    """What befell the server or the disk."""
    retried: set[str] = field(default_factory=set)
    """Held exports that were tried again."""
    problems: list[str] = field(default_factory=list)

    def killed_at(self, name: str) -> None:
        self.kill_points[name] = self.kill_points.get(name, 0) + 1

    def befell(self, name: str) -> None:
        self.events[name] = self.events.get(name, 0) + 1


def drive(site: Site, course: Course) -> None:
    """All nights of the plan; `course` takes what happens."""
    for number, night in enumerate(site.plan.nights, 1):
        site.sandbox.control(night=number)
        _night(site, course, night, number)
    for _ in range(CLEAN_LIVES):
        if all(_is_at_rest(each) for each in listed(site)):
            return
        _live(site, course, Life())


def _is_at_rest(export: dict[str, Any]) -> bool:
    """Whether the next command has nothing to do for it: each goes on with one export that is open, and gives
    the jobs of earlier ones back."""
    over = {"published", "held", "gone", "rejected", "cancelled", "withdrawn"}
    return export["state"] in over and not export["next_step"].startswith("release")


def _night(site: Site, course: Course, night: Night, number: int) -> None:
    site.set_faults(night.faults)
    published = False
    for life in night.lives:
        published = _live(site, course, life).get("state") == "published"
        if published:
            break
    site.set_faults(())
    for _ in range(CLEAN_LIVES):
        if published:
            return
        retry_held(site, course)
        published = _live(site, course, Life()).get("state") == "published"
    if not published:
        course.problems.append(f"night {number}: nothing is published although the faults are over")


def retry_held(site: Site, course: Course) -> None:
    """An operator's part: what is held is tried again, once its cause has gone."""
    for each in listed(site):
        if each["state"] == "held" and each["export_id"] not in course.retried:
            course.retried.add(each["export_id"])
            site.cli("retry", f"{SOURCE}/{each['export_id']}")


def listed(site: Site) -> list[dict[str, Any]]:
    """`fhir-export exports --json`."""
    found: list[dict[str, Any]] = json.loads(site.cli("exports", SOURCE, "--json").stdout or "[]")
    return found


def _live(site: Site, course: Course, life: Life) -> dict[str, Any]:
    """One process from its start to its end; what it says at its end, nothing where it was killed."""
    course.lives += 1
    with (site.logs / f"life-{course.lives:02d}.log").open("wb") as errors:
        process = subprocess.Popen(
            [str(BIN / "fhir-export"), "run", SOURCE, "--wait", "--json"],
            env=site.environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            cwd=site.folder,
            start_new_session=True,
            preexec_fn=(lambda: _limit(life.file_limit)) if life.file_limit else None,  # noqa: PLW1509
        )
    if life.file_limit:
        course.befell("disk full")
    watcher = None
    if life.kill:
        watcher = At(life.kill, site.source_folder, site.access_log, lambda: kill_group(process.pid))
    server = threading.Thread(target=befall, args=(site, course, life, lambda: process.poll() is None))
    server.start()
    try:
        said = process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        said = process.communicate()[0]
        if _waits(site, course):
            course.befell("cut in a long wait")
        else:
            course.problems.append(f"life {course.lives} had not ended after {PATIENCE:.0f} s")
    finally:
        if watcher:
            watcher.end()
        server.join()
    (site.logs / f"life-{course.lives:02d}.out").write_bytes(said)
    if watcher and watcher.hit and life.kill and process.returncode == -signal.SIGKILL:
        course.killed_at(life.kill.point or "any moment")
        return {}
    return _last_line(said)


def befall(site: Site, course: Course, life: Life, going_on: Any) -> None:
    """What happens to the server in a life, in a thread of its own."""
    if not life.server:
        return
    until = time.monotonic() + life.server_after
    while time.monotonic() < until:
        if not going_on():
            return
        time.sleep(0.05)
    course.befell(f"server {life.server}")
    if life.server == "restart":
        site.restart_server(life.server_for)
    elif life.server == "pause":
        site.pause_server(life.server_for)
    else:
        site.sandbox.control(revoke_tokens=True)


def kill_group(pid: int) -> None:
    """SIGKILL to a process and all that it has started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _waits(site: Site, course: Course) -> bool:
    """Whether the last that a life said is how long it waits, for the server's sake."""
    said = (site.logs / f"life-{course.lives:02d}.log").read_text(errors="replace").strip()
    return re.search(r"\(in \d+ s\)$", said) is not None


def _last_line(said: bytes) -> dict[str, Any]:
    lines = said.decode(errors="replace").strip().splitlines()
    with suppress(IndexError, ValueError):
        value = json.loads(lines[-1])
        return value if isinstance(value, dict) else {}
    return {}
