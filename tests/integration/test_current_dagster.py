"""The current tables in Dagster: by `run --wait`, and by the daemon's declarative automation."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import duckdb
from deltalake import DeltaTable
from nightly_site import Site, open_site

WANTED = {"current": True, "flat": False}
TYPES = ["Patient", "Encounter"]


def ids_in_current(site: Site, table: str) -> list[str]:
    files = DeltaTable(str(site.lake / "hosp" / "current" / table)).file_uris()
    if not files:
        return []
    return sorted(row[0] for row in duckdb.sql(f"select id from read_parquet({files})").fetchall())


def true_ids(site: Site, night: int) -> dict[str, list[str]]:
    truth = site.truth(night, None)
    return {each: sorted(row["id"] for row in truth[each]) for each in TYPES}


def test_a_command_brings_the_current_tables_up_to_date(tmp_path: Path) -> None:
    """Deleted resources leave them (protocol fact 31), and the UI knows how many rows there are."""
    export = {"level": "system", "group": None, "types": TYPES}
    with open_site(tmp_path, export=export, source=WANTED) as site:
        site.run_night()
        site.sandbox.control(night=3)
        second = site.run_night()
        assert second["state"] == "published"
        for resource_type, ids in true_ids(site, 3).items():
            assert ids_in_current(site, f"{resource_type.lower()}_current") == ids
        instance = site.instance()
        event = instance.get_latest_materialization_event(dg.AssetKey(["hosp", "patient_current"]))
        assert event is not None and event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert metadata["dagster/row_count"].value == len(true_ids(site, 3)["Patient"])
        assert metadata["deleted"].value > 0
        again = json.loads(site.cli("current", "hosp", "--json").stdout)
        assert again[0]["tables"]["patient_current"]["merged"] is None
        made = json.loads(site.cli("rebuild", "hosp", "Patient", "--json").stdout)
        assert made[0]["tables"]["patient_current"]["made_again"] == "it was asked for"
        assert ids_in_current(site, "patient_current") == true_ids(site, 3)["Patient"]
        first = site.export_ids()[0]
        site.cli("as-of", f"hosp/{first}", "--type", "Patient", "--out", "then")
        then = duckdb.sql(f"select id from '{site.folder}/then/patient/*.parquet'").fetchall()
        assert sorted(row[0] for row in then) == true_ids(site, 1)["Patient"]


def test_the_daemon_brings_them_up_to_date_by_declarative_automation(tmp_path: Path) -> None:
    """Also when an earlier export run failed: its partition stays missing for good."""
    export = {"level": "system", "group": None, "types": TYPES}
    with open_site(tmp_path, export=export, source=WANTED) as site:
        site.instance().add_dynamic_partitions("hosp_exports", ["20250101T000000Z"])
        site.dagster("schedule", "start", "hosp_schedule")

        def current() -> bool:
            folder = site.lake / "hosp" / "current" / "encounter_current" / "_delta_log"
            return folder.is_dir() and ids_in_current(site, "encounter_current") != []

        site.spawn_daemon_until(current, 180)
        assert ids_in_current(site, "patient_current") == true_ids(site, 1)["Patient"]
