"""Signs of life: each run of each source has its own, however many beat at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRun

from pipeline.exports.owner import Owner
from pipeline.orchestration import heartbeat
from pipeline.orchestration.heartbeat import BEATS_TAG, Watch, beating


def eventually(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not found() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found()


def run_of(instance: dg.DagsterInstance, run_id: str) -> Owner:
    instance.add_run(DagsterRun(job_name="job", run_id=run_id, tags={BEATS_TAG: "yes"}))
    return Owner(run_id=run_id, host="elsewhere")


def test_a_run_that_beats_after_another_does_not_silence_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two commands of one source on two machines: who waits for the first must see its beats."""
    monkeypatch.setattr(heartbeat, "EVERY_SECONDS", 3600.0)  # each beats once
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        first = run_of(instance, "11111111-0000-4000-8000-000000000000")
        second = run_of(instance, "22222222-0000-4000-8000-000000000000")
        with beating(instance, "hosp", first.run_id):
            eventually(lambda: heartbeat._beats(instance, "hosp"))
            with beating(instance, "hosp", second.run_id):
                watch = Watch(instance, "hosp", second)
                eventually(lambda: not watch.is_silent() and watch._seen)
                watch = Watch(instance, "hosp", first)
                assert not watch.is_silent()
                assert watch._seen, "its beat is there still"
            assert heartbeat._beats(instance, "another") == {}, "each source has its own"


def test_a_run_that_does_not_beat_is_silent_though_another_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.5)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        gone = run_of(instance, "11111111-0000-4000-8000-000000000000")
        alive = run_of(instance, "22222222-0000-4000-8000-000000000000")
        with beating(instance, "hosp", gone.run_id):
            eventually(lambda: heartbeat._beats(instance, "hosp"))
        with beating(instance, "hosp", alive.run_id):
            watch = Watch(instance, "hosp", gone)
            eventually(watch.is_silent)


def test_only_so_many_runs_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "EVERY_SECONDS", 3600.0)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        for number in range(heartbeat._MOST_RUNS + 3):
            name = f"run-{number}"
            with beating(instance, "hosp", name):
                eventually(partial(lambda each: each in heartbeat._beats(instance, "hosp"), name))
        assert len(heartbeat._beats(instance, "hosp")) == heartbeat._MOST_RUNS


def test_what_an_earlier_version_wrote_is_no_beat(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        for written in ('["run", 7]', "", "nonsense"):
            instance.run_storage.set_cursor_values({heartbeat._key("hosp"): written})
            assert heartbeat._beats(instance, "hosp") == {}
