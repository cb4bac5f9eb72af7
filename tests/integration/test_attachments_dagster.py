"""Attachments in Dagster: by `run --wait`, and by declarative automation."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import dagster as dg
import duckdb
import yaml
from deltalake import DeltaTable
from nightly_site import Site, open_site

from pipeline.config import load_config
from pipeline.orchestration.factory import build_definitions

TYPES = ["DocumentReference", "DiagnosticReport"]
EXPORT = {"level": "system", "group": None, "types": TYPES}
KEY = dg.AssetKey(["hosp", "attachments"])


def true_contents(site: Site, night: int) -> set[str]:
    """sha256 of every attachment that the server has, from its generator."""
    truth = site.truth(night, None)
    found = [each["attachment"] for row in truth["DocumentReference"] for each in row["content"]]
    found += [each for row in truth["DiagnosticReport"] for each in row.get("presentedForm", [])]
    return {hashlib.sha256(base64.b64decode(each["data"])).hexdigest() for each in found}


def linked_contents(site: Site) -> set[str]:
    files = DeltaTable(str(site.lake / "hosp" / "tables" / "_attachments")).file_uris()
    rows = duckdb.sql(f"select distinct sha256 from read_parquet({files}) where state = 'stored'").fetchall()
    return {row[0] for row in rows}


def test_a_command_fetches_them_behind_the_publish_and_so_does_automation(
    tmp_path: Path,
) -> None:
    with open_site(tmp_path, export=EXPORT, source={"attachments": {"types": TYPES}}, patients=6) as site:
        night = site.run_night()
        assert night["state"] == "published"
        wanted = true_contents(site, 1)
        assert len(wanted) > 10
        assert linked_contents(site) == wanted
        folder = site.lake / "hosp" / "attachments"
        stored = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert set(stored) == wanted
        assert all(hashlib.sha256(content).hexdigest() == name for name, content in stored.items())
        instance = site.instance()
        event = instance.get_latest_materialization_event(KEY)
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert metadata["stored"].value == metadata["attachments"].value > 10

        both = build_definitions(site.config)
        before = dg.evaluate_automation_conditions(
            both, instance, asset_selection=dg.AssetSelection.keys(KEY)
        )
        assert before.total_requested == 0
        for _ in ("published", "published while its run is on its way"):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    dg.AssetKey(["hosp", "documentreference"]), partition=night["export_id"]
                )
            )
            before = dg.evaluate_automation_conditions(
                both, instance, asset_selection=dg.AssetSelection.keys(KEY), cursor=before.cursor
            )
            assert before.total_requested == 1


def test_without_the_key_in_the_configuration_there_is_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "exports.yaml").write_text(
        yaml.safe_dump(
            {
                "lake": "lake",
                "sources": [
                    {
                        "name": "hosp",
                        "fhir_url": "https://fhir.example.org",
                        "auth": {"kind": "none"},
                        "export": {"level": "system"},
                    }
                ],
            }
        )
    )
    definitions = build_definitions(load_config(tmp_path / "exports.yaml"))
    assert not [job.name for job in definitions.jobs or () if "attach" in job.name]
    assert not [each.name for each in definitions.sensors or () if "attach" in each.name]
    assert KEY not in definitions.resolve_all_asset_keys()
