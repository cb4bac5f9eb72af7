"""Whole nights through `fhir-export run`, without a daemon: real server, real lake, real Dagster instance."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from independent_reader import differences, parse, rows
from nightly_site import Site, eventually, open_site

from pipeline.errors import ExportError, VerificationFailed
from pipeline.exports import publishing
from pipeline.exports.attempt import claim_attempt
from pipeline.exports.manifests import stored_manifest
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.exports.staging import stage_type, tables_of
from pipeline.sandbox import truth
from pipeline.tables.definitions import table_name


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str, str, dict[str, str]]]:
    """Night 1 and night 2 of one installation, and the files of night 1 as they were before night 2."""
    with open_site(tmp_path_factory.mktemp("site")) as site:
        first = site.run_night()["export_id"]
        files = fingerprints(site, first)
        site.sandbox.control(night=2)
        second = site.run_night()["export_id"]
        yield site, first, second, files


def fingerprints(site: Site, export_id: str) -> dict[str, str]:
    """Every committed Parquet file of an export, with its content's hash."""
    tables = (site.lake / "hosp" / "tables").iterdir()
    return {
        uri: hashlib.sha256(Path(uri.removeprefix("file://")).read_bytes()).hexdigest()
        for table in tables
        for uri in site.files_of(table.name, export_id)
    }


@pytest.mark.parametrize("night", [1, 2])
def test_each_table_holds_what_the_server_has_that_night_by_id_and_every_top_level_element(
    two_nights: tuple[Site, str, str, dict[str, str]], night: int
) -> None:
    site, *exports, _ = two_nights
    expected: dict[str, dict[str, list[dict]]] = {}
    for resource_type, line in truth(site.seed, site.patients, night, "demo"):
        resource = parse(line)
        expected.setdefault(resource_type, {}).setdefault(resource["id"], []).append(resource)
    assert len(expected) >= 10
    for resource_type, resources in expected.items():
        found = rows(site.files_of(table_name(resource_type), exports[night - 1]))
        assert sorted(row["id"] for row in found) == sorted(
            name for name, all_of_id in resources.items() for _ in all_of_id
        )
        for row in found:
            assert differences(row, resources[row["id"]][0]) == [], (resource_type, row["_source_file"])


def test_the_second_night_is_a_partition_of_its_own_and_leaves_the_first_untouched(
    two_nights: tuple[Site, str, str, dict[str, str]],
) -> None:
    site, first, second, files_before = two_nights
    assert site.export_ids() == [first, second]
    assert fingerprints(site, first) == files_before
    assert site.ids_in_truth(1) != site.ids_in_truth(2)


def test_every_row_leads_back_to_its_line(two_nights: tuple[Site, str, str, dict[str, str]]) -> None:
    site, first, _, _ = two_nights
    lineage = {row["source_file"]: row for row in rows(site.files_of("_lineage", first))}
    (export,) = rows(site.files_of("_exports", first))
    for row in rows(site.files_of("observation", first)):
        origin = lineage[row["_source_file"]]
        raw = (site.lake / origin["raw_path"]).read_bytes()
        piece = raw[origin["raw_offset"] :][: origin["raw_length"]]
        decoded = __import__("gzip").decompress(piece) if origin["raw_encoding"] == "gzip" else piece
        assert hashlib.sha256(decoded).hexdigest() == origin["sha256"]
        line = decoded.split(b"\n")[row["_source_line"] - 1]
        assert parse(line)["id"] == row["id"]
        assert row["_export_id"] == first
    instance = site.instance()
    run = instance.get_run_by_id(export["dagster_run_id"])
    assert run is not None
    assert run.tags["dagster/partition"] == first


