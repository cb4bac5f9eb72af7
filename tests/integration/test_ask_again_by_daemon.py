"""A job that is gone under a running daemon: a further export run is opened and published by itself."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from nightly_site import eventually, open_site

from pipeline.exports.standing import open_exports
from pipeline.exports.state import Closed


@pytest.mark.parametrize("status", [404, 410])
def test_an_export_whose_job_is_gone_is_asked_again_by_the_daemon_and_published(
    tmp_path: Path, status: int
) -> None:
    """Protocol 24: a new kick-off is the only way on. One link of the chain, as configured, and no more."""
    source: dict[str, Any] = {"ask_again": {"gone": 1}, "schedule": "0 0 29 2 *"}
    with open_site(
        tmp_path, patients=4, export={"types": ["Patient"]}, source=source, export_seconds=0.2
    ) as site:
        site.cli("run", "hosp")
        (first,) = site.export_ids()
        (job,) = site.sandbox.control()["jobs"]
        gone = {"path": f"^/bulk/status/{job['id']}", "status": status, "times": None, "body": ""}
        site.sandbox.control(faults=[{"method": "GET", **gone}])
        daemon = site.daemon()
        eventually(lambda: len(site.export_ids()) == 2, 180)
        second = site.export_ids()[1]
        eventually(lambda: site.facts(second).released, 180)
        eventually(lambda: all(run.is_finished for run in site.instance().get_runs()), 60)
        assert daemon.poll() is None, "the same daemon all the time"
        site.kill(daemon, signal.SIGTERM)

        old, new = site.facts(first), site.facts(second)
        assert (old.closings["gone"].cause, old.receipt) == ("gone", None)
        assert old.successor is not None and old.successor.export_id == second
        assert new.succeeds is not None and (new.succeeds.export_id, new.succeeds.number) == (first, 1)
        assert site.session.next_step(new) == Closed("published")
        assert site.ids_in("patient", second) == site.ids_in_truth(1)["Patient"]
        assert site.ids_in("patient", first) == []
        assert site.export_ids() == [first, second], "the chain is over"
        assert open_exports(site.session) == [], "the schedule is free"
        assert site.sandbox.control()["kickoffs"] == 2
        by_partition = {
            (run.tags["dagster/partition"], run.job_name): run.status
            for run in site.instance().get_runs()
            if "dagster/partition" in run.tags
        }
        assert by_partition[second, "hosp_kickoff"] == dg.DagsterRunStatus.SUCCESS
        assert by_partition[second, "hosp_ingest"] == dg.DagsterRunStatus.SUCCESS
