"""Maintenance of Delta tables: what is old goes from files and log, and nothing that anyone still needs.

Time is moved in the files: ages on the disk and the instants in the logs, as if all had been written earlier.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from driven_by_hand import Drive
from ingest_by_hand import ingest, session_of, stage_everything
from nightly_site import Site, open_site

from pipeline import cli
from pipeline.exports.attempt import claim_attempt
from pipeline.exports.current import update_current
from pipeline.exports.maintenance import maintain
from pipeline.exports.request import request_export
from pipeline.orchestration.factory import build_source
from pipeline.tables.delta import KEPT, committed_attempt
from pipeline.tables.inventory import missing_versions
from pipeline.tables.upkeep import hours_of

N1, N2, N3 = (f"2026010{day}T020000Z" for day in range(1, 4))
TYPES = ("Patient", "Encounter")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nights with deletes, the first ingested twice; of a third all is staged and nothing committed."""
    export = {"level": "system", "group": None, "types": list(TYPES)}
    quick: dict[str, Any] = {"export_seconds": 0.01, "poll_seconds": 0, "patients": 5}
    with open_site(tmp_path_factory.mktemp("site"), export=export, source={"current": True}, **quick) as site:
        for night, export_id in ((1, N1), (3, N2)):
            site.sandbox.control(night=night)
            drive = Drive(site, export_id)
            assert drive.to_the_end().receipt is not None, drive.words()
            bring_current(site)
        ingest(session_of(site, "again"), N1)
        bring_current(site)
        site.sandbox.control(night=5)
        session = session_of(site, "third")
        request_export(session, N3)
        time.sleep(0.2)
        stage_everything(session, claim_attempt(session, N3))
        yield site


def bring_current(site: Site) -> None:
    for each in TYPES:
        update_current(site.session, each)


def tables(site: Site) -> list[Path]:
    return sorted(log.parent for log in (site.lake / "hosp").glob("*/*/_delta_log"))


def older(site: Site, days: int) -> None:
    """All tables, as if they had been written so many days earlier."""
    back = days * 86_400
    for path in (path for table in tables(site) for path in table.rglob("*") if path.is_file()):
        found = path.stat()
        if path.parent.name == "_delta_log" and path.suffix == ".json":
            actions = [json.loads(line) for line in path.read_text().splitlines()]
            for action in actions:
                for kind, member in (("remove", "deletionTimestamp"), ("commitInfo", "timestamp")):
                    if kind in action:
                        action[kind][member] -= back * 1000
            path.write_text("\n".join(map(json.dumps, actions)))
        os.utime(path, (found.st_atime - back, found.st_mtime - back))


def files(site: Site) -> dict[str, tuple[int, float]]:
    found = [path for path in (site.lake / "hosp").rglob("*") if path.is_file()]
    return {str(each.relative_to(site.lake)): (each.stat().st_size, each.stat().st_mtime) for each in found}


def parts(site: Site) -> set[str]:
    return {name for name in files(site) if name.endswith(".parquet") and "_delta_log" not in name}


def live(site: Site) -> set[str]:
    return {
        str(Path(uri).relative_to(site.lake))
        for each in tables(site)
        for uri in DeltaTable(str(each)).file_uris()
    }


def shown(site: Site) -> dict[str, list[tuple[Any, ...]]]:
    """Every table as DuckDB reads it."""
    found = {each.name: DeltaTable(str(each)).file_uris() for each in tables(site)}
    return {
        name: duckdb.sql(f"SELECT COLUMNS(*)::VARCHAR FROM read_parquet({uris}) ORDER BY ALL").fetchall()
        for name, uris in found.items()
        if uris
    }


def ids(site: Site, uris: list[str]) -> list[str]:
    return sorted(row[0] for row in duckdb.sql(f"SELECT id FROM read_parquet({uris})").fetchall())


