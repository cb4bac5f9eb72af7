"""The flat forms of current tables: the same rows as in the flat tables of exports, and only what changed is
made anew; what fails there harms nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest
from current_oracle import MORNING
from deltalake import DeltaTable
from driven_by_hand import Drive
from nightly_site import Site, open_site
from test_current_merging import Site as Tables

from pipeline import cli
from pipeline.exports.current_flat import current_flat_names
from pipeline.exports.flattening import flat_names, make_flat
from pipeline.orchestration.factory import build_source
from pipeline.tables.current import flat as flat_of_current
from pipeline.tables.current.chunks import NEVER, ChunkTable
from pipeline.tables.current.flat import Flattened, flatten_current
from pipeline.tables.current.shares import Share
from pipeline.tables.delta import Conflict
from pipeline.tables.flat import flat_tables, flatten

N1, N2, N3 = (f"2026010{day}T020000Z" for day in range(1, 4))
PLACES = {"claim_flat": "current/claim_flat_current", "claim_item_flat": "current/claim_item_flat_current"}

# --- chunk by chunk ------------------------------------------------------------------------------------


def claim(number: int, items: int, version: int) -> bytes:
    meta = {"versionId": str(version), "lastUpdated": f"2026-01-0{version}T00:00:00Z"}
    listed = {"item": [{"sequence": each} for each in range(1, items + 1)]} if items else {}
    return json.dumps({"resourceType": "Claim", "id": f"c{number:02}", "meta": meta, **listed}).encode()


def share(tables: Tables, export_id: str, claims: dict[int, int]) -> Share:
    """An export with claims of so many items."""
    version = int(export_id[7])
    lines = [(claim(each, items, version), "0001.ndjson", each) for each, items in claims.items()]
    return Share(export_id, 1, MORNING + version, parts=tuple(tables.parts(export_id, lines)))


def flattened(tables: Tables, *exports: str, anew: bool = False) -> dict[str, Flattened]:
    current, numbers = tables.places().current, [f"export:{each}" for each in exports]
    done = flatten_current(tables.lake, "Claim", current, PLACES, numbers, anew=anew)
    return {each.name: each for each in done}


def files(tables: Tables, name: str) -> dict[str, str]:
    """Chunk -> path."""
    return {each.name: each.path for each in ChunkTable.at(tables.lake.table_uri(PLACES[name])).chunks}


def rows(tables: Tables, name: str, columns: str) -> list[tuple[Any, ...]]:
    found = DeltaTable(tables.lake.table_uri(PLACES[name])).file_uris()
    return duckdb.sql(f"SELECT {columns} FROM read_parquet({found}) ORDER BY ALL").fetchall()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many resources go through the flattening, call by call."""
    found: list[int] = []

    def counting(resource_type: str, parts: Sequence[Path], *more: Any, **options: Any) -> Any:
        found.append(sum(pq.read_metadata(part).num_rows for part in parts))
        return flatten(resource_type, parts, *more, **options)

    with monkeypatch.context() as patched:
        patched.setattr(flat_of_current, "flatten", counting)
        yield found


