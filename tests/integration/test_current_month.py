"""A month of nights: each current table is the server's true state of that night, whatever happened.

The reader is independent: DuckDB over the files that delta-rs lists; the sandbox's generator is the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import yaml
from deltalake import DeltaTable
from driven_by_hand import Drive
from ingest_by_hand import ingest
from nightly_site import Site, open_site
from nights_by_hand import (
    Versions,
    current_files,
    drive,
    night_id,
    run_supplement,
    true_state,
    update,
    versions_in,
)

from pipeline.exports.current import write_as_of
from pipeline.exports.repair import withdraw
from pipeline.exports.request import request_export

GROUP = "wanderers"
TYPES = ["Patient", "Encounter", "Observation"]
LATER = "Condition"
NIGHTS = 30
ADDED, FAILED, REPLAYED, LATE = 10, 13, 17, 21


def current_state(site: Site, types: list[str]) -> dict[str, Versions]:
    return {each: versions_in(current_files(site, f"{each.lower()}_current")) for each in types}


def same_rows_as_in_the_exports(site: Site, table: str) -> None:
    """Every row of the current table is, in all its columns, a row of an export partition."""
    current = DeltaTable(str(site.lake / "hosp" / "current" / f"{table}_current")).to_pyarrow_dataset()
    exports = DeltaTable(str(site.lake / "hosp" / "tables" / table)).to_pyarrow_dataset()
    assert exports.count_rows() >= current.count_rows() > 0
    names = ", ".join(f'"{name}"' for name in current.schema.names if name != "_chunk")
    assert duckdb.sql(f"select {names} from current except all select {names} from exports").fetchall() == []


def test_a_month_of_nights_ends_each_night_with_the_servers_true_state(  # noqa: PLR0915 - it is one story
    tmp_path: Path,
) -> None:
    """Protocol facts 15, 26, 31, 32: creates, updates, deletes; members who join, leave and come back; a type
    added, a night that fails, one that is ingested again, two that come in the wrong order. Nothing is
    inferred, and all but the first are incremental. Each earlier night stays known."""
    with open_site(
        tmp_path,
        patients=9,
        export={"group": GROUP, "since": "auto", "types": TYPES},
        source={"current": True, "on_leave": "hide"},
        export_seconds=0.01,
        poll_seconds=0,
    ) as site:
        types = list(TYPES)
        skipped: dict[int, Drive] = {}
        told: dict[int, dict[str, Any]] = {}
        sinces: list[str | None] = []
        for night in range(1, NIGHTS + 1):
            site.sandbox.control(night=night)
            if night == ADDED:
                types.append(LATER)
                config = yaml.safe_load(site.config_path.read_text())
                config["sources"][0]["export"]["types"] = types
                site.config_path.write_text(yaml.safe_dump(config))
            driven = drive(site, night)
            if night == LATE:
                request_export(driven.session(), driven.export_id)
                skipped[night] = driven
                continue
            if night == FAILED:
                site.sandbox.control(faults=[{"path": "^/bulk/status/", "gone": 404}])
                assert driven.to_the_end().receipt is None
                assert driven.words()[0] == "gone"
                continue
            facts = driven.to_the_end()
            assert facts.receipt is not None, driven.words()
            assert facts.asked is not None
            sinces.append(facts.asked.parameters["since"])
            run_supplement(site, night, driven)
            told[night] = update(site)
            assert current_state(site, types) == true_state(site, night, types, GROUP), f"night {night}"
            if night == LATE + 1:
                site.sandbox.control(night=LATE)
                assert skipped[LATE].to_the_end().receipt is not None
                run_supplement(site, LATE, skipped[LATE])
                late = update(site)
                assert "earlier than what was in it" in late["Patient"].anew
                assert current_state(site, types) == true_state(site, night, types, GROUP)
            if night == REPLAYED:
                ingest(driven.session(), driven.export_id)
                again = update(site)
                assert "ingested again" in again["Observation"].anew
                assert current_state(site, types) == true_state(site, night, types, GROUP)
        assert [each for each in sinces if each is None] == [None], "only the first was full"
        patients = told[3]["Patient"]
        assert not patients.anew and patients.merged.added > 0, "folded in alone"
        for table in ("patient", "observation", "condition"):
            same_rows_as_in_the_exports(site, table)
        assert all(each.merged is None for each in update(site).values()), "nothing is left to do"
        for night in range(1, NIGHTS + 1):
            if night == FAILED:
                continue
            # Every type for some nights, the patients for all: each is a merge of all that came before.
            whole = night in (1, ADDED - 1, REPLAYED, LATE, NIGHTS - 1)
            then = ["Patient"] if not whole else TYPES if night < ADDED else types
            out = tmp_path / f"as-of-{night}"
            rows = write_as_of(site.session, night_id(night), then, out)
            wanted = true_state(site, night, then, GROUP)
            found = {each: versions_in([*map(str, (out / each.lower()).glob("*.parquet"))]) for each in then}
            assert found == wanted, f"as of night {night}"
            assert rows == {each: len(wanted[each]) for each in then}
        last = site.session.ledger.read(night_id(NIGHTS))
        if last.successor:
            withdraw(site.session, last.successor.export_id)
        withdraw(site.session, night_id(NIGHTS))
        back = update(site)
        assert "taken back" in back["Patient"].anew
        assert current_state(site, types) == true_state(site, NIGHTS - 1, types, GROUP)
