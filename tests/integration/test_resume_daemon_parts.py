"""What test_night_by_daemon does not kill: one step of many, and the code server; the daemon lives on."""

from __future__ import annotations

import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
from nightly_site import BIN, Site, eventually, open_site
from own_ports import own_port
from test_resume_killed_commands import commits, fetched, landed

from pipeline.tables.definitions import table_name

TYPES = {"types": ["Patient", "Observation", "Encounter"]}


def assert_whole_once(site: Site, export_id: str) -> None:
    for kind in TYPES["types"]:
        assert site.ids_in(table_name(kind), export_id) == site.ids_in_truth(1)[kind]
    assert set(commits(site, export_id).values()) == {1}
    assert site.sandbox.control()["kickoffs"] == 1


def steps_of(daemon: int) -> list[psutil.Process]:
    """The processes below the daemon that carry out single steps."""
    found = []
    for process in psutil.Process(daemon).children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_step_that_is_killed_alone_ends_its_run_and_the_sensor_asks_for_the_next(tmp_path: Path) -> None:
    """Facts/dagster.md: the run goes red; what other steps have landed is used, not fetched again."""
    with open_site(tmp_path, export=TYPES, config={"executor": "multiprocess"}) as site:
        site.sandbox.control(faults=[{"path": r"\.ndjson", "delay": 40, "times": 1, "skip": 1}])
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        daemon = site.daemon()
        eventually(lambda: landed(site, export_id), 120)
        victims = eventually(lambda: steps_of(daemon.pid), 60)
        there, before = landed(site, export_id), fetched(site)
        site.sandbox.control(faults=[])
        for victim in victims:
            with suppress(psutil.NoSuchProcess):  # its step is over, or it ended with the run's process
                victim.send_signal(signal.SIGKILL)
        eventually(lambda: site.facts(export_id).receipt is not None, 180)
        assert len(site.facts(export_id).claims) >= 2
        assert all(fetched(site)[url] == before[url] for url in there)
        eventually(lambda: all(run.is_finished for run in site.instance().get_runs()), 60)
        jobs = {run.job_name: run.status for run in reversed(site.instance().get_runs())}
        assert jobs["hosp_ingest"] == dg.DagsterRunStatus.SUCCESS
        site.kill(daemon, signal.SIGTERM)
        assert_whole_once(site, export_id)


def test_steps_end_with_the_process_of_their_run(tmp_path: Path) -> None:
    """Chaos seed 19: Dagster's steps would wait for ever for somebody to read their events."""
    with open_site(tmp_path, export=TYPES, config={"executor": "multiprocess"}) as site:
        site.sandbox.control(faults=[{"path": r"\.ndjson", "delay": 600, "times": None}])
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        daemon = site.daemon()
        steps = eventually(lambda: [each for each in steps_of(daemon.pid) if waits_long(each)], 180)
        (worker,) = {each.ppid() for each in steps}
        psutil.Process(worker).kill()
        eventually(lambda: not any(each.is_running() for each in steps), 30)
        site.sandbox.control(faults=[])
        eventually(lambda: site.facts(export_id).receipt is not None, 180)
        site.kill(daemon, signal.SIGTERM)
        assert_whole_once(site, export_id)


def waits_long(process: psutil.Process) -> bool:
    """A child of a run worker, which is spawned itself, at work for longer than any step but a download."""
    try:
        above = process.parent()
        if above is None or "spawn_main" not in " ".join(above.cmdline()):
            return False
        return time.time() - process.create_time() > 25
    except psutil.NoSuchProcess:  # ended since it was listed
        return False


def test_a_code_server_that_is_killed_and_started_anew_stops_nothing_for_good(tmp_path: Path) -> None:
    """The sensor's cursor and the code server's memory hold pacing only (design, Dagster)."""
    with open_site(tmp_path, export=TYPES, export_seconds=12.0) as site:
        port = own_port()
        workspace = site.folder / "workspace.yaml"
        server = f"grpc_server: {{host: 127.0.0.1, port: {port}, location_name: pipeline}}"
        workspace.write_text(f"load_from:\n  - {server}\n")
        start = [
            sys.executable,
            "-m",
            "dagster",
            "api",
            "grpc",
            "-m",
            "pipeline.definitions",
            "-p",
            str(port),
        ]
        code = site.spawn(*start, "-h", "127.0.0.1")
        eventually(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 90)
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        daemon = site.spawn(str(BIN / "dagster-daemon"), "run", "-w", str(workspace))
        eventually(lambda: sum("/bulk/status/" in e["path"] for e in site.sandbox.access_log()), 90)
        site.kill(code)
        assert site.facts(export_id).receipt is None
        code = site.spawn(*start, "-h", "127.0.0.1")
        eventually(lambda: site.facts(export_id).receipt is not None, 200)
        eventually(lambda: all(run.is_finished for run in site.instance().get_runs()), 60)
        assert daemon.poll() is None, "the same daemon went on"
        site.kill(daemon, signal.SIGTERM)
        site.kill(code)  # a code server that is told to end waits for its clients
        assert_whole_once(site, export_id)