def test_only_what_changed_is_flattened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(tmp_path, "Claim")
    claims = {each: 0 if each < 10 else each % 3 for each in range(20)}
    tables.merge([share(tables, N1, claims)], chunk_rows=10)
    first = flattened(tables, N1)
    assert first["claim_flat"].chunks_in == 2 and first["claim_item_flat"].chunks_in == 2
    before = {name: files(tables, name) for name in PLACES}
    assert all(each.version is None for each in flattened(tables, N1).values()), "nothing is left to do"

    merged = tables.merge([share(tables, N2, {15: 5})], chunk_rows=10)
    assert merged.chunks_out == 1
    with counted(monkeypatch) as resources:
        second = flattened(tables, N1, N2)
    assert sum(resources) == 1, "the others of that chunk are copied"
    current = ChunkTable.at(tables.lake.table_uri(tables.places().current))
    for name, place in PLACES.items():
        assert (second[name].chunks_out, second[name].chunks_in) == (merged.chunks_out, merged.chunks_in)
        after = files(tables, name)
        assert after.keys() == {chunk.name for chunk in current.chunks}
        assert len({*before[name].values()} & {*after.values()}) == 1, "the others are the same files"
        table = ChunkTable.at(tables.lake.table_uri(place))
        assert [table.number(f"export:{each}") for each in (N1, N2, N3)] == [1, 1, NEVER]
    claims |= {15: 5}
    assert rows(tables, "claim_flat", "id, meta_version_id") == [
        (f"c{each:02}", "2" if each == 15 else "1") for each in sorted(claims)
    ]
    assert rows(tables, "claim_item_flat", "claim_id, sequence") == [
        (f"c{each:02}", item) for each in sorted(claims) for item in range(1, claims[each] + 1)
    ]
    # The same lines with other content: the export was ingested again.
    again = {each: 2 for each in claims if each != 15}
    new = [share(tables, N1, again), share(tables, N2, {15: 5})]
    tables.merge([replace(new[0], number=2), new[1]], anew=True, chunk_rows=30)
    with counted(monkeypatch) as resources:
        flattened(tables, N1, N2)
    assert resources == [len(again)], "only of the other export anything is taken over"
    claims |= again
    assert rows(tables, "claim_item_flat", "claim_id, sequence") == [
        (f"c{each:02}", item) for each in sorted(claims) for item in range(1, claims[each] + 1)
    ]

    # An older version of the software has made a table of other columns.
    (flat, *_) = flat_tables("Claim")
    older = ChunkTable.covering(tables.lake.table_uri(PLACES["claim_flat"]), flat.schema)
    older.replace([], [], {"columns": 1}, "older columns")
    before = {name: files(tables, name) for name in PLACES}
    last = flattened(tables, N1, N2)
    assert [last[name].chunks_in for name in PLACES] == [1, 0]
    assert files(tables, "claim_flat").keys() == before["claim_flat"].keys()
    assert not {*files(tables, "claim_flat").values()} & {*before["claim_flat"].values()}
    assert last["claim_flat"].rows == len(rows(tables, "claim_flat", "id")) == len(claims)
    assert list((tmp_path / ".spool").iterdir()) == []


@pytest.mark.parametrize("opened", [1, 3])
def test_a_slow_run_sets_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: int) -> None:
    """The current table moves on, and another run flattens it, when so many tables were opened."""
    tables = Tables(tmp_path, "Claim")
    tables.merge([share(tables, N1, {0: 1, 1: 2})])
    at, calls = ChunkTable.at, []

    def and_meanwhile(uri: str, *options: Any) -> ChunkTable:
        calls.append(uri)
        if len(calls) == opened + 1:
            monkeypatch.undo()
            tables.merge([share(tables, N2, {2: 3})])
            flattened(tables, N1, N2)
        return at(uri, *options)

    monkeypatch.setattr(ChunkTable, "at", and_meanwhile)
    with suppress(Conflict):
        flattened(tables, N1)
    assert Counter(rows(tables, "claim_item_flat", "claim_id")) == {("c00",): 1, ("c01",): 2, ("c02",): 3}
    assert ChunkTable.at(tables.lake.table_uri(PLACES["claim_flat"])).number(f"export:{N2}") == 1


def test_without_a_current_table_there_is_nothing_to_flatten(tmp_path: Path) -> None:
    assert flattened(Tables(tmp_path, "Claim"), N1) == {}
    assert not (tmp_path / "current").exists()


# --- through nights ------------------------------------------------------------------------------------

TYPES = ("Patient", "Organization")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    export = {"level": "system", "group": None, "types": list(TYPES)}
    wanted = {"flat": list(TYPES), "current": True}
    quick: dict[str, Any] = {"export_seconds": 0.01, "poll_seconds": 0, "patients": 6}
    with open_site(tmp_path_factory.mktemp("site"), export=export, source=wanted, **quick) as site:
        yield site


def night(site: Site, number: int, export_id: str) -> None:
    site.sandbox.control(night=number)
    drive = Drive(site, export_id)
    assert drive.to_the_end().receipt is not None, drive.words()
    for each in TYPES:  # those of the export, to compare with
        if site.files_of(each.lower(), export_id):
            make_flat(site.session, export_id, each, flat_names(each))


def run_job(site: Site, instance: dg.DagsterInstance) -> bool:
    job = build_source(site.config, site.source).resolve_job_def("hosp_current")
    return job.execute_in_process(instance=instance, raise_on_error=False).success


def command(site: Site, *arguments: str) -> int:
    return cli._exit_code(["--config", str(site.config_path), *arguments])


def files_in(site: Site, table: str) -> list[str]:
    folder = site.lake / "hosp" / ("current" if table.endswith("_current") else "tables") / table
    return DeltaTable(str(folder)).file_uris()


def row_count(instance: dg.DagsterInstance, table: str) -> Any:
    event = instance.get_latest_materialization_event(dg.AssetKey(["hosp", table]))
    assert event is not None and event.asset_materialization is not None
    return event.asset_materialization.metadata["dagster/row_count"].value


