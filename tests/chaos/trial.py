"""One seed from its plan to its result."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos import command_line, services
from chaos.catalogue import CATALOGUE
from chaos.command_line import Course, listed
from chaos.oracle import Oracle
from chaos.plan import Plan, plan_of
from chaos.secrets_search import everything, needles_of, search
from chaos.server_truth import ServerTruth
from chaos.site import ROOT, SOURCE, Site, open_site

_MEMORY = Path("/dev/shm")
"""Where seeds live, if it is there: a killed process loses nothing of it, and fsync costs no time."""


class Reader:
    """The process that scans the tables while everything else happens."""

    def __init__(self, site: Site) -> None:
        self._out = site.folder / "sightings.json"
        command = [sys.executable, "-m", "chaos.reader", str(site.source_folder / "tables"), str(self._out)]
        environment = {**site.environment, "PYTHONPATH": str(ROOT / "tests")}
        with (site.folder / "reader.log").open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=log)

    def end(self) -> dict[str, Any]:
        """What it saw."""
        self._process.communicate(timeout=120)
        assert self._process.returncode == 0, "the reader itself failed: see reader.log"
        found: dict[str, Any] = json.loads(self._out.read_bytes())
        return found

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def _reading(site: Site) -> Iterator[Reader]:
    reader = Reader(site)
    try:
        yield reader
    finally:
        reader.stop()


def try_seed(seed: int) -> dict[str, Any]:
    """One seed in a folder of its own, which stays where there was a problem."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir=_MEMORY if _MEMORY.is_dir() else None))
    result = run_seed(seed, folder / "site")
    if result["problems"]:
        result["folder"] = str(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Runs it in a new folder and judges it; the result as JSON. `problems` is empty when all is well."""
    return run_plan(plan_of(seed), folder)


def run_plan(plan: Plan, folder: Path) -> dict[str, Any]:
    """As `run_seed`, for a plan that is there already."""
    began, cpu = time.monotonic(), _cpu()
    result: dict[str, Any] = {
        "seed": plan.seed,
        "commit": commit(),
        "driver": plan.driver,
        "plan": plan.as_json(),
    }
    course = Course()
    try:
        with open_site(folder, plan) as site, _reading(site) as reader:
            drive = services.drive if plan.driver == "services" else command_line.drive
            drive(site, course)
            site.set_faults(())
            result |= _judge(site, course, reader)
    except Exception as error:  # noqa: BLE001 - a harness that breaks is a problem of its own, and is told
        result["problems"] = {"harness": [f"{type(error).__name__}: {error}"]}
        result["traceback"] = "".join(traceback.format_exception(error))[-4000:]
    if course.problems:
        result["problems"] = {**result.get("problems", {}), "course": course.problems}
    result |= {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(_cpu() - cpu, 1)}
    result.setdefault("problems", {})
    return result


def _judge(site: Site, course: Course, reader: Reader) -> dict[str, Any]:
    exports = listed(site)
    for each in exports[:1]:
        site.cli("show", f"{SOURCE}/{each['export_id']}")
    sightings = reader.end()
    log = site.log()
    truth = ServerTruth(site.sandbox.base_url, site.keys / "oracle.pem")
    try:
        oracle = Oracle(site.source_folder, truth, log)
        used = {kind for kind, times in site.used.items() if times}
        verdict = oracle.judge(
            exports,
            sightings,
            data_may_end="disk full" in course.events or any(CATALOGUE[kind].data_may_end for kind in used),
            lines_altered=any(CATALOGUE[kind].alters for kind in used),
            answers_lost=sum(
                site.used.get(each, 0) for each in ("kick-off done and 500", "kick-off without address")
            ),
        )
        patients = _patients(truth, site)
    finally:
        truth.close()
    needles = needles_of(site.log(), site.keys, patients)
    secrets = search(everything(site.folder), needles)
    problems = dict(verdict.problems)
    if secrets:
        problems["secrets"] = secrets
    return {
        "lives": course.lives,
        "faults": site.used,
        "kills": course.kill_points,
        "events": course.events,
        "verdict": {name: value for name, value in asdict(verdict).items() if not isinstance(value, list)},
        "needles": len(needles),
        "problems": problems,
    }


def _patients(truth: ServerTruth, site: Site) -> list[bytes]:
    """The Patient resources of the whole server, whatever the plan exported."""
    nights = len(site.plan.nights)
    job = {"night": nights, "level": "patient", "group": None, "parameters": [["_type", "Patient"]]}
    return list(truth.of_job(job)["Patient"])


def commit() -> str:
    """The commit that is tried, with a + where the tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "pipeline") else "")


def _cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in each)
