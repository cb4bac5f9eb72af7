"""Downloads at a pace that the server can bear: over real sockets, threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import httpx
import pytest
from file_server import EXPORT, Ask, Say, configured, file_server, ingest, patient, session_of

from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.profiles import profile_of
from pipeline.bulkdata.slots import MachineSlots, runtime_folder

FILES = [patient(number) for number in range(200)]


def test_200_files_share_as_many_connections_as_run_at_once(tmp_path: Path) -> None:
    """One more, at most, for kick-off, status and manifest."""
    with file_server(FILES) as server:
        receipt = ingest(session_of(configured(tmp_path, server)))
        assert receipt.rows == len(FILES)
        assert server.connections <= 4 + 1
        assert server.most_running <= 4
        assert len([each for each in server.asked if each.target.startswith("/files/")]) == len(FILES)


def test_a_kept_connection_that_the_server_drops_when_it_is_used_costs_nothing(tmp_path: Path) -> None:
    """HTTP/1.1: a server may close an idle connection at any moment (RFC 9112, 9.3)."""

    def drops(ask: Ask) -> Say | None:
        return Say(drop=True) if ask.nth_of_connection > 3 else None

    pauses: list[float] = []
    with file_server(FILES, drops) as server, httpx.Client(trust_env=False) as http:
        client = BulkClient(f"{server.base}/fhir", http, profile_of("smart"), sleep=pauses.append)
        for number in range(30):
            file = ManifestFile("output", number, "Patient", f"{server.base}/files/{number}", 1)
            assert client.download(file, False, tmp_path / str(number)).lines == 1
        assert server.connections >= 10
    assert pauses == []


def test_a_busy_server_gets_fewer_downloads_and_no_request_before_its_time(tmp_path: Path) -> None:
    """Protocol facts 17 and 18: 429 and 503 with Retry-After, for one file, count for all of them."""
    says = {50: "429 Too Many Requests", 120: "503 Service Unavailable"}
    refused: dict[int, Ask] = {}

    def number_of(ask: Ask) -> int:
        return int(ask.target.rpartition("/")[2])

    def has_read_its_refusal(number: int) -> bool:
        return number in refused and session.client._throttle.pace.halved_at > refused[number].at

    def busy(ask: Ask) -> Say | None:
        number = number_of(ask)
        if number in says and number not in refused:
            refused[number] = ask
            return Say(status=says[number], headers={"Retry-After": "1"})
        # The seven before it are under way beside it. They end when the client knows that it must wait: the
        # turns of those behind them come then, not while the refusal is still being read.
        beside = next((each for each in says if each - 7 <= number < each), None)
        deadline = time.monotonic() + 30
        while beside is not None and not has_read_its_refusal(beside) and time.monotonic() < deadline:
            time.sleep(0.005)
        return None

    with file_server(FILES) as server:
        server.behave = busy
        session = session_of(configured(tmp_path, server, downloads={"concurrency": 8, "auth": "none"}))
        receipt = ingest(session)
        asked = [each for each in server.asked if each.target.startswith("/files/")]
        facts = session.ledger.read(EXPORT)
    assert receipt.rows == len(FILES)
    assert not facts.attempt_errors
    assert len(refused) == 2
    for number, ask in refused.items():
        assert has_read_its_refusal(number)
        early = [each for each in asked if number_of(each) > number and each.at < ask.at + 1]
        assert early == []


def test_overload_leaves_half_of_the_downloads(tmp_path: Path) -> None:
    """Adaptive: after a 503 no more than half as many at a time, until whole rounds have gone well."""
    files = FILES[:24]
    seen: list[tuple[str, int]] = []
    refused: list[str] = []

    def busy(ask: Ask) -> Say | None:
        if not refused:
            refused.append(ask.target)
            time.sleep(0.3)  # the others of the first round are under way
            return Say(status="503 Service Unavailable", headers={"Retry-After": "1"})
        time.sleep(0.05)
        seen.append((ask.target, server.running))
        return None

    with file_server(files) as server:
        server.behave = busy
        session = session_of(configured(tmp_path, server, downloads={"concurrency": 8, "auth": "none"}))
        assert ingest(session).rows == len(files)
        after = seen[[target for target, _ in seen].index(refused[0]) :]
    assert max(running for _, running in after[:4]) <= 5
    assert session.client._throttle.pace.slots < 8


def test_a_file_that_drips_is_given_up_resumed_and_no_failure(tmp_path: Path) -> None:
    """Slow-loris: each byte comes in time for the timeout of a read. RFC 9110, 14: the rest by Range."""
    big = b"".join(patient(number) for number in range(2000))

    def drips(ask: Ask) -> Say | None:
        if ask.target != "/files/0":
            return None
        whole = server.whole(0, ask.start)
        if len(server.of(0)) > 1:
            return whole
        return Say(whole.body, whole.status, whole.headers, drip=(50, 0.05))

    with file_server([big, patient(1)]) as server:
        server.behave = drips
        config = configured(tmp_path, server, timeouts={"slowest_bytes_per_second": 50_000})
        session = session_of(config)
        session.client._rate.keywords["window"] = 0.5
        receipt = ingest(session)
        first, second = server.of(0)
        facts = session.ledger.read(EXPORT)
    assert (receipt.rows, receipt.attempt) == (2001, 1)
    assert not facts.attempt_errors
    assert first.start == 0 < second.start < len(big)
    assert second.headers["if-match"] == '"v0"'


def test_the_timeouts_of_a_source_are_those_of_its_connection(tmp_path: Path) -> None:
    """Between two pieces of a file: `read_seconds`; for an answer that is none: `answer_seconds`."""

    def stuck(ask: Ask) -> Say | None:
        if len(server.of(0)) > 1:
            return None
        return Say(b"{" * 100, headers={"Content-Length": "101"}, drip=(50, 6.0))

    timeouts = {"connect_seconds": 3, "read_seconds": 2, "answer_seconds": 7}
    with file_server([patient(0)]) as server:
        server.behave = stuck
        session = session_of(configured(tmp_path, server, timeouts=timeouts))
        assert ingest(session).rows == 1
        assert len(server.of(0)) == 2
    timeout = session.client._exchange._http.timeout
    assert (timeout.connect, timeout.read, session.client._exchange._answer_seconds) == (3, 2, 7)


_HOLDS_A_SLOT = """
import sys, time
from pathlib import Path
from pipeline.bulkdata.slots import MachineSlots
with MachineSlots(Path(sys.argv[1]), 1, "hosp").one():
    print("held", flush=True)
    time.sleep(60)