def same_rows(site: Site, resource_type: str) -> int:
    """Each row is that of the export's flat table which the current row came from; none is missing."""
    name = resource_type.lower()
    current, flat = files_in(site, f"{name}_current"), files_in(site, f"{name}_flat_current")
    exports = files_in(site, f"{name}_flat")
    place = "_export_id, _source_file, _source_line"
    wanted = (
        f"SELECT * FROM read_parquet({exports}, hive_partitioning=false) WHERE ({place}) IN "
        f"(SELECT ({place}) FROM read_parquet({current}, union_by_name=true, hive_partitioning=false))"
    )
    found = f"SELECT * FROM read_parquet({flat}, hive_partitioning=false)"
    assert duckdb.sql(f"({wanted}) EXCEPT ALL ({found})").fetchall() == []
    assert duckdb.sql(f"({found}) EXCEPT ALL ({wanted})").fetchall() == []
    return len(duckdb.sql(found).fetchall())


def test_every_night_they_hold_the_flat_rows_of_what_is_current(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        night(site, 1, N1)
        assert run_job(site, instance)
        for each in TYPES:
            assert row_count(instance, f"{each.lower()}_flat_current") == same_rows(site, each) > 0
        night(site, 3, N2)
        # A flat table that cannot be made leaves everything else as it must be.
        log = site.lake / "hosp" / "current" / "patient_flat_current" / "_delta_log"
        (log / f"{99:020}.json").write_text("{")
        (log / f"{0:020}.json").rename(log / "away")
        assert not run_job(site, instance), "a red run"
        true = sorted(each["id"] for each in site.truth(3, None)["Patient"])
        current = duckdb.sql(f"SELECT id FROM read_parquet({files_in(site, 'patient_current')})").fetchall()
        assert sorted(row[0] for row in current) == true
        assert row_count(instance, "patient_current") == len(true)
        assert row_count(instance, "organization_flat_current") == same_rows(site, "Organization")
        assert command(site, "current", "hosp", "--type", "Patient", "--json") == 7
        told = capsys.readouterr()
        assert "not touched by it" in told.err
        assert list(json.loads(told.out)[0]["flat_not_made"]) == ["Patient"]
        (log / f"{99:020}.json").unlink()
        (log / "away").rename(log / f"{0:020}.json")
        assert run_job(site, instance)
        assert row_count(instance, "patient_flat_current") == same_rows(site, "Patient") == len(true)
    assert command(site, "as-of", f"hosp/{N1}", "--flat", "--out", str(tmp_path)) == 0
    first = sorted(each["id"] for each in site.truth(1, None)["Patient"])
    flat = duckdb.sql(f"SELECT id FROM '{tmp_path}/patient_flat/*.parquet'").fetchall()
    assert sorted(row[0] for row in flat) == first
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        name for each in TYPES for name in (each.lower(), *flat_names(each))
    )


def test_they_are_assets_of_the_types_that_are_flat_and_current(site: Site) -> None:
    def names(**changes: Any) -> set[str]:
        source = site.source.model_copy(update=changes)
        graph = build_source(site.config, source).resolve_asset_graph()
        return {key.path[-1] for key in graph.get_all_asset_keys() if key.path[-1].endswith("_flat_current")}

    assert names() == {name for each in TYPES for name in current_flat_names(each)}
    assert names(flat=("Patient",)) == {"patient_flat_current"}
    assert names(current=("Organization",)) == {"organization_flat_current"}
    assert names(flat=False) == names(current=False) == set()


def test_automation_asks_for_them_together_with_what_they_are_made_from(site: Site) -> None:
    """Also of what is published while a run for them is on its way, or has just ended: a supplement, say."""
    definitions = build_source(site.config, site.source)
    everything = {key.path[-1] for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    with dg.DagsterInstance.ephemeral() as instance:
        look = dg.evaluate_automation_conditions(definitions, instance)
        assert look.total_requested == 0
        instance.add_dynamic_partitions("hosp_exports", [N1, N2, N3])

        def asked(*tables: str, night: str) -> set[str]:
            nonlocal look
            for table in tables:
                partition = None if table.endswith("_current") else night
                event = dg.AssetMaterialization(dg.AssetKey(["hosp", table]), partition=partition)
                instance.report_runless_asset_event(event)
            look = dg.evaluate_automation_conditions(definitions, instance, cursor=look.cursor)
            return {each for each in everything if look.get_num_requested(dg.AssetKey(["hosp", each]))}

        both = {"patient_current", "patient_flat_current"}
        assert asked("patient", night=N1) == both
        assert asked("patient", night=N2) == both
        assert asked("patient", "patient_current", "patient_flat_current", night=N3) == both
        assert asked(night=N3) == set()
