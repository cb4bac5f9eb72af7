"""Two nights with the lake on Azure Storage (Azurite): current tables, checks, as-of, by the commands alone.

The reader is delta-rs with Azurite's own key; the sandbox's generator is the truth.
"""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
import yaml
from azure_storage import ACCOUNT, KEY, Azurite
from deltalake import DeltaTable
from lake_on_azurite import lake_url
from nightly_site import open_site
from nights_by_hand import Versions, true_state, versions_in

TYPES = ["Patient", "Encounter"]


def rows_at(azurite: Azurite, container: str, table: str) -> Versions:
    options = {
        "azure_storage_account_name": ACCOUNT,
        "azure_storage_account_key": KEY,
        "azure_storage_endpoint": azurite.endpoint,
        "allow_http": "true",
    }
    standing = DeltaTable(f"az://{container}/night/hosp/current/{table}", storage_options=options)
    rows = standing.to_pyarrow_dataset()  # noqa: F841 - DuckDB reads it
    found = duckdb.sql("select id, meta.versionId, meta.lastUpdated from rows").fetchall()
    assert len({row[0] for row in found}) == len(found)
    return {row[0]: (row[1], row[2]) for row in found}


def test_what_is_true_now_lies_on_azure_too(
    tmp_path: Path, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts azure-and-aidbox E: chunks go there by single uploads, the log by conditional writes."""
    monkeypatch.setenv("HELD", azurite.connection_string)
    container = azurite.new_container()
    lake = {
        "lake": lake_url(container),
        "lake_auth": {"kind": "connection-string", "connection_string": "env:HELD"},
    }
    export = {"level": "system", "group": None, "types": TYPES}
    with open_site(tmp_path, export=export, source={"current": True}) as site:
        config = yaml.safe_load(site.config_path.read_text()) | lake
        site.config_path.write_text(yaml.safe_dump(config))
        exports = []
        for night in (1, 2):
            site.sandbox.control(night=night)
            assert site.run_night()["state"] == "published"
            exports.append(site.export_ids()[-1])
            found = {each: rows_at(azurite, container, f"{each.lower()}_current") for each in TYPES}
            assert found == true_state(site, night, TYPES, None)
        asked = site.facts(exports[1]).asked
        assert asked and asked.parameters["since"], "changes only"
        for command in (["rebuild", "hosp", "all"], ["maintain", "hosp"]):
            site.cli(*command)
            found = {each: rows_at(azurite, container, f"{each.lower()}_current") for each in TYPES}
            assert found == true_state(site, 2, TYPES, None), command
        site.cli("as-of", f"hosp/{exports[0]}", "--out", str(tmp_path / "then"))
        then = {
            each: versions_in([*map(str, (tmp_path / "then" / each.lower()).glob("*.parquet"))])
            for each in TYPES
        }
        assert then == true_state(site, 1, TYPES, None)
        done = site.cli("doctor", "hosp", "--json", check=False)
        assert not [each for each in json.loads(done.stdout) if each.get("severity") == "error"], done.stdout
        assert KEY not in done.stdout + done.stderr
