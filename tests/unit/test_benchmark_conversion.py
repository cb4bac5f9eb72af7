from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.contenders import CONTENDERS, Order, duckdb_explicit, orjson_pylist, pyarrow_json, read_order
from benchmarks.corpus import Source, gather, head, source_of
from benchmarks.observed import Shape, arrow_schema, duckdb_columns
from benchmarks.parquet_settings import leaves, null_shapes, without_nulls
from benchmarks.process import observe_apart, repeat

MEASURED = ("ours", "duckdb lossy")
ROOT = Path(__file__).parents[2]
LINES = [
    {"resourceType": "Observation", "id": "a", "status": "final", "valueQuantity": {"value": 1.5}},
    {"resourceType": "Observation", "id": "b", "status": "final", "valueInteger": 7},
    {
        "resourceType": "Observation",
        "id": "c",
        "status": "final",
        "valueQuantity": {"value": 2},
        "note": [{"text": "n"}],
        "contained": [{"resourceType": "Patient", "active": True}],
        "extension": [{"url": "u", "extension": [{"url": "v", "extension": [{"url": "w"}]}]}],
    },
]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "Observation.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return source_of("Observation", path)


def seen() -> Shape:
    shape = Shape()
    for line in LINES:
        shape.see(line)
    return shape


def test_explicit_types_are_those_of_the_data_with_doubles_and_json() -> None:
    columns = duckdb_columns(seen())
    assert columns["id"] == "VARCHAR"
    assert columns["valueInteger"] == "BIGINT"
    assert columns["valueQuantity"] == 'STRUCT("value" DOUBLE)'
    assert columns["note"] == 'STRUCT("text" VARCHAR)[]'
    assert columns["contained"] == "JSON"
    inner = 'STRUCT("url" VARCHAR, "extension" JSON)[]'
    assert columns["extension"] == f'STRUCT("url" VARCHAR, "extension" {inner})[]'
    schema = arrow_schema(seen())
    assert schema.field("valueQuantity").type == pa.struct([("value", pa.float64())])
    assert schema.field("contained").type == pa.list_(
        pa.struct([("resourceType", pa.string()), ("active", pa.bool_())])
    )


def test_what_is_text_here_and_a_structure_there_is_no_structure() -> None:
    shape = Shape()
    for value in ({"x": "text"}, {"x": {"y": 1}}, {"z": {"y": 1}}, {"z": [1]}):
        shape.see(value)
    assert duckdb_columns(shape) == {"x": "VARCHAR", "z": "JSON"}
    assert arrow_schema(shape).types == [pa.string(), pa.string()]


@pytest.mark.parametrize("contender", [duckdb_explicit, pyarrow_json, orjson_pylist])
def test_a_contender_writes_the_values_of_the_lines(
    contender: object, source: Source, tmp_path: Path
) -> None:
    observed, out = tmp_path / "observed.json", tmp_path / "out"
    observe_apart(source, observed)
    out.mkdir()
    assert callable(contender)
    assert contender(Order("Observation", source.path, out, observed, 1, (0,))) == 0
    rows = duckdb.sql(
        f"SELECT id, valueQuantity.value, valueInteger, note[1].text FROM '{out}/*.parquet' ORDER BY id"
    ).fetchall()
    assert rows == [("a", 1.5, None, None), ("b", None, 7, None), ("c", 2.0, None, "n")]


def test_a_run_counts_its_own_process_and_every_line(source: Source, tmp_path: Path) -> None:
    observed = tmp_path / "observed.json"
    observe_apart(source, observed)
    cores = sorted(os.sched_getaffinity(0))[-1:] if hasattr(os, "sched_getaffinity") else [0]
    found = repeat("orjson", source, observed, threads=1, cores=cores, times=2, work=tmp_path)
    assert found.complete(source)
    assert found.rows == len(LINES)
    assert len(found.runs) == 2
    assert 0.05 < found.cpu < 60
    assert 20e6 < found.peak < 2e9
    assert found.out > 0
    more = Source("Observation", source.path, source.bytes, source.lines + 1)
    assert not found.complete(more)


