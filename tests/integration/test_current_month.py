"""A month of nights: each current table is the server's true state of that night, whatever happened.

The reader is independent: DuckDB over the files that delta-rs lists; the sandbox's generator is the truth.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import yaml
from deltalake import DeltaTable
from driven_by_hand import Drive
from ingest_by_hand import ingest
from nightly_site import Site, open_site

from pipeline.exports.current import current_types, update_current, write_as_of
from pipeline.exports.repair import withdraw
from pipeline.exports.request import request_export
from pipeline.sandbox import truth

TYPES = ["Patient", "Encounter", "Observation"]
LATER = "Condition"
NIGHTS = 30
ADDED, FAILED, REPLAYED, LATE = 10, 13, 17, 21
Versions = dict[str, tuple[str, str]]
"""id -> versionId and lastUpdated."""


def night_id(night: int) -> str:
    return (datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=night - 1)).strftime("%Y%m%dT%H%M%SZ")


def true_state(site: Site, night: int, types: list[str]) -> dict[str, Versions]:
    found: dict[str, Versions] = {each: {} for each in types}
    for resource_type, line in truth(site.seed, site.patients, night, None, level="system"):
        if resource_type in found:
            resource = json.loads(line)
            meta = resource["meta"]
            assert resource["id"] not in found[resource_type]
            found[resource_type][resource["id"]] = (meta["versionId"], meta["lastUpdated"])
    return found


def versions_in(files: list[str]) -> Versions:
    if not files:
        return {}
    rows = duckdb.sql(
        f"select id, meta.versionId, meta.lastUpdated from read_parquet({files}, union_by_name=true)"
    ).fetchall()
    assert len({row[0] for row in rows}) == len(rows), "an id stands twice"
    return {row[0]: (row[1], row[2]) for row in rows}


def current_files(site: Site, table: str) -> list[str]:
    return sorted(DeltaTable(str(site.lake / "hosp" / "current" / table)).file_uris())


def current_state(site: Site, types: list[str]) -> dict[str, Versions]:
    return {each: versions_in(current_files(site, f"{each.lower()}_current")) for each in types}


def update(site: Site) -> dict[str, Any]:
    session = site.session
    return {each: update_current(session, each) for each in current_types(session)}


def same_rows_as_in_the_exports(site: Site, table: str) -> None:
    """Every row of the current table is, in all its columns, a row of an export partition."""
    current = DeltaTable(str(site.lake / "hosp" / "current" / f"{table}_current")).to_pyarrow_dataset()
    exports = DeltaTable(str(site.lake / "hosp" / "tables" / table)).to_pyarrow_dataset()
    assert exports.count_rows() >= current.count_rows() > 0
    names = ", ".join(f'"{name}"' for name in current.schema.names if name != "_chunk")
    assert duckdb.sql(f"select {names} from current except all select {names} from exports").fetchall() == []


def test_a_month_of_nights_ends_each_night_with_the_servers_true_state(tmp_path: Path) -> None:
    """Protocol facts 26, 31, 32: creates, updates, deletes; a type added, a night that fails, one that is
    ingested again, two that come in the wrong order. Each earlier night stays known."""
    with open_site(
        tmp_path,
        patients=14,
        export={"level": "system", "group": None, "types": TYPES, "infer_deletes": True},
        source={"current": True},
        export_seconds=0.01,
        poll_seconds=0,
    ) as site:
        types = list(TYPES)
        skipped: dict[int, Drive] = {}
        told: dict[int, dict[str, Any]] = {}
        for night in range(1, NIGHTS + 1):
            site.sandbox.control(night=night)
            if night == ADDED:
                types.append(LATER)
                config = yaml.safe_load(site.config_path.read_text())
                config["sources"][0]["export"]["types"] = types
                site.config_path.write_text(yaml.safe_dump(config))
            drive = Drive(site, night_id(night))
            if night == LATE:
                request_export(drive.session(), drive.export_id)
                skipped[night] = drive
                continue
            if night == FAILED:
                site.sandbox.control(faults=[{"path": "^/bulk/status/", "gone": 404}])
                assert drive.to_the_end().receipt is None
                assert drive.words()[0] == "gone"
                continue
            assert drive.to_the_end().receipt is not None, drive.words()
            told[night] = update(site)
            assert current_state(site, types) == true_state(site, night, types), f"night {night}"
            if night == LATE + 1:
                assert skipped[LATE].to_the_end().receipt is not None
                late = update(site)
                assert "earlier than what was in it" in late["Patient"].anew
                assert current_state(site, types) == true_state(site, night, types)
            if night == REPLAYED:
                ingest(drive.session(), drive.export_id)
                again = update(site)
                assert "ingested again" in again["Observation"].anew
                assert current_state(site, types) == true_state(site, night, types)
        patients = told[2]["Patient"]
        assert not patients.anew and patients.merged.removed > 0, "folded in alone"
        for table in ("patient", "observation", "condition"):
            same_rows_as_in_the_exports(site, table)
        assert all(each.merged is None for each in update(site).values()), "nothing is left to do"
        for night in (1, ADDED - 1, REPLAYED, LATE, NIGHTS - 1):
            then = TYPES if night < ADDED else types
            out = tmp_path / f"as-of-{night}"
            rows = write_as_of(site.session, night_id(night), then, out)
            wanted = true_state(site, night, then)
            found = {each: versions_in([*map(str, (out / each.lower()).glob("*.parquet"))]) for each in then}
            assert found == wanted
            assert rows == {each: len(wanted[each]) for each in then}
        withdraw(site.session, night_id(NIGHTS))
        back = update(site)
        assert "taken back" in back["Patient"].anew
        assert current_state(site, types) == true_state(site, NIGHTS - 1, types)
