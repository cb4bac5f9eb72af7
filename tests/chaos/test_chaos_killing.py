"""Kill points: the moment comes with what appears in the lake or in the server's log, and not before."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from chaos.catalogue import LAKE_POINTS, REQUEST_POINTS
from chaos.command_line import kill_group
from chaos.killing import At
from chaos.plan import Moment

PATHS = {
    "intent": "exports/20260101T000000Z/intent.json",
    "request": "exports/20260101T000000Z/request.json",
    "manifest": "exports/20260101T000000Z/manifest-0002.json",
    "claim": "exports/20260101T000000Z/attempts/0001.json",
    "attempt error": "exports/20260101T000000Z/attempts/0001.error.json",
    "raw": "raw/20260101T000000Z/patient/000000",
    "landed": "exports/20260101T000000Z/landed/patient-000000.json",
    "part": "tables/patient/export_id=20260101T000000Z/part-0001-abc.parquet",
    "staged": "exports/20260101T000000Z/staged/0001/patient-000000.json",
    "commit": "tables/patient/_delta_log/00000000000000000000.json",
    "lineage": "tables/_lineage/_delta_log/00000000000000000000.json",
    "exports row": "tables/_exports/_delta_log/00000000000000000000.json",
    "published": "exports/20260101T000000Z/published/0001.json",
    "receipt": "exports/20260101T000000Z/receipts/0001.json",
    "released": "exports/20260101T000000Z/released.json",
}
REQUESTS = {
    "token request": ("POST", "/auth/token"),
    "kick-off request": ("GET", "/fhir/Group/demo/$export"),
    "status request": ("GET", "/bulk/status/abc"),
    "page request": ("GET", "/bulk/status/abc/pages/2"),
    "file request": ("GET", "/bulk/files/abc/0.ndjson"),
    "delete request": ("DELETE", "/bulk/status/abc"),
}


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


@pytest.mark.parametrize("point", LAKE_POINTS)
def test_each_point_of_the_lake_is_met_by_its_own_file_and_no_other(point: str, tmp_path: Path) -> None:
    met = threading.Event()
    write(tmp_path / PATHS[point].replace("2026", "2025"))  # there before: not new
    watcher = At(Moment(point=point), tmp_path, tmp_path / "log", met.set)
    for other, path in PATHS.items():
        if other != point:
            write(tmp_path / path)
    assert not met.wait(0.1)
    write(tmp_path / PATHS[point].replace("2026", "2027").replace("00000.json", "00001.json"))
    assert met.wait(30)
    watcher.end()
    assert watcher.hit


@pytest.mark.parametrize("point", REQUEST_POINTS)
def test_each_request_is_met_by_its_own_line_at_its_number(point: str, tmp_path: Path) -> None:
    met = threading.Event()
    log = tmp_path / "log"

    def line(method: str, path: str) -> bytes:
        return f'{{"time":"t","method":"{method}","path":"{path}","query":""}}\n'.encode()

    log.write_bytes(b"".join(line(*request) for request in REQUESTS.values()))
    watcher = At(Moment(point=point, number=2), tmp_path, log, met.set)
    with log.open("ab") as file:
        file.write(b"".join(line(*request) for request in REQUESTS.values()))
        file.flush()
        assert not met.wait(0.1)
        file.write(line(*REQUESTS[point]))
        file.flush()
        assert met.wait(30)
    watcher.end()


CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
draft = pathlib.Path(sys.argv[1] + ".tmp")
draft.write_text(str(child.pid))
draft.rename(sys.argv[1])
time.sleep(60)
"""


def test_what_is_killed_dies_with_its_children(tmp_path: Path) -> None:
    told = tmp_path / "exports" / "20260101T000000Z" / "request.json"
    told.parent.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(told)], start_new_session=True)
    watcher = At(Moment(point="request"), tmp_path, tmp_path / "log", lambda: kill_group(process.pid))
    assert process.wait(30) == -signal.SIGKILL
    watcher.end()
    child = int(told.read_text())
    until = time.monotonic() + 30
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_moment_that_does_not_come_ends_with_its_life(tmp_path: Path) -> None:
    watcher = At(Moment(point="receipt"), tmp_path, tmp_path / "log", lambda: None)
    watcher.end()
    assert not watcher.hit
