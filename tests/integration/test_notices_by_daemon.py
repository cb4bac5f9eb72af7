"""The real daemon tells a real receiver of failed runs and of held exports, once, whatever is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import dagster as dg
from dagster._core.scheduler.instigation import TickStatus
from nightly_site import BIN, Site, eventually, open_site
from webhook_receiver import Receiver, start_receiver

from pipeline.config import Source
from pipeline.exports.facts import ClosingFact
from pipeline.exports.owner import this_process
from pipeline.orchestration.failure_sensor import reason_of
from pipeline.orchestration.names import PROCESS_TAG, SOURCE_TAG
from pipeline.orchestration.runs import reap_dead_runs

DEADLY = Path(__file__).with_name("notices_until_killed.py")

SMALL = {"types": ["Patient", "Encounter"]}


def notify(folder: Path, receiver: Receiver) -> dict[str, object]:
    (folder / "hook").write_text(receiver.url)
    (folder / "hook").chmod(0o600)
    return {"notify": [{"url": f"file:{folder / 'hook'}", "format": "json"}]}


def told(site: Site) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (site.lake / "hosp/notices").rglob("*.json"))


def test_a_failed_night_is_told_by_the_daemon_once_and_the_command_line_tells_nobody(tmp_path: Path) -> None:
    """Facts/dagster.md 16. The manifest promises a line more than there is: a red run, then a held export."""
    tmp_path.chmod(0o700)
    with (
        start_receiver() as receiver,
        open_site(
            tmp_path, export=SMALL, source={"max_attempts": 1}, config=notify(tmp_path, receiver)
        ) as site,
    ):
        wrong = [{"path": r"status", "method": "GET", "times": None, "wrong_count": True}]
        site.sandbox.control(faults=wrong)
        by_hand = site.run_night(check=False)
        assert by_hand["state"] == "held"
        assert receiver.bodies == [], "somebody is looking"
        site.cli("run", "hosp")
        export_id = site.export_ids()[-1]
        assert export_id != by_hand["export_id"]
        daemon = site.daemon()
        eventually(lambda: len(receiver.bodies) >= 3, 240)
        assert sorted((body["event"], body["export_id"]) for body in receiver.bodies) == sorted(
            [("held", by_hand["export_id"]), ("held", export_id), ("run-failed", export_id)]
        )
        (failed,) = [body for body in receiver.bodies if body["event"] == "run-failed"]
        assert "the manifest promises" in failed["reason"]
        assert failed["job"] == "hosp_ingest"
        assert failed["run_id"]
        held = next(body for body in receiver.bodies if body["export_id"] == export_id != failed)
        assert held["next_step"]
        eventually(lambda: len(told(site)) == 3, 60)
        # told by one sensor, from the facts; observed by another at its next tick
        eventually(lambda: observed_states(site, export_id)[:1] == ["held"], 60)
        site.kill(daemon)
        since, looks = time.time(), receiver.tries
        site.daemon()
        eventually(lambda: ticks(site, "hosp_notices", since) >= 1, 120)
        time.sleep(2)
        assert receiver.tries == looks, "a restart repeats nothing"
        states = observed_states(site, export_id)
        assert states[0] == "held", "the newest"
        assert len(states) == len([a for a, b in zip(states, [*states[1:], None], strict=True) if a != b])
        logs = (tmp_path / "processes.log").read_text(errors="replace")
        assert "T0SECRETPATH" not in logs
        for path in site.home.rglob("*"):
            assert not path.is_file() or b"T0SECRETPATH" not in path.read_bytes(), path


def observed_states(site: Site, export_id: str) -> list[str]:
    """In Dagster's event log, the newest first."""
    with site.instance() as instance:
        found = instance.fetch_observations(dg.AssetKey(["hosp", "export_receipt"]), limit=50).records
    return [
        str(observation.metadata["state"].value)
        for record in found
        if (observation := record.asset_observation) and observation.partition == export_id
    ]


def ticks(site: Site, sensor: str, since: float) -> int:
    """Ticks of a sensor that began since then and are over."""
    with site.instance() as instance:
        for state in instance.all_instigator_state():
            if state.instigator_name == sensor:
                found = instance.get_ticks(state.instigator_origin_id, state.selector_id)
                return sum(each.timestamp > since and each.status != TickStatus.STARTED for each in found)
    return 0


def test_killed_between_sending_and_remembering_it_is_told_twice_at_most(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (
        start_receiver() as receiver,
        open_site(tmp_path, export=SMALL, config=notify(tmp_path, receiver)) as site,
    ):
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        fact = ClosingFact(at=site.session.now(), reason="the disk is full", advice="make room")
        site.session.ledger.write(export_id, "held.json", fact)
        deadly = site.spawn(str(BIN / "dagster-daemon"), "run", "-f", str(DEADLY))
        eventually(lambda: receiver.bodies, 120)
        eventually(lambda: deadly.poll() is not None, 60)
        assert told(site) == []
        site.daemon()
        eventually(lambda: told(site), 120)
        assert receiver.events == ["held", "held"]
        (path,) = (site.lake / "hosp/notices").rglob("*.json")
        assert json.loads(path.read_text())["reason"].startswith("the disk is full")
        assert site.facts(export_id).closings["held"].reason == "the disk is full", "the ledger ignores it"


def test_a_run_that_died_without_a_word_has_a_reason_and_foreign_texts_are_withheld(tmp_path: Path) -> None:
    @dg.op
    def stumble() -> None:
        raise ValueError("Mrs. Smith, born 1950")

    @dg.job
    def stumbling() -> None:
        stumble()

    with dg.DagsterInstance.ephemeral() as instance:
        failed = stumbling.execute_in_process(instance=instance, raise_on_error=False)
        assert reason_of(instance, failed.run_id) == "stumble: unexpected ValueError"
        process = subprocess.Popen([sys.executable, "-c", "pass"])
        owner = this_process("x").model_copy(update={"pid": process.pid, "started": 0.0})
        process.wait()
        run_id = str(uuid.uuid4())
        owner = owner.model_copy(update={"run_id": run_id})
        instance.create_run_for_job(
            dg.GraphDefinition(name="nothing").to_job(),
            run_id=run_id,
            status=dg.DagsterRunStatus.STARTED,
            tags={SOURCE_TAG: "hosp", PROCESS_TAG: owner.model_dump_json()},
        )
        source = Source.model_validate(
            {
                "name": "hosp",
                "fhir_url": "https://fhir.example.org",
                "auth": {"kind": "none"},
                "export": {"group": "1"},
            }
        )
        assert reap_dead_runs(instance, source) == [run_id]
        assert "ended without a word" in reason_of(instance, run_id)