def test_the_ui_has_the_runs_the_materializations_and_the_checks_of_a_command_line_night(
    two_nights: tuple[Site, str, str, dict[str, str]],
) -> None:
    site, first, second, _ = two_nights
    instance = site.instance()
    assert instance.get_dynamic_partitions("hosp_exports") == [first, second]
    for name in ("export_request", "export_manifest", "patient", "observation", "export_receipt"):
        assert instance.get_materialized_partitions(dg.AssetKey(["hosp", name])) == {first, second}, name
    assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in instance.get_runs())
    event = instance.get_latest_materialization_event(dg.AssetKey(["hosp", "patient"]))
    assert event is not None and event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["dagster/partition_row_count"].value == len(site.ids_in_truth(2)["Patient"])
    assert metadata["dagster/row_count"].value == sum(
        len(site.ids_in_truth(night)["Patient"]) for night in (1, 2)
    )
    columns = {column.name for column in metadata["dagster/column_schema"].value.columns}
    assert {"id", "birthDate", "gender", "_source_line"} <= columns
    for check in ("files", "counts", "declared_type", "repeated_ids"):
        key = dg.AssetCheckKey(dg.AssetKey(["hosp", "patient"]), check)
        (record, *_) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert record.status.value == "SUCCEEDED", check


def test_the_job_is_released_on_the_server_only_after_the_receipt(
    two_nights: tuple[Site, str, str, dict[str, str]],
) -> None:
    """Protocol fact 35: DELETE when every file is safe, afterwards 404."""
    site, first, second, _ = two_nights
    for export_id in (first, second):
        facts = site.facts(export_id)
        assert facts.released is not None and facts.receipt is not None
        assert facts.released.at >= facts.receipt.at
    deletes = [entry for entry in site.sandbox.access_log() if entry["method"] == "DELETE"]
    assert len(deletes) == 2


def test_ingesting_the_first_night_again_replaces_it_and_nothing_else_although_columns_have_grown(
    two_nights: tuple[Site, str, str, dict[str, str]],
) -> None:
    site, first, second, _ = two_nights
    second_before, first_before = fingerprints(site, second), fingerprints(site, first)
    columns_before = columns_of(site)
    kickoffs = site.sandbox.control()["kickoffs"]
    ingest_again(site, first)
    assert fingerprints(site, second) == second_before
    after = fingerprints(site, first)
    assert not set(after) & set(first_before), "a live path must never be added again"
    assert columns_of(site) == columns_before
    for resource_type, ids in site.ids_in_truth(1).items():
        assert site.ids_in(table_name(resource_type), first) == ids
    assert site.sandbox.control()["kickoffs"] == kickoffs, "an old partition never starts a new export"
    facts = site.facts(first)
    assert [receipt.attempt for receipt in facts.receipts] == [1, 2]


def columns_of(site: Site) -> dict[str, list[str]]:
    tables = (site.lake / "hosp" / "tables").iterdir()
    return {
        table.name: sorted(rows_columns(site.files_of(table.name)))
        for table in tables
        if not table.name.startswith("_")
    }


def rows_columns(files: list[str]) -> set[str]:
    import duckdb

    return set(duckdb.sql(f"select * from read_parquet({files}, union_by_name = true) limit 0").columns)


def ingest_again(site: Site, export_id: str) -> None:
    """What materializing the partition's assets in the UI does, the request included."""
    environment = site.environment
    import subprocess
    import sys

    code = (
        "import dagster as dg\n"
        "from pipeline.definitions import defs\n"
        "i = dg.DagsterInstance.get()\n"
        "for job in ('hosp_kickoff', 'hosp_ingest'):\n"
        f"    r = defs.resolve_job_def(job).execute_in_process(instance=i, partition_key={export_id!r})\n"
        "    assert r.success\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=site.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_export_whose_bytes_are_gone_is_refused_before_anything_changes(
    two_nights: tuple[Site, str, str, dict[str, str]],
) -> None:
    site, _, second, _ = two_nights
    before, facts = fingerprints(site, second), site.facts(second)
    hidden = site.folder / "hidden"
    shutil.move(site.lake / "hosp" / "raw" / second, hidden)
    try:
        with pytest.raises(VerificationFailed, match=r"raw files .* are gone"):
            claim_attempt(site.session, second)
        assert fingerprints(site, second) == before
        assert site.facts(second) == facts
    finally:
        shutil.move(hidden, site.lake / "hosp" / "raw" / second)


