"""Flat tables as assets, through whole nights: real server, real lake, real Dagster instance."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster import partition_loading_context
from nightly_site import Site, open_site

from pipeline.exports.flattening import standing, wanted_names
from pipeline.orchestration.factory import build_source

TYPES = ["Patient", "Observation", "Claim"]
FLAT = ("patient_flat", "observation_flat", "claim_flat", "claim_item_flat")
STRAY = b'{"resourceType":"Device","id":"stray"}'


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str, str]]:
    """Two nights; in the first a Device is among the Patients, a type that nobody asked for."""
    options: dict[str, Any] = {"flat": True, "on_count_mismatch": "warn"}
    with open_site(
        tmp_path_factory.mktemp("flat"), patients=5, export={"types": TYPES}, source=options
    ) as site:
        insertion = {"base64": base64.b64encode(STRAY).decode(), "after": None}
        site.sandbox.control(faults=[{"path": r"/0\.ndjson", "times": None, "insert": [insertion]}])
        first = site.run_night()["export_id"]
        site.sandbox.control(night=2, faults=[])
        second = site.run_night()["export_id"]
        yield site, first, second


def query(site: Site, table: str, export_id: str, select: str) -> list[tuple[Any, ...]]:
    """DuckDB on the committed files of one partition, as they are: no cast, no option."""
    files = site.files_of(table, export_id)
    return duckdb.sql(f"SELECT {select} FROM read_parquet({files}) ORDER BY ALL").fetchall()


def fingerprints(site: Site, export_id: str) -> dict[str, dict[str, str]]:
    """Table -> committed file -> hash of its content."""
    tables = [each.name for each in (site.lake / "hosp" / "tables").iterdir() if each.is_dir()]
    return {
        table: {
            uri: hashlib.sha256(Path(uri.removeprefix("file://")).read_bytes()).hexdigest()
            for uri in site.files_of(table, export_id)
        }
        for table in tables
    }


def values_of(observation: dict[str, Any]) -> list[float]:
    """The numbers of an Observation and of its components, from the server's own JSON."""
    found = [observation, *observation.get("component", [])]
    quantities = [float(each["valueQuantity"]["value"]) for each in found if "valueQuantity" in each]
    return [*quantities, *(float(each["valueInteger"]) for each in found if "valueInteger" in each)]


def current(site: Site, export_id: str) -> dict[str, int | None]:
    receipt = site.facts(export_id).receipt
    assert receipt is not None
    return standing(site.session, export_id, wanted_names(site.source, receipt.tables))


def execute_job(site: Site, job: str, export_id: str, tags: Mapping[str, str] | None = None) -> None:
    """What *Materialize all* on the page of a job does."""
    definitions = build_source(site.config, site.source)
    done = definitions.resolve_job_def(job).execute_in_process(
        instance=site.instance(), partition_key=export_id, tags=tags
    )
    assert done.success


def tick(site: Site) -> dg.RunRequest | None:
    """What a new daemon's first look at the flat tables asks for."""
    definitions = build_source(site.config, site.source)
    sensor = definitions.resolve_sensor_def("hosp_flat_status")
    instance = site.instance()
    with (
        partition_loading_context(dynamic_partitions_store=instance),
        dg.build_sensor_context(instance=instance, definitions=definitions) as context,
    ):
        requests = sensor.evaluate_tick(context).run_requests or []
    return next(iter(requests), None)


def materialize_alone(site: Site, table: str, export_id: str) -> list[dg.AssetKey]:
    """What *Materialize* on one asset does; the keys that were materialized."""
    definitions = build_source(site.config, site.source)
    done = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=site.instance(),
        partition_key=export_id,
        asset_selection=[dg.AssetKey(["hosp", table])],
    )
    assert done.success
    return [event.asset_key for event in done.get_asset_materialization_events() if event.asset_key]


