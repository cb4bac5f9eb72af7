"""A server that never answers costs a tick little; a run is failed for its own dead process only."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from pipeline.config import Config, Source
from pipeline.exports.facts import Request
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import process_of_run, this_process
from pipeline.exports.session import Session
from pipeline.exports.watch import NotYet
from pipeline.orchestration import sensor
from pipeline.orchestration.names import PROCESS_TAG, SOURCE_TAG
from pipeline.orchestration.runs import reap_dead_runs


def source_at(url: str) -> Source:
    return Source.model_validate(
        {"name": "hosp", "fhir_url": url, "auth": {"kind": "none"}, "export": {"group": "1"}}
    )


def test_a_server_that_never_answers_holds_up_a_look_for_seconds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts/dagster.md 4: a tick over its limit loses cursor and requests of all exports."""
    monkeypatch.setattr(sensor, "_LOOK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"http://127.0.0.1:{silent.getsockname()[1]}/fhir"
        source, owner, now = source_at(base), this_process("tick"), datetime.now(UTC)
        session = Session(Config(lake=str(tmp_path), sources=(source,)), source, owner)
        request = Request(at=now, intent=1, status_url=f"{base}/status/1", owner=owner)
        facts = Facts("hosp", "20260101T020000Z", request=request)
        begun, looks = time.monotonic(), sensor._Looks()
        for _ in range(2):
            seen = looks.look(session, facts, 0)
            assert isinstance(seen, NotYet)
            assert "not answered" in (seen.problem or "")
        assert time.monotonic() - begun < 10
        assert len(looks._asked) == 1, "one request, not one a tick"


def test_a_run_is_failed_for_its_own_dead_process_and_not_for_that_of_its_parent() -> None:
    """Dagster copies the tags of the run that is executed again."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    parent, again, killed = (str(uuid.uuid4()) for _ in range(3))
    copied, own = process_of_run(parent, process.pid), process_of_run(killed, process.pid)
    process.kill()
    process.wait()
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.GraphDefinition(name="nothing").to_job()
        for run_id, owner in ((again, copied), (killed, own)):
            instance.create_run_for_job(
                job,
                run_id=run_id,
                status=dg.DagsterRunStatus.STARTED,
                tags={SOURCE_TAG: "hosp", PROCESS_TAG: owner.model_dump_json()},
            )
        reaped = reap_dead_runs(instance, source_at("https://fhir.example.org"))
        assert reaped == [killed]