"""


def test_processes_share_the_slots_and_a_killed_one_gives_its_own_back(tmp_path: Path) -> None:
    """`executor: multiprocess`: the lock ends with the process."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDS_A_SLOT, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    killed_at = []
    timer = subprocess.Popen(["sleep", "0.5"])
    with MachineSlots(tmp_path, 1, "another source").one():
        pass  # is not held up

    def kill() -> None:
        timer.wait()
        killed_at.append(time.monotonic())
        os.kill(process.pid, signal.SIGKILL)

    thread = Thread(target=kill)
    thread.start()
    with MachineSlots(tmp_path, 1, "hosp").one():
        got_at = time.monotonic()
    thread.join()
    process.wait()
    assert got_at >= killed_at[0]


def test_a_slot_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped (SIGSTOP) must not stop the others for good."""
    monkeypatch.setattr("pipeline.bulkdata.slots.PATIENCE", 0.2)
    slots = MachineSlots(tmp_path, 1, "hosp")
    with slots.one(), slots.one():
        pass


def test_the_folder_of_the_locks_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could put links there could make us create files elsewhere: then there are no locks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = runtime_folder()
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert runtime_folder() is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert runtime_folder() is None
    with MachineSlots(None, 1).one(), MachineSlots(None, 1).one():
        pass