def test_two_publishes_at_the_same_time_leave_each_resource_once(
    two_nights: tuple[Site, str, str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second layer, with the claim's guard taken away: the tables' own transactions (design, Tables)."""
    site, _, second, _ = two_nights
    config, source = site.config, site.source
    monkeypatch.setattr(publishing, "require_claim", lambda *_: None)
    sessions = [
        Session(config, source, this_process(name), is_dead=lambda _: True) for name in ("one", "other")
    ]
    attempts = [claim_attempt(session, second) for session in sessions]
    manifest = stored_manifest(sessions[0], second)
    for session, attempt in zip(sessions, attempts, strict=True):
        for table in tables_of(manifest):
            stage_type(session, attempt, manifest, table)
    barrier, errors = threading.Barrier(2), []

    def publish(session: Session, attempt: object) -> None:
        barrier.wait()
        try:
            publishing.publish(session, attempt, manifest, ())  # type: ignore[arg-type]
        except ExportError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=pair) for pair in zip(sessions, attempts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(errors) < 2, errors
    for resource_type, ids in site.ids_in_truth(2).items():
        assert site.ids_in(table_name(resource_type), second) == ids


def test_a_run_killed_in_the_kick_off_is_gone_on_with_by_the_next_one(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        site.sandbox.control(faults=[{"path": r"\$export", "delay": 60, "times": 1}])
        command = site.spawn(str(Path(__import__("sys").executable).parent / "fhir-export"), "run", "hosp")
        killed = eventually(lambda: next((e for e in site.export_ids() if site.facts(e).intents), None))
        eventually(lambda: any("$export" in e["path"] for e in site.sandbox.access_log()) or _kicked(site))
        site.kill(command, signal.SIGKILL)
        assert site.facts(killed).request is None
        outcome = site.run_night()
        assert outcome["state"] == "published"
        assert outcome["export_id"] == killed, "it was open: nothing else is opened beside it"
        assert [intent.number for intent in site.facts(killed).intents] == [1, 2]
        statuses = {run.status for run in site.instance().get_runs()}
        assert statuses == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}


def _kicked(site: Site) -> bool:
    """A fault answers before the access log does: its own count tells that the request came in."""
    return any(fault["used"] for fault in site.sandbox.control()["faults"])


def test_an_export_that_fails_verification_three_times_is_held_and_the_next_night_runs(
    tmp_path: Path,
) -> None:
    with open_site(tmp_path, patients=5) as site:
        site.sandbox.control(faults=[{"path": "/bulk/|/jobs/|status", "wrong_count": 3, "times": None}])
        done = site.cli("run", "hosp", "--wait", "--json", check=False)
        assert done.returncode == 4, done.stderr + done.stdout
        (held,) = site.export_ids()
        facts = site.facts(held)
        assert facts.closings["held"].reason
        assert len(facts.claims) == 3
        assert "promises" in facts.closings["held"].reason
        assert facts.released is None, "held: the server's copy stays"
        published = [t for t in (site.lake / "hosp" / "tables").glob("*") if (t / "_delta_log").exists()]
        assert published == [], "no table shows any part of it"
        site.sandbox.control(faults=[])
        outcome = site.run_night()
        assert outcome["state"] == "published"
        for resource_type, ids in site.ids_in_truth(1).items():
            table = table_name(resource_type)
            assert site.ids_in(table, outcome["export_id"]) == ids
            assert site.files_of(table, held) == []


def test_a_misspelt_type_is_told_before_there_is_an_export(tmp_path: Path) -> None:
    with open_site(tmp_path, export={"types": ["Pateint"]}) as site:
        refused = site.cli("run", "hosp", "--wait", check=False)
        assert refused.returncode == 2
        assert "Write Patient in export.types" in refused.stderr
        assert json.loads(site.cli("exports", "--json").stdout) == []
        assert site.sandbox.control()["kickoffs"] == 0
