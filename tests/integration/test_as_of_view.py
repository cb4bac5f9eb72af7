"""docs/as-of.md: its SQL runs as it stands, and gives what `fhir-export as-of` gives, row by row.

Spark blocks are not run here: that needs a Java machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import current_oracle as oracle
import duckdb
import pyarrow as pa
import pytest
from current_oracle import MORNING, Export, Line, Version
from driven_by_hand import Drive
from nightly_site import Site, open_site

from pipeline.exports.current import write_as_of

DOC = Path(__file__).parents[2] / "docs" / "as-of.md"
NIGHTS = (1, 3, 6)


def blocks(kind: str) -> list[str]:
    """The fenced blocks of that kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOC.read_text(), re.MULTILINE | re.DOTALL)


def night_id(night: int) -> str:
    return (datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=night - 1)).strftime("%Y%m%dT%H%M%SZ")


# --- on the lake of real nights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Nights of changes and deletes: a full one, then what changed."""
    export = {"level": "system", "group": None, "types": ["Patient"]}
    quick: dict[str, Any] = {"export_seconds": 0.01, "poll_seconds": 0, "patients": 10}
    with open_site(tmp_path_factory.mktemp("site"), export=export, **quick) as site:
        for night in NIGHTS:
            site.sandbox.control(night=night)
            drive = Drive(site, night_id(night))
            assert drive.to_the_end().receipt is not None, drive.words()
        yield site


def opened(site: Site) -> duckdb.DuckDBPyConnection:
    """The document's blocks, the path put in."""
    names: dict[str, Any] = {}
    (python,) = blocks("python duckdb")
    exec(compile(python.replace("lake/sandbox", str(site.lake / "hosp")), str(DOC), "exec"), names)
    db: duckdb.DuckDBPyConnection = names["db"]
    db.execute(blocks("sql duckdb")[0])
    return db


VERSION = "id, meta.versionId, meta.lastUpdated, export_id"


def test_the_view_gives_what_the_command_gives_for_every_night(site: Site, tmp_path: Path) -> None:
    db = opened(site)
    named = db.execute("SELECT count(*) FROM _deletes WHERE resource_type = 'Patient'").fetchone()
    assert named is not None and named[0] > 0, "there are deletes"
    counts = {}
    for night in NIGHTS:
        out = tmp_path / str(night)
        rows = write_as_of(site.session, night_id(night), ["Patient"], out)
        view = db.execute(f"SELECT {VERSION} FROM patient_as_of('{night_id(night)}') ORDER BY ALL").fetchall()
        select = VERSION.replace("export_id", "_export_id")
        command = duckdb.sql(f"SELECT {select} FROM '{out}/patient/*.parquet' ORDER BY ALL").fetchall()
        assert view == command
        assert sorted(row[0] for row in view) == sorted(
            each["id"] for each in site.truth(night, None)["Patient"]
        )
        counts[night_id(night)] = rows["Patient"]
    assert dict(db.execute(blocks("sql duckdb")[1]).fetchall()) == counts
    assert len(set(counts.values())) > 1, "nights differ"
    assert db.execute("SELECT * FROM patient_as_of('20250101T000000Z')").fetchall() == []


# --- against the oracle --------------------------------------------------------------------------------


def history(seed: int) -> tuple[list[Export], bool]:
    """Nights of a server that does not contradict itself, and whether what a full export lacks is gone.

    Full ones and changes; deletes with and without an instant, or not told; lines that come twice; resources
    that come back; exports that overlap; all whole, or with `_elements` all SUBSETTED.
    """
    draw = random.Random(seed)
    infers, numbered, whole, timed = (draw.random() < share for share in (0.3, 0.5, 0.8, 0.7))
    now = since = MORNING
    alive: dict[str, Version] = {}
    changed: dict[str, int] = {}
    counts: dict[str, int] = {}
    found = []
    for number in range(1, draw.randint(3, 7)):
        for key in draw.sample("abcdef", draw.randint(0, 5)):
            now += draw.randint(1, 3) * 1_000_000
            changed[key] = now
            if key in alive and draw.random() < 0.4:
                del alive[key]
                continue
            counts[key] = counts.get(key, 0) + 1
            version = str(counts[key]) if numbered else f"W/{draw.randint(0, 9)}"
            alive[key] = Version("", now if timed else None, version, whole)
        now += 1_000_000
        full = number == 1 or draw.random() < 0.3
        new = {key for key, at in changed.items() if at >= since}
        places = [(file, line) for file in oracle.FILES for line in range(1, 9)]
        draw.shuffle(places)
        lines = [
            Line(key, what, *places.pop())
            for key, what in alive.items()
            if full or key in new
            for _ in range(draw.choice([1, 1, 2]))
        ]
        gone = sorted(new - alive.keys()) if not infers else []
        deletions = tuple((key, changed[key] if timed else None) for key in gone)
        found.append(Export(night_id(number), now, tuple(lines), deletions, infers and full))
        since = now - draw.choice([0, 2_000_000])
    draw.shuffle(found)
    return found, infers