def run_script(site: Site, script: str, *arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env=site.environment,
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode


def assert_as_on_the_server(site: Site, export_id: str, night: int) -> None:
    truth = site.truth(night)
    observations = truth["Observation"]
    numbers = [number for each in observations for number in values_of(each)]
    components = sum(len(each.get("component", [])) for each in observations)
    assert components and len(set(numbers)) > 10
    (found,) = query(
        site,
        "observation_flat",
        export_id,
        "count(*), count(component_index), count(value_numeric), median(value_numeric), sum(value_numeric)",
    )
    assert found[:3] == (len(observations) + components, components, len(numbers))
    assert found[3] == pytest.approx(statistics.median(numbers))
    assert found[4] == pytest.approx(sum(numbers))
    subjects = query(site, "observation_flat", export_id, "DISTINCT id, patient_id")
    assert sorted(subjects) == sorted(
        (each["id"], each["subject"]["reference"].partition("/_history/")[0].rpartition("/")[2])
        for each in observations
    )
    born = query(site, "patient_flat", export_id, "id, birth_date")
    assert sorted(born) == sorted((each["id"], each["birthDate"]) for each in truth["Patient"])
    items = query(site, "claim_item_flat", export_id, "claim_id, sequence, net_numeric")
    assert sorted(items) == sorted(
        (each["id"], item["sequence"], item["net"]["value"])
        for each in truth["Claim"]
        for item in each["item"]
    )


def test_flat_tables_hold_what_the_server_has_each_night_in_a_partition_of_its_own(
    nights: tuple[Site, str, str],
) -> None:
    site, *exports = nights
    for night, export_id in enumerate(exports, 1):
        assert_as_on_the_server(site, export_id, night)
    assert query(site, "device_flat", exports[0], "id") == [("stray",)]
    assert site.files_of("device_flat", exports[1]) == []
    assert list((site.lake / ".spool").iterdir()) == []


def test_the_ui_shows_each_flat_table_as_an_asset_behind_its_table_with_columns_and_lineage(
    nights: tuple[Site, str, str],
) -> None:
    site, first, second = nights
    instance = site.instance()
    for table in FLAT:
        assert instance.get_materialized_partitions(dg.AssetKey(["hosp", table])) == {first, second}, table
    assert first in instance.get_materialized_partitions(dg.AssetKey(["hosp", "device_flat"]))
    event = instance.get_latest_materialization_event(dg.AssetKey(["hosp", "observation_flat"]))
    assert event is not None and event.asset_materialization is not None
    assert event.asset_materialization.partition == second
    metadata = event.asset_materialization.metadata
    ((both,),) = (
        duckdb.sql(f"SELECT count(*) FROM read_parquet({site.files_of('observation_flat')})").fetchall(),
    )
    ((mine,),) = (query(site, "observation_flat", second, "count(*)"),)
    assert metadata["dagster/row_count"].value == both[0]
    assert metadata["dagster/partition_row_count"].value == mine[0]
    assert metadata["export_id"].value == second
    manifest = site.facts(second).manifest
    assert manifest is not None
    assert metadata["transactionTime"].value == manifest.transaction_time
    columns = {each.name: each for each in metadata["dagster/column_schema"].value.columns}
    assert columns["value_numeric"].type == "double"
    assert all(each.description for each in columns.values())
    lineage = metadata["dagster/column_lineage"].value.deps_by_column
    origins = {(dep.asset_key, dep.column_name) for dep in lineage["value_numeric"]}
    assert (dg.AssetKey(["hosp", "observation"]), "valueQuantity") in origins


def test_they_are_made_in_the_nights_own_run_after_the_receipt(nights: tuple[Site, str, str]) -> None:
    site, first, second = nights
    instance = site.instance()
    runs = [run for run in instance.get_runs() if run.job_name == "hosp_ingest"]
    assert {run.tags["dagster/partition"] for run in runs} == {first, second}
    for run in runs:
        steps = {each.step_key: each for each in instance.get_run_step_stats(run.run_id)}
        receipt, flat = steps["hosp__export_receipt"], steps["hosp__flat"]
        assert receipt.end_time is not None and flat.start_time is not None
        assert receipt.end_time <= flat.start_time


def test_show_counts_flat_tables_and_to_ndjson_refuses_them(nights: tuple[Site, str, str]) -> None:
    site, first, _ = nights
    shown = json.loads(site.cli("show", f"hosp/{first}", "--json").stdout)
    assert set(shown["flat_tables"]) == {*FLAT, "device_flat"}
    assert shown["flat_tables"]["patient_flat"] == len(site.truth(1)["Patient"])
    assert "flat table" in site.cli("show", f"hosp/{first}").stdout
    refused = site.cli("to-ndjson", "hosp/patient_flat", check=False)
    assert refused.returncode == 2
    assert "flat table" in refused.stderr


def test_one_flat_table_is_materialized_alone_and_replaces_its_partition_only(
    nights: tuple[Site, str, str],
) -> None:
    site, first, second = nights
    before, other = fingerprints(site, first), fingerprints(site, second)
    rows = query(site, "claim_item_flat", first, "*")
    assert materialize_alone(site, "claim_item_flat", first) == [dg.AssetKey(["hosp", "claim_item_flat"])]
    after = fingerprints(site, first)
    assert {table for table in after if after[table] != before[table]} == {"claim_item_flat"}
    assert not after["claim_item_flat"].keys() & before["claim_item_flat"].keys()
    assert query(site, "claim_item_flat", first, "*") == rows
    assert fingerprints(site, second) == other


def test_an_export_that_is_ingested_again_has_its_flat_tables_made_again(
    nights: tuple[Site, str, str],
) -> None:
    site, first, second = nights
    before, other = fingerprints(site, first), fingerprints(site, second)
    assert run_script(site, "ingest_until_killed.py", first, "by hand", "nothing matches") == 0
    assert set(current(site, first).values()) == {None}, "stale: nobody has made them from attempt 2"
    assert None not in current(site, second).values()
    execute_job(site, "hosp_ingest", first)
    after = fingerprints(site, first)
    for table in FLAT:
        assert not after[table].keys() & before[table].keys(), table
    assert None not in current(site, first).values()
    assert_as_on_the_server(site, first, 1)
    assert fingerprints(site, second) == other


def test_killed_while_it_makes_flat_tables_a_run_leaves_the_export_whole_and_the_next_finishes_them(
    nights: tuple[Site, str, str],
) -> None:
    site, _, second = nights
    attempts = len(site.facts(second).receipts)
    rows = query(site, "observation_flat", second, "*")
    pattern = r"tables/observation_flat/.*\.parquet$"
    assert run_script(site, "job_until_killed.py", "hosp_ingest", second, pattern) == -signal.SIGKILL
    facts = site.facts(second)
    assert len(facts.receipts) == attempts + 1
    assert current(site, second)["observation_flat"] is None
    assert query(site, "observation_flat", second, "*") == rows, "the old copy stays until then"
    asked = tick(site)
    assert asked is not None and asked.partition_key == second
    execute_job(site, "hosp_flat", second, asked.tags)
    assert None not in current(site, second).values()
    assert query(site, "observation_flat", second, "*") == rows
    assert_as_on_the_server(site, second, 2)
    assert len(site.facts(second).receipts) == attempts + 1, "the export itself was not touched"


def test_a_flat_table_that_cannot_be_made_leaves_the_export_published_and_can_be_made_later(
    tmp_path: Path,
) -> None:
    with open_site(
        tmp_path, patients=3, export={"types": ["Patient", "Observation"]}, source={"flat": True}
    ) as site:
        in_the_way = site.lake / "hosp" / "tables" / "observation_flat"
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_text("a file")
        done = site.cli("run", "hosp", "--wait", "--json", check=False)
        outcome = json.loads(done.stdout.strip().splitlines()[-1])
        assert (done.returncode, outcome["state"]) == (7, "published")
        assert "flat tables of 1 of 2 resource types could not be made" in done.stderr
        facts = site.facts(outcome["export_id"])
        assert facts.receipt is not None and facts.released is not None
        assert facts.receipt.watermark is not None
        assert current(site, outcome["export_id"]) == {"observation_flat": None, "patient_flat": 3}
        instance = site.instance()
        (run,) = [run for run in instance.get_runs() if run.job_name == "hosp_ingest"]
        assert run.status == dg.DagsterRunStatus.FAILURE
        key = dg.AssetKey(["hosp", "patient_flat"])
        assert instance.get_materialized_partitions(key) == {outcome["export_id"]}
        asked = tick(site)
        assert asked is not None
        assert asked.partition_key == outcome["export_id"]
        in_the_way.unlink()
        kept = fingerprints(site, outcome["export_id"])
        execute_job(site, "hosp_flat", outcome["export_id"], asked.tags)
        made = fingerprints(site, outcome["export_id"])
        assert {table for table in made if made[table] != kept.get(table)} == {"observation_flat"}
        assert tick(site) is None
        assert None not in current(site, outcome["export_id"]).values()
        assert_as_on_the_server_few(site, outcome["export_id"])


def assert_as_on_the_server_few(site: Site, export_id: str) -> None:
    observations = site.truth(1)["Observation"]
    found = query(site, "observation_flat", export_id, "count(DISTINCT id), count(value_numeric)")
    assert found == [(len(observations), sum(len(values_of(each)) for each in observations))]
