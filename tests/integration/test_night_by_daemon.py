"""Nights through the real daemon: schedule, sensor, run queue, and processes that are stopped and killed."""

from __future__ import annotations

import signal
from pathlib import Path

import dagster as dg
import pytest
from nightly_site import Site, eventually, open_site

from pipeline.tables.definitions import table_name

SMALL = {"types": ["Patient", "Observation", "Encounter"]}


def test_the_schedule_opens_a_night_and_a_daemon_stopped_in_the_middle_launches_nothing_twice(
    tmp_path: Path,
) -> None:
    """Facts/dagster.md 5 and 7: the daemon is stopped between kick-off and completion, and started again."""
    with open_site(tmp_path, export_seconds=20.0, export=SMALL) as site:
        site.dagster("schedule", "start", "hosp_schedule")
        daemon = site.daemon()
        export_id = eventually(lambda: next(iter(requested(site)), None), 120)
        eventually(lambda: all(run.is_finished for run in site.instance().get_runs()), 60)
        site.kill(daemon, signal.SIGTERM)
        assert site.facts(export_id).receipt is None, "it must still run on the server"
        site.dagster("schedule", "stop", "hosp_schedule")  # nobody looks at it meanwhile

        site.spawn_daemon_until(lambda: site.facts(export_id).receipt is not None, 120)

        assert site.sandbox.control()["kickoffs"] == 1
        assert site.export_ids() == [export_id]
        runs = site.instance().get_runs()
        jobs = sorted(run.job_name for run in runs if run.job_name != "hosp_tidy")
        assert jobs == ["hosp_ingest", "hosp_kickoff"]
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        assert {run.tags["dagster/partition"] for run in runs if "dagster/partition" in run.tags} == {
            export_id
        }
        assert_published(site, export_id)
        observations = site.instance().fetch_observations(dg.AssetKey(["hosp", "export_request"]), 50).records
        progress = [r.asset_observation.metadata for r in observations if r.asset_observation]
        assert any("X-Progress" in metadata for metadata in progress)


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_everything_killed_in_the_ingest_is_finished_by_the_next_daemon(
    tmp_path: Path, executor: str
) -> None:
    """Facts/dagster.md 8: a run whose machine died stays STARTED; the export is taken over all the same."""
    with open_site(tmp_path, export=SMALL, config={"executor": executor}) as site:
        site.sandbox.control(faults=[{"path": r"\.ndjson", "delay": 30, "times": 1, "skip": 1}])
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        daemon = site.daemon()
        eventually(lambda: site.facts(export_id).claims, 90)
        eventually(lambda: site.session.ledger.landed(export_id), 60)
        site.kill(daemon)
        landed_before = {(b.type, b.number, b.attempt) for b in site.session.ledger.landed(export_id)}
        assert site.facts(export_id).receipt is None
        assert not list((site.lake / "hosp" / "tables").glob("*/_delta_log")), "nothing is visible yet"

        site.sandbox.control(faults=[])
        site.spawn_daemon_until(lambda: site.facts(export_id).receipt is not None, 180)

        assert site.sandbox.control()["kickoffs"] == 1
        landed = {(b.type, b.number, b.attempt) for b in site.session.ledger.landed(export_id)}
        assert landed_before <= landed, "what has landed is not fetched again"
        assert_published(site, export_id)


def requested(site: Site) -> list[str]:
    return [each for each in site.export_ids() if site.facts(each).request]


def assert_published(site: Site, export_id: str) -> None:
    for resource_type, ids in site.ids_in_truth(1).items():
        if resource_type in SMALL["types"]:
            assert site.ids_in(table_name(resource_type), export_id) == ids


def test_steps_in_processes_and_a_type_in_shards_give_the_same_tables(tmp_path: Path) -> None:
    """Design, Dagster: any executor fits, because steps share nothing but facts and deterministic paths."""
    with open_site(
        tmp_path,
        patients=20,
        export={"types": ["Patient", "Observation"]},
        source={"shards": {"Observation": 2}},
        config={"executor": "multiprocess"},
        file_lines=50,
    ) as site:
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        site.spawn_daemon_until(lambda: site.facts(export_id).receipt is not None, 180)
        (ingest,) = [run for run in site.instance().get_runs() if run.job_name == "hosp_ingest"]
        assert ingest.status == dg.DagsterRunStatus.SUCCESS
        steps = {stat.step_key for stat in site.instance().get_run_step_stats(ingest.run_id)}
        assert {
            "hosp_tables.hosp__stage_observation_1of2",
            "hosp_tables.hosp__stage_observation_2of2",
        } <= steps
        assert len(site.session.ledger.landed(export_id, "observation")) == 2
        truth = site.ids_in_truth(1)
        assert site.ids_in("observation", export_id) == truth["Observation"]
        assert site.ids_in("patient", export_id) == truth["Patient"]