EXPORTS = pa.schema(
    [
        ("export_id", pa.string()),
        ("transaction_time", pa.string()),
        ("since", pa.string()),
        ("supplement_of", pa.string()),
        ("patients", pa.int64()),
        ("tables", pa.list_(pa.struct([("table_name", pa.string()), ("rows", pa.int64())]))),
    ]
)
TAG = pa.struct([("system", pa.string()), ("code", pa.string())])
EXTENSION = pa.struct([("id", pa.string()), ("url", pa.string()), ("valueString", pa.string())])
META = pa.struct(
    [
        ("versionId", pa.string()),
        ("lastUpdated", pa.string()),
        ("__lastUpdated_start", pa.timestamp("us", "UTC")),
        ("tag", pa.list_(TAG)),
        ("extension", pa.list_(EXTENSION)),
    ]
)
PATIENT = pa.schema(
    [
        ("id", pa.string()),
        ("meta", META),
        ("_source_file", pa.string()),
        ("_source_line", pa.int64()),
        ("export_id", pa.string()),
    ]
)
DELETES = pa.schema(
    [
        ("resource_type", pa.string()),
        ("id", pa.string()),
        ("deleted_at", pa.timestamp("us", "UTC")),
        ("exact", pa.bool_()),
        ("export_id", pa.string()),
    ]
)


def load(db: duckdb.DuckDBPyConnection, exports: list[Export], *, exact: bool = True) -> None:
    """The export partitions of a history, as tables."""
    listed = [
        {
            "export_id": each.id,
            "transaction_time": oracle.written(each.moment, place),
            "since": None if each.replaces_all else "2026-01-01T00:00:00Z",
            "tables": [{"table_name": "patient", "rows": len(each.lines)}],
        }
        for place, each in enumerate(exports)
    ]
    rows = []
    for each in exports:
        for line in each.lines:
            meta = oracle.resource(line).get("meta", {})
            at = oracle.moment(line.what.instant)
            place = {"_source_file": line.file, "_source_line": line.number, "export_id": each.id}
            rows.append({"id": line.id, "meta": {**meta, "__lastUpdated_start": at}, **place})
    deletes = [
        {
            "resource_type": "Patient",
            "id": key,
            "deleted_at": oracle.moment(at),
            "exact": exact and at is not None,
            "export_id": each.id,
        }
        for each in exports
        for key, at in each.deletions
    ]
    elsewhere = [{**each, "resource_type": "Device", "id": key} for each in deletes[:3] for key in "abc"]
    tables = {
        "_exports": pa.Table.from_pylist(listed, schema=EXPORTS),
        "patient": pa.Table.from_pylist(rows, schema=PATIENT),
        "_deletes": pa.Table.from_pylist([*deletes, *elsewhere], schema=DELETES),
    }
    for name, table in tables.items():
        db.register("incoming", table)
        db.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM incoming")


@pytest.fixture(scope="module")
def empty() -> duckdb.DuckDBPyConnection:
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    load(db, [])
    db.execute(blocks("sql duckdb")[0])
    return db


def standing(
    db: duckdb.DuckDBPyConnection, night: str, *, infers: bool = False
) -> dict[str, tuple[str, str, int]]:
    rows = db.execute(
        "SELECT id, export_id, _source_file, _source_line "
        f"FROM patient_as_of('{night}', infer_deletes := {infers})"
    ).fetchall()
    assert len({row[0] for row in rows}) == len(rows), "an id stands twice"
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


@pytest.mark.parametrize("seed", range(20))
def test_of_any_history_the_view_has_what_stands(empty: duckdb.DuckDBPyConnection, seed: int) -> None:
    exports, infers = history(seed)
    load(empty, exports)
    in_order = oracle.ordered(exports)
    for place, export in enumerate(in_order, start=1):
        wanted = oracle.alive(oracle.folded(in_order[:place]))
        assert standing(empty, export.id, infers=infers) == wanted


N1, N2, N3 = night_id(1), night_id(2), night_id(3)
EARLY, LATE = MORNING, MORNING + 1_000_000


def of(export_id: str, *lines: Line, deletions: tuple[tuple[str, int | None], ...] = ()) -> Export:
    return Export(export_id, MORNING + int(export_id[6:8]) * 86_400_000_000, lines, deletions)


