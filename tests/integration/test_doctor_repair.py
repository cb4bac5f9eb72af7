"""Dagster's database is lost, runs die: the doctor finds it and rebuilds from a lake of real nights."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetRecordsFilter
from nightly_site import Site, open_site

from pipeline.exports.owner import process_of_run
from pipeline.orchestration.examination import examine, repair
from pipeline.orchestration.names import PROCESS_TAG, SOURCE_TAG
from pipeline.orchestration.rebuilding import REBUILT

SMALL = {"types": ["Patient", "Encounter"]}


def materializations(site: Site) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(asset, partition) -> the metadata of each, the newest first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with site.instance() as instance:
        for key in instance.all_asset_keys():
            records = instance.fetch_materializations(AssetRecordsFilter(asset_key=key), limit=100).records
            for record in records:
                event = record.asset_materialization
                assert event is not None
                values = {name: value.value for name, value in event.metadata.items()}
                found.setdefault((key.to_user_string(), str(event.partition)), []).append(values)
    return found


def doctor(site: Site, *options: str) -> tuple[int, dict[str, Any]]:
    done = site.cli("doctor", "--json", *options, check=False)
    assert done.returncode in (0, 4), done.stderr
    (one,) = json.loads(done.stdout)
    return done.returncode, one


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def comparable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without what tells of the making: the mark, and which commit of a flat table it was."""
    kept = {name: value for name, value in metadata.items() if name not in (REBUILT, "made_now")}
    if "made_now" in metadata:
        kept.pop("delta_version", None)
    kept.pop("dagster/row_count", None)  # of the whole table, at that moment
    return kept


def test_what_dagster_knew_is_rebuilt_from_the_lake(tmp_path: Path) -> None:
    """Design, Facts: losing the Dagster database loses nothing."""
    with open_site(tmp_path, export=SMALL, source={"flat": True}) as site:
        nights = [site.run_night()["export_id"] for _ in range(2)]
        code, healthy = doctor(site)
        assert (code, healthy["findings"]) == (0, [])
        before, files = materializations(site), digest(site.lake)
        for name in ("storage", "history", "schedules"):
            shutil.rmtree(site.home / name)

        code, lost = doctor(site)
        assert code == 4
        assert {each["check"] for each in lost["findings"]} == {
            "partitions-missing",
            "materializations-missing",
        }
        assert all(each["repairable"] for each in lost["findings"])

        code, mended = doctor(site, "--repair")
        assert (code, mended["findings"]) == (0, [])
        assert mended["repaired"]
        after = materializations(site)
        assert after.keys() == before.keys()
        for key, (rebuilt,) in after.items():
            assert rebuilt[REBUILT]
            assert comparable(rebuilt) == comparable(before[key][0]), key
        with site.instance() as instance:
            assert sorted(instance.get_dynamic_partitions("hosp_exports")) == nights
            newest = instance.get_latest_materialization_event(dg.AssetKey(["hosp", "export_receipt"]))
            assert newest is not None
            assert newest.asset_materialization is not None
            assert newest.asset_materialization.partition == nights[-1], "in the order of the receipts"

        code, again = doctor(site, "--repair")
        assert (code, again["repaired"]) == (0, [])
        assert materializations(site) == after
        assert digest(site.lake) == files, "data and facts are never touched"
        assert site.run_night()["state"] == "published", "and the next night is as ever"


def test_dead_runs_and_their_slots_are_found_and_given_back(tmp_path: Path) -> None:
    """Facts/dagster.md 8: a dead run keeps its pool slot, and the next kick-off waits for it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead, over = str(uuid.uuid4()), str(uuid.uuid4())
    owner = process_of_run(dead, process.pid)
    process.kill()
    process.wait()
    with open_site(tmp_path, export=SMALL) as site, site.instance() as instance:
        job = dg.GraphDefinition(name="nothing").to_job()
        for run_id, status in ((dead, dg.DagsterRunStatus.STARTED), (over, dg.DagsterRunStatus.FAILURE)):
            tags = {SOURCE_TAG: "hosp", PROCESS_TAG: owner.model_dump_json()}
            instance.create_run_for_job(job, run_id=run_id, status=status, tags=tags)
        instance.event_log_storage.set_concurrency_slots("hosp_kickoff", 1)
        instance.event_log_storage.claim_concurrency_slot("hosp_kickoff", over, "step")
        found = {each.check: each for each in examine(site.config, site.source, instance)}
        assert {"run-dead", "slot-held"} <= found.keys()
        assert all(found[check].repairable for check in ("run-dead", "slot-held"))
        said = repair(site.config, site.source, instance, print)
        assert any(dead in each for each in said)
        assert any(over in each for each in said)
        run = instance.get_run_by_id(dead)
        assert run is not None
        assert run.status == dg.DagsterRunStatus.FAILURE
        assert not instance.event_log_storage.get_concurrency_info("hosp_kickoff").active_run_ids
        assert examine(site.config, site.source, instance) == []


def test_a_partition_that_no_fact_knows_is_a_note(tmp_path: Path) -> None:
    with open_site(tmp_path, export=SMALL) as site, site.instance() as instance:
        instance.add_dynamic_partitions("hosp_exports", ["20200101T020000Z"])
        found = examine(site.config, site.source, instance)
        assert [(each.severity, each.check) for each in found] == [("note", "partitions-surplus")]
        instance.add_dynamic_partitions("hosp_exports", [])


def test_an_export_that_cannot_be_rebuilt_keeps_no_other_from_it(tmp_path: Path) -> None:
    with open_site(tmp_path, export=SMALL) as site:
        nights = [site.run_night()["export_id"] for _ in range(2)]
        shutil.rmtree(site.home / "storage")
        shutil.rmtree(site.home / "history")
        (site.lake / "hosp/exports" / nights[0] / "manifest.json").write_text("{")
        code, mended = doctor(site, "--repair")
        assert code == 4
        assert "facts-damaged" in {each["check"] for each in mended["findings"]}
        with site.instance() as instance:
            key = dg.AssetKey(["hosp", "patient"])
            assert instance.get_materialized_partitions(key) == {nights[1]}
            assert sorted(instance.get_dynamic_partitions("hosp_exports")) == nights
