"""Daemon and command line beside each other: whoever has begun does the work, and nobody fails for it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from nightly_site import BIN, eventually, open_site
from runs_by_hand import just_begun

from pipeline.orchestration.names import names_of


def test_the_command_leaves_an_export_to_a_run_that_has_just_begun_until_that_is_over(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        site.cli("run", "hosp")
        (export_id,) = site.export_ids()
        names = names_of(site.source)
        with site.instance() as instance:
            with just_begun(instance, names.ingest_job, export_id):
                log = tmp_path / "processes.log"
                waiting = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
                eventually(lambda: log.exists() and b"has just begun a run for it" in log.read_bytes())
                assert waiting.poll() is None
                assert site.facts(export_id).receipt is None
            assert waiting.wait(120) == 0
            made = instance.get_runs(dg.RunsFilter(job_name=names.ingest_job))
        assert site.facts(export_id).receipt is not None
        assert sorted(run.status.value for run in made) == ["CANCELED", "SUCCESS"]