def test_a_whole_resource_stands_before_a_later_subsetted_one(empty: duckdb.DuckDBPyConnection) -> None:
    """Protocol fact 16."""
    cut = Line("a", Version("", LATE, "2", whole=False))
    load(empty, [of(N1, Line("a", Version("", EARLY, "1"))), of(N2, cut)])
    assert standing(empty, N2)["a"][0] == N1


def test_a_version_id_that_is_no_number_decides_nothing(empty: duckdb.DuckDBPyConnection) -> None:
    load(empty, [of(N1, Line("a", Version("", EARLY, "W/9"))), of(N2, Line("a", Version("", EARLY, "W/10")))])
    assert standing(empty, N2)["a"][0] == N2
    load(empty, [of(N1, Line("a", Version("", EARLY, "10"))), of(N2, Line("a", Version("", EARLY, "9")))])
    assert standing(empty, N2)["a"][0] == N1


def test_then_or_before_yields_to_a_line_of_the_same_export(empty: duckdb.DuckDBPyConnection) -> None:
    here = Line("a", Version("", EARLY, "1"))
    load(empty, [of(N1, here), of(N2, here, deletions=(("a", LATE),))], exact=False)
    assert standing(empty, N2) == {"a": (N2, here.file, here.number)}
    load(empty, [of(N1, here), of(N2, deletions=(("a", LATE),))], exact=False)
    assert standing(empty, N2) == {}
    load(empty, [of(N1, here), of(N2, here, deletions=(("a", LATE),))], exact=True)
    assert standing(empty, N2) == {}


def test_what_microsofts_server_marks_as_deleted_is_gone_until_it_comes_back(
    empty: duckdb.DuckDBPyConnection,
) -> None:
    nights = [
        of(N1, Line("a", Version("", EARLY, "1"))),
        of(N2, Line("a", Version(oracle.SOFT_DELETED, LATE, "2"))),
        of(N3, Line("a", Version("", LATE + 1, "3"))),
    ]
    load(empty, nights)
    assert [*map(len, (standing(empty, each) for each in (N1, N2, N3)))] == [1, 0, 1]


def test_a_later_export_with_an_older_version_changes_nothing(empty: duckdb.DuckDBPyConnection) -> None:
    load(empty, [of(N1, Line("a", Version("", LATE))), of(N2, Line("a", Version("", EARLY)))])
    assert standing(empty, N2)["a"][0] == N1


def test_a_deletion_at_the_instant_of_a_version_or_of_one_without_goes_by_the_export(
    empty: duckdb.DuckDBPyConnection,
) -> None:
    for instant in (LATE, None):
        here = Line("a", Version("", instant))
        load(empty, [of(N1, here), of(N2, deletions=(("a", LATE),)), of(N3, here)])
        assert [*map(len, (standing(empty, each) for each in (N1, N2, N3)))] == [1, 0, 1]


def test_a_deletion_at_no_instant_yields_to_a_line_of_the_same_export(
    empty: duckdb.DuckDBPyConnection,
) -> None:
    here = Line("a", Version("", EARLY))
    load(empty, [of(N1, here), of(N2, here, deletions=(("a", None),)), of(N3, deletions=(("a", None),))])
    assert [*map(len, (standing(empty, each) for each in (N1, N2, N3)))] == [1, 1, 0]


def test_a_mark_of_deletion_counts_also_where_it_is_subsetted(empty: duckdb.DuckDBPyConnection) -> None:
    mark = Version(oracle.SOFT_DELETED, LATE, "2", whole=False)
    load(empty, [of(N1, Line("a", Version("", EARLY, "1"))), of(N2, Line("a", mark))])
    assert standing(empty, N2) == {}


@pytest.mark.parametrize("seed", range(4))
def test_the_text_for_spark_says_the_same(empty: duckdb.DuckDBPyConnection, seed: int) -> None:
    """As far as DuckDB can tell: three words of Spark's are put in its own."""
    exports, infers = history(seed)
    load(empty, exports)
    (text,) = blocks("sql spark")
    for spark, ours in (
        ("AS TIMESTAMP)", "AS TIMESTAMPTZ)"),
        ("`", '"'),
        ("exists(e.tables, t -> t.table_name = 'patient')", "len([t FOR t IN e.tables IF t.rows >= 0]) = 1"),
        ("'20260103T020000Z' AS night, false", f"'{exports[0].id}' AS night, {infers}"),
    ):
        assert spark in text
        text = text.replace(spark, ours)
    empty.execute(text)
    view = empty.execute("SELECT id, export_id, _source_file, _source_line FROM patient_as_of").fetchall()
    assert {row[0]: row[1:] for row in view} == standing(empty, exports[0].id, infers=infers)