def test_what_is_old_goes_and_what_is_staged_read_or_young_stays(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, before = site.lake / "hosp", shown(site)
    assert all(
        KEPT.items() <= DeltaTable(str(each)).metadata().configuration.items() for each in tables(site)
    )
    staged = {name for name in parts(site) - live(site) if f"export_id={N3}/" in name}
    replaced = {name for name in parts(site) - live(site) if name.startswith("hosp/tables/")} - staged
    taken_out = {name for name in parts(site) - live(site) if name.startswith("hosp/current/")}
    assert len(staged) == 2 and replaced and taken_out

    def given_up(name: str) -> str:
        """Left in a current table by a merge that was killed: no log names it."""
        path = lake / "current" / "patient_current" / f"_chunk={name}" / "part-0.parquet"
        path.parent.mkdir()
        path.write_bytes(b"left")
        return str(path.relative_to(site.lake))

    stray = given_up("stray")
    assert not any(each.upkeep.files for each in maintain(site.session, dry_run=True).tables), "all is young"
    older(site, 8)
    young = given_up("young")
    standing = files(site)
    dry = maintain(site.session, dry_run=True)
    assert files(site) == standing, "a dry run changes nothing"
    done = maintain(site.session)
    gone = {f"hosp/{each.name}/{path}" for each in done.tables for path in each.upkeep.files}
    assert gone == replaced | taken_out | {stray} == {*standing} - {*files(site)}
    assert gone == {f"hosp/{each.name}/{path}" for each in dry.tables for path in each.upkeep.files}
    assert sum(each.bytes for each in done.tables) == sum(standing[name][0] for name in gone)
    assert parts(site) >= staged | {young} | live(site) and shown(site) == before

    older(site, 31)
    assert all((each / "_delta_log" / f"{0:020}.json").is_file() for each in tables(site))
    assert cli._exit_code(["--config", str(site.config_path), "maintain", "hosp", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[0]["tables"]
    for each in (each for each in tables(site) if DeltaTable(str(each)).version() > 0):
        names = [str(path.relative_to(each)) for path in each.rglob("*") if path.is_file()]
        assert f"_delta_log/{0:020}.json" not in names and missing_versions(names) == []
        assert told[str(each.relative_to(lake))]["commits"] > 0
    assert parts(site) >= staged | live(site) and shown(site) == before
    assert committed_attempt(str(lake / "tables" / "patient"), N1) == 2, "who committed what is still known"

    receipt = ingest(session_of(site, "third"), N3)
    assert receipt.tables["patient"].rows == len(ids(site, site.files_of("patient", N3)))
    bring_current(site)
    current = DeltaTable(str(lake / "current" / "patient_current")).file_uris()
    assert ids(site, current) == sorted(each["id"] for each in site.truth(5, None)["Patient"])


def test_done_again_there_is_nothing_to_do_and_one_bad_table_stops_no_other(site: Site) -> None:
    """Also in the job that the schedule starts."""
    DeltaTable.create(  # an earlier version of the software has made it
        str(site.lake / "hosp" / "tables" / "device"), pa.schema([("id", pa.string())]), partition_by=["id"]
    )
    first = {each.name: each.upkeep for each in maintain(site.session).tables}
    assert set(first["tables/device"].properties) == set(KEPT)
    configuration = DeltaTable(str(site.lake / "hosp" / "tables" / "device")).metadata().configuration
    assert configuration.items() >= KEPT.items()
    again = {each.name: each.upkeep for each in maintain(site.session).tables}
    assert {name: each.version for name, each in again.items()} == {
        name: each.version for name, each in first.items()
    }
    assert not any(each.files or each.properties or each.checkpoint for each in again.values())
    for path in (site.lake / "hosp" / "tables" / "device" / "_delta_log").iterdir():
        path.write_bytes(b"cut")
    found = maintain(site.session)
    assert [name for name, _ in found.failed] == ["tables/device"]
    assert {each.name for each in found.tables} == first.keys() - {"tables/device"}
    assert cli._exit_code(["--config", str(site.config_path), "maintain", "hosp"]) == 7
    definitions = build_source(site.config, site.source)
    (schedule,) = [each for each in definitions.schedules or () if each.job_name == "hosp_maintenance"]
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    job = definitions.resolve_job_def("hosp_maintenance")
    with dg.DagsterInstance.ephemeral() as instance:
        assert not job.execute_in_process(instance=instance, raise_on_error=False).success


def test_intervals_are_read_and_never_taken_for_less_than_a_day() -> None:
    read = {
        each: hours_of(f"interval {each}")
        for each in ("7 days", "1 week", "36 hours", "90 minutes", "0 days")
    }
    assert read == {"7 days": 168, "1 week": 168, "36 hours": 36, "90 minutes": 24, "0 days": 24}
    assert hours_of("interval 1 year 2 months") == 30 * 24