def test_a_failing_contender_is_told_by_type_without_content(source: Source, tmp_path: Path) -> None:
    secret = "Somebody's name"
    source.path.write_text(f'{{"id": "a", "name": "{secret}\n')
    found = repeat("orjson", source, tmp_path / "missing.json", threads=1, cores=[0], times=3, work=tmp_path)
    assert found.failed == "FileNotFoundError"
    assert len(found.runs) == 1
    assert secret not in repr(found)


def test_an_order_survives_its_file(tmp_path: Path) -> None:
    order = Order("Patient", tmp_path / "a", tmp_path / "b", tmp_path / "c", 2, (0, 1))
    order.write(tmp_path / "order.json")
    assert read_order(tmp_path / "order.json") == order


def test_a_folder_of_parts_becomes_one_large_file(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "Patient.000.ndjson").write_text('{"resourceType":"Patient","id":"1.0"}')
    (data / "Patient.001.ndjson.gz").write_bytes(gzip.compress(b'{"resourceType":"Patient","id":"2.0"}\n'))
    (data / "PatientNote.ndjson").write_text('{"resourceType":"Other"}\n')
    (made,) = gather(data, ["Patient"], 300, tmp_path / "work")
    found = [json.loads(line) for line in made.path.read_text().splitlines()]
    assert made.bytes >= 300
    assert made.lines == len(found)
    assert {line["resourceType"] for line in found} == {"Patient"}
    assert [line["id"] for line in found[:4]] == ["1.0", "2.0", "1.0-1", "2.0-1"]
    first = head(made, 2, tmp_path / "head.ndjson")
    assert first.path.read_text() == "".join(made.path.read_text().splitlines(keepends=True)[:2])
    with pytest.raises(ValueError, match="Claim"):
        gather(data, ["Claim"], 1, tmp_path / "work")


def test_a_file_that_is_large_enough_is_used_where_it_lies(source: Source, tmp_path: Path) -> None:
    (found,) = gather(source.path.parent, ["Observation"], 100, tmp_path / "work")
    assert found == source


def test_the_command_measures_contenders_on_the_sandboxs_data(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.conversion",
            "--types",
            "Patient",
            "--min-mb",
            "0.1",
            "--repeats",
            "1",
            "--contenders",
            *MEASURED,
            "--json",
            str(report),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(report.read_text())["types"]
    assert found["bytes"] >= 100_000
    assert set(found["one"]) == set(MEASURED) <= set(CONTENDERS)
    for name in MEASURED:
        (run,) = found["one"][name]
        assert run["failed"] is None
        assert run["rows"] + run["refused"] == found["lines"]
    assert "not measured" in done.stdout
    assert "MISSED" not in done.stdout


def test_pruning_leaves_exactly_the_leaves_that_hold_something(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": pa.array([{"x": "1", "y": None}, None], pa.struct([("x", pa.string()), ("y", pa.string())])),
            "b": pa.nulls(2, pa.list_(pa.field("element", pa.string()))),
            "c": pa.array(
                [[{"u": 1, "v": None}], []],
                pa.list_(pa.field("element", pa.struct([("u", pa.int32()), ("v", pa.string())]))),
            ),
        }
    )
    assert leaves(table.schema) == ["a.x", "a.y", "b.list.element", "c.list.element.u", "c.list.element.v"]
    narrow = without_nulls(table)
    assert leaves(narrow.schema) == ["a.x", "c.list.element.u"]
    assert narrow.to_pylist() == [{"a": {"x": "1"}, "c": [{"u": 1}]}, {"a": None, "c": []}]
    pq.write_table(table, tmp_path / "t.parquet")
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert leaves(table.schema) == [metadata.schema.column(i).path for i in range(5)]


def test_the_null_shapes_hold_nothing_in_twenty_leaves() -> None:
    for name, table in null_shapes(6):
        assert len(leaves(table.schema)) == 20, name
        assert not leaves(without_nulls(table).schema), name
