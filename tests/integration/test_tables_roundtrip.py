"""NDJSON -> Parquet -> NDJSON: each resource equal by number lexeme; and what other readers see."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LakeError, VerificationFailed
from pipeline.tables import convert, definitions
from pipeline.tables.convert import Converter
from pipeline.tables.ndjson import to_ndjson
from pipeline.tables.parts import (
    HASH_KEY,
    LocalPart,
    PartWriter,
    read_part_schema,
    repeated_ids,
    rewrite_part,
    widen,
)
from pipeline.tables.schema import covers, floor_schema, schema_hash, union

EXPORT = "20260101T020000Z"


def exact(line: bytes | str) -> Any:
    """The value of a line with every number as it was written; an oracle on the standard library."""

    def mark(lexeme: str) -> dict[str, str]:
        return {"\0number": lexeme}

    return json.loads(line, parse_float=mark, parse_int=mark)


def converted(
    folder: Path, resource_type: str, lines: Iterable[bytes], known: pa.Schema | None = None, **limits: Any
) -> list[LocalPart]:
    """One file of these lines, each ended by a newline, as one part or several."""
    folder.mkdir(exist_ok=True)
    with Converter(resource_type, known, EXPORT, folder, **limits) as converter:
        converter.add((line + b"\n" for line in lines), "0001.ndjson")
        return converter.finish()


def paths(parts: Iterable[LocalPart]) -> list[Path]:
    return [part.path for part in parts]


# --- a small generator: any element of a type, to some depth ---

VALUES = {
    "boolean": ["true", "false"],
    "decimal": ["1.10", "0.0019263281655490874", "1E2", "-0.0", "123456789012345678901234567890"],
    "date": ['"2020"', '"2020-02"', '"2020-02-29"', '"no date"'],
    "dateTime": ['"2020-02"', '"2020-02-29T23:59:59.5-05:00"', '""'],
    "instant": ['"2020-02-29T23:59:59.123456789Z"'],
}
INTEGERS = ["0", "7", "2147483647", "-2147483648"]
TEXTS = ['""', '"plain"', '"Zo\u00eb \U0001f600"', '"quo\\"te \\u00e9\\n"', '"null"', '"2020-01"', '"-0, "']


def some_value(chance: random.Random, fhir_type: str, depth: int) -> str:
    if fhir_type in ("integer", "positiveInt", "unsignedInt"):
        return chance.choice(INTEGERS)
    if fhir_type in definitions.primitive_types():
        return chance.choice(VALUES.get(fhir_type, TEXTS))
    if fhir_type == "Resource":
        return '{"resourceType":"Basic","x":[1.10,null]}'
    members: list[str] = []
    # No deeper, and few kinds of values in extensions: thousands of columns show nothing more, slowly.
    everything = [
        element
        for element in (definitions.elements(fhir_type) if depth < 4 else [])
        if fhir_type != "Extension" or element.name in ("extension", "url", "valueDecimal", "valueCoding")
    ]
    for element in everything:
        if chance.random() < 2 / len(everything):
            members.append(f'"{element.name}":{some_member(chance, element, depth + 1)}')
            if element.type in definitions.primitive_types() and chance.random() < 0.2:
                beside = '{"extension":[{"url":"u"}]}'
                members.append(f'"_{element.name}":{f"[null,{beside}]" if element.many else beside}')
    chance.shuffle(members)
    return "{" + ",".join(members) + "}"


def some_member(chance: random.Random, element: definitions.Element, depth: int) -> str:
    if not element.many:
        return some_value(chance, element.type, depth)
    count = chance.choice([0, 1, 1, 2])
    return "[" + ",".join(some_value(chance, element.type, depth) for _ in range(count)) + "]"


def some_resource(chance: random.Random, resource_type: str) -> bytes:
    members = [f'"resourceType":"{resource_type}"']
    for element in definitions.elements(resource_type):
        if chance.random() < 0.2:
            members.append(f'"{element.name}":{some_member(chance, element, 1)}')
    if chance.random() < 0.05:
        members.append(f'"x~/{chance.randrange(9)}" : 1.50')
    chance.shuffle(members)
    return ("{" + ",".join(members) + "}").encode()


HOSTILE: dict[str, list[str]] = {
    "Observation": [
        '{"resourceType":"Observation","id":"1","valueQuantity":{"value":1.10,"unit":"kg"}}',
        '{"resourceType":"Observation","id":"2","valueQuantity":{"value":0.0019263281655490874}}',
        '{"resourceType":"Observation","id":"3","valueQuantity":{"value":1E2},"component":[]}',
        '{"resourceType":"Observation","id":"4","valueQuantity":{"value":-0},"referenceRange":[{},{"low":{}}]}',
        '{"resourceType":"Observation","id":"5","valueQuantity":{},"subject":{"identifier":{"assigner":'
        '{"identifier":{"assigner":{"display":"deep"}}}}}}',
        '{"resourceType":"Observation","id":"6","effectiveDateTime":"2020","issued":"2020-02-30T99:99Z"}',
        '{"resourceType":"Observation","component":[{"valueSampledData":{"period":1.000,"data":"E 1"}}]}',
    ],
    "Patient": [
        '{"resourceType":"Patient","name":[{"given":["a",null,"c"],"_given":[null,{"extension":[]},null]}]}',
        '{"resourceType":"Patient","contained":[{"resourceType":"X","v":[1.0,{"y":1e5}]}],"_id":{"id":"i"}}',
        '{"resourceType":"Patient","_unmapped":{"a":1},"_source_line":7,"export_id":"x","__id":[0.10]}',
        '{"resourceType":"Patient","name":[{"name":[{"x":1}]},{}],"0":{"1":[2]},"":"","~":"/"}',
        '{"resourceType":"Patient","id":"2020-01-01T00:00:00Z","birthDate":"2020"}',
    ],
    "Questionnaire": [
        '{"resourceType":"Questionnaire","item":[{"linkId":"1","item":[{"linkId":"2","item":[{"linkId":"3",'
        '"item":[{"linkId":"4","item":[{"initial":[{"valueDecimal":1.50}]}]}]}]}]}]}'
    ],
    "Bundle": [
        '{"resourceType":"Bundle","total":3,"entry":[{"resource":{"resourceType":"Patient","x":[1.10]}}]}'
    ],
    "Parameters": [
        '{"resourceType":"Parameters","parameter":[{"name":"a","part":[{"part":[{"part":[{"valueDecimal":1.0}]}]}]}]}'
    ],
}


@pytest.mark.parametrize("resource_type", HOSTILE)
def test_hostile_but_valid_resources_come_back_equal(tmp_path: Path, resource_type: str) -> None:
    lines = [text.encode() for text in HOSTILE[resource_type]]
    parts = converted(tmp_path, resource_type, lines)
    back = list(to_ndjson(paths(parts), resource_type))
    assert [exact(line) for line in back] == [exact(line) for line in lines]


def test_independent_readers_see_typed_columns_digits_and_lineage(tmp_path: Path) -> None:
    """tables.md rules 4 to 6 and 8, read by DuckDB and Polars."""
    lines = [text.encode() for text in HOSTILE["Observation"]]
    [part] = converted(tmp_path, "Observation", [lines[0] + b"\r", b"", *lines[1:], b"  "])
    rows = duckdb.sql(
        f"select id, valueQuantity.value, _source_line, _source_file, _export_id from '{part.path}'"
    ).fetchall()
    assert rows[:5] == [
        ("1", "1.10", 1, "0001.ndjson", EXPORT),
        ("2", "0.0019263281655490874", 3, "0001.ndjson", EXPORT),
        ("3", "1E2", 4, "0001.ndjson", EXPORT),
        ("4", "-0", 5, "0001.ndjson", EXPORT),
        ("5", None, 6, "0001.ndjson", EXPORT),
    ]
    numbers = duckdb.sql(f"select valueQuantity.__value_numeric from '{part.path}' limit 5").fetchall()
    assert [number for (number,) in numbers] == [1.1, 0.0019263281655490874, 100.0, 0.0, None]
    assert math.copysign(1, numbers[3][0]) == -1
    frame = pl.read_parquet(part.path)
    times = frame.row(5, named=True)
    assert (times["effectiveDateTime"], times["issued"]) == ("2020", "2020-02-30T99:99Z")
    assert times["__effectiveDateTime_start"] == datetime(2020, 1, 1, tzinfo=UTC)
    assert times["__effectiveDateTime_end"] == datetime(2020, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert (times["__issued_start"], times["__issued_end"]) == (None, None)
    behind = frame.columns[frame.columns.index("effectiveDateTime") :]
    assert behind[:3] == ["effectiveDateTime", "__effectiveDateTime_start", "__effectiveDateTime_end"]
    assert frame.columns[:3] == ["resourceType", "id", "meta"]
    assert frame.columns[-3:] == ["_export_id", "_source_file", "_source_line"]
    assert frame.schema["valueInteger"] == pl.Int32
    assert frame["subject"][4]["identifier"] == {"assigner": '{"identifier":{"assigner":{"display":"deep"}}}'}


def test_every_top_level_text_and_number_is_read_back_by_duckdb(tmp_path: Path) -> None:
    chance = random.Random(5)
    lines = [some_resource(chance, "Patient") for _ in range(200)]
    [part] = converted(tmp_path, "Patient", lines)
    table = duckdb.sql(f"select * from '{part.path}' order by _source_line").to_arrow_table().to_pylist()
    for line, row in zip(lines, table, strict=True):
        source = json.loads(line)
        for element in definitions.elements("Patient"):
            if element.type in definitions.primitive_types():
                assert row[element.name] == source.get(element.name)
            else:
                assert (row.get(element.name) is None) == (element.name not in source)


def test_a_late_column_is_in_every_part_with_one_schema(tmp_path: Path) -> None:
    """tables.md rule 3: read by DuckDB without union_by_name."""
    lines = [b'{"resourceType":"Patient","id":"%d"}' % number for number in range(1000)]
    lines.append(b'{"resourceType":"Patient","id":"last","name":[{"family":"F","extension":[{"url":"u"}]}]}')
    parts = converted(tmp_path, "Patient", lines, max_part_rows=100)
    assert len(parts) >= 10
    assert len({part.path for part in parts}) == len(parts)
    assert {path.name for path in tmp_path.iterdir()} == {part.path.name for part in parts}
    for part in parts:
        assert read_part_schema(part.path) == part.schema == parts[0].schema
        assert part.rows <= 100
        footer = pq.ParquetFile(part.path).metadata.metadata
        assert footer[HASH_KEY].decode() == schema_hash(part.schema)
    found = duckdb.sql(
        f"select count(*), max(_source_line), max(name[1].extension) from '{tmp_path}/*.parquet'"
    ).fetchall()
    assert found == [(1001, 1001, [{"url": "u"}])]
    assert [exact(line) for line in to_ndjson(paths(parts))] == [exact(line) for line in lines]


def test_parts_are_cut_by_bytes_too(tmp_path: Path) -> None:
    lines = [
        b'{"resourceType":"Patient","id":"%d","text":{"div":"%s"}}' % (n, b"x" * 1000) for n in range(300)
    ]
    parts = converted(tmp_path, "Patient", lines, max_part_bytes=50_000)
    assert 4 <= len(parts) <= 10
    assert sum(part.rows for part in parts) == 300


def test_what_the_table_knew_is_in_the_parts_though_this_export_lacks_it(tmp_path: Path) -> None:
    first = converted(tmp_path / "1", "Patient", [b'{"resourceType":"Patient","a":1,"extension":[]}'])
    known = first[0].schema
    second = converted(tmp_path / "2", "Patient", [b'{"resourceType":"Patient","_gender":{}}'], known)
    assert covers(second[0].schema, known)
    assert "_gender" in second[0].schema.names
    assert second[0].schema == union(known, second[0].schema, "Patient")
    row = pq.read_table(second[0].path).to_pylist()[0]
    # A structure that was seen without any member has its first one.
    assert (row["extension"], row["_unmapped"], row["_gender"]) == (None, None, {"id": None})
    assert list(to_ndjson([second[0].path])) == [b'{"resourceType":"Patient","_gender":{}}']


def test_several_files_count_their_own_lines(tmp_path: Path) -> None:
    patient = b'{"resourceType":"Patient"}\n'
    with Converter("Patient", None, EXPORT, tmp_path) as converter:
        converter.add([patient, b"\n", patient.rstrip()], "a")
        converter.add(iter([b"\xef", b"\xbb\xbf" + patient[:5], patient[5:] + b"\r\n \n"]), "b")
        converter.add([], "empty")
        converter.add_line(patient.rstrip(), "b", 9)
        converter.add_line(patient.rstrip(), "c", 4)
        [part] = converter.finish()
    rows = pq.read_table(part.path, columns=["_source_file", "_source_line"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("a", 1), ("a", 3), ("b", 1), ("b", 9), ("c", 4)]
    counts = {name: (each.lines, each.rows, each.refused) for name, each in converter.files.items()}
    assert counts == {"a": (2, 2, 0), "b": (2, 2, 0), "empty": (0, 0, 0), "c": (1, 1, 0)}
    assert converter.rows == 5


def test_no_lines_give_no_parts(tmp_path: Path) -> None:
    assert converted(tmp_path, "Patient", []) == []
    assert list(tmp_path.iterdir()) == []


def test_a_long_line_passes_whole(tmp_path: Path) -> None:
    """tables.md 4: a line longer than pyarrow's block size fails; lines of 937 kB are real."""
    line = b'{"resourceType":"Patient","text":{"div":"%s"}}' % (b"y" * 20_000_000)
    parts = converted(tmp_path, "Patient", [line, b'{"resourceType":"Patient","id":"2"}'])
    assert next(exact(back) for back in to_ndjson(paths(parts))) == exact(line)


@pytest.mark.parametrize("good", [0, 3, 60])
def test_a_bad_line_fails_by_file_and_line_and_leaves_nothing(tmp_path: Path, good: int) -> None:
    """tables.md 4: a half-written ParquetWriter that is closed looks whole."""
    lines = [b'{"resourceType":"Patient","id":"SECRET%d"}' % number for number in range(good)]
    with pytest.raises(VerificationFailed) as failed:
        converted(
            tmp_path, "Patient", [*lines, b'{"resourceType":"Patient","id":["SECRET"]}'], max_part_rows=10
        )
    assert f"0001.ndjson line {good + 1} is no Patient: an array in place of a string at id" in str(
        failed.value
    )
    assert "SECRET" not in str(failed.value)
    assert failed.value.__cause__ is None
    assert failed.value.__context__ is None or failed.value.__suppress_context__
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_leaving_without_finish_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    monkeypatch.setattr(convert, "BLOCK_BYTES", 20)
    with Converter("Patient", None, EXPORT, tmp_path, max_part_rows=1, lanes=lanes) as converter:
        converter.add([b'{"resourceType":"Patient"}\n'] * 5, "a")
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string())])
    with pytest.raises(VerificationFailed), PartWriter(tmp_path / "p.parquet", schema) as writer:
        writer.write(pa.table({"id": ["a"]}))
        writer.write(pa.table({"other": ["b"]}))
    assert list(tmp_path.iterdir()) == []


# --- parts ---


def test_rewriting_a_part_keeps_rows_and_widens_at_every_depth(tmp_path: Path) -> None:
    chance = random.Random(11)
    narrow_lines = [some_resource(chance, "Encounter") for _ in range(50)]
    wide_lines = [some_resource(chance, "Encounter") for _ in range(80)]
    [narrow] = converted(tmp_path / "n", "Encounter", narrow_lines)
    [wide] = converted(tmp_path / "w", "Encounter", wide_lines)
    both = union(narrow.schema, wide.schema, "Encounter")
    part = rewrite_part(narrow.path, tmp_path / "rewritten.parquet", both)
    assert (part.rows, part.schema) == (50, both)
    assert part.bytes == part.path.stat().st_size
    assert read_part_schema(part.path) == both
    assert [exact(line) for line in to_ndjson([part.path])] == [exact(line) for line in narrow_lines]


def test_rewriting_to_a_narrower_schema_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    [part] = converted(tmp_path / "a", "Patient", [b'{"resourceType":"Patient","extension":[]}'])
    with pytest.raises(VerificationFailed, match="lack"):
        rewrite_part(part.path, tmp_path / "out.parquet", floor_schema("Patient"))
    assert not (tmp_path / "out.parquet").exists()


def test_widening_sliced_data_keeps_nulls_and_empties_apart() -> None:
    inner = pa.struct([("a", pa.string())])
    values = [None, [], [{"a": None}, None, {"a": "x"}], [{"a": "y"}], None]
    table = pa.table(
        {"n": pa.array(values, pa.list_(inner)), "s": pa.array([None, {"a": "1"}, {}, None, {}], inner)}
    )
    wider = pa.struct([("z", pa.list_(pa.int32())), ("a", pa.string())])
    schema = pa.schema([("new", inner), ("s", wider), ("n", pa.list_(wider))])
    for start, length in [(0, 5), (1, 3), (2, 1), (4, 1), (5, 0)]:
        got = widen(table.slice(start, length), schema)
        got.validate(full=True)
        back = got.to_pylist()
        assert [row["new"] for row in back] == [None] * length
        for row, source in zip(back, table.slice(start, length).to_pylist(), strict=True):
            assert row["s"] == (None if source["s"] is None else {"z": None, **source["s"]})
            assert row["n"] == (
                None
                if source["n"] is None
                else [None if item is None else {"z": None, **item} for item in source["n"]]
            )


def test_repeated_ids_are_counted_over_all_parts(tmp_path: Path) -> None:
    lines = [b'{"resourceType":"Patient","id":"%d"}' % (number % 700) for number in range(1000)]
    parts = converted(tmp_path, "Patient", [*lines, *[b'{"resourceType":"Patient"}'] * 5], max_part_rows=100)
    assert sum(part.rows for part in parts) == 1005
    assert repeated_ids(paths(parts)) == 300
    assert repeated_ids([]) == 0


def test_a_file_that_is_no_parquet_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 nonsense")
    for read in (read_part_schema, lambda path: list(to_ndjson([path])), lambda path: repeated_ids([path])):
        with pytest.raises(LakeError, match="Parquet part cannot be read"):
            read(tmp_path / "p.parquet")


def test_a_part_without_resources_is_refused_on_the_way_back(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p.parquet")
    with pytest.raises(LakeError, match="no FHIR R4 resources"):
        list(to_ndjson([tmp_path / "p.parquet"]))


def test_open_files_work_as_well_as_paths(tmp_path: Path) -> None:
    [part] = converted(tmp_path, "Patient", [b'{"resourceType":"Patient","id":"a"}'])
    with part.path.open("rb") as file:
        assert [exact(line) for line in to_ndjson([file])] == [{"resourceType": "Patient", "id": "a"}]
    with part.path.open("rb") as file:
        assert read_part_schema(file) == part.schema


def test_blocks_show_new_members_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed into what was seen, widened when it is written; many small blocks and row groups."""
    monkeypatch.setattr(convert, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(convert, "FLUSH_BYTES", 30_000)
    monkeypatch.setattr(convert, "LANE_BYTES", 30_000)
    chance = random.Random(3)
    lines = [some_resource(chance, "CarePlan") for _ in range(80)]
    parts = converted(tmp_path, "CarePlan", lines, max_part_rows=30)
    assert 3 <= len(parts) <= 6
    assert len({schema_hash(part.schema) for part in parts}) == 1
    assert [exact(line) for line in to_ndjson(paths(parts))] == [exact(line) for line in lines]


@pytest.mark.parametrize(
    ("resource_type", "holding", "empty"),
    [
        (
            "Observation",
            '{"subject":{"identifier":{"period":{"start":"2020"}}}}',
            '{"subject":{"identifier":{"period":{}}}}',
        ),
        (
            "Observation",
            '{"component":[{"interpretation":[{"coding":[{"code":"1"}]}]}]}',
            '{"component":[{"interpretation":[]}]}',
        ),
        (
            "Patient",
            '{"contact":[{"name":{"_given":[{"extension":[{"url":"u"}]}]}}]}',
            '{"contact":[{"name":{"_given":[null]}}]}',
        ),
        (
            "Patient",
            '{"contact":[{"name":{"_given":[{"extension":[{"valuePeriod":{"end":"2020"}}]}]}}]}',
            '{"contact":[{"name":{"_given":[{"extension":[{"valuePeriod":{}},{}]},{}]}}]}',
        ),
    ],
)
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1)])
def test_a_structure_that_one_block_shows_with_members_and_another_without_any(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resource_type: str,
    holding: str,
    empty: str,
    order: tuple[int, ...],
) -> None:
    """An empty structure needs some member in Parquet, and the table has one of it already."""
    monkeypatch.setattr(convert, "BLOCK_BYTES", 10)
    both = [f'{{"resourceType":"{resource_type}",{text[1:]}'.encode() for text in (holding, empty)]
    lines = [both[which] for which in order]
    for flush in (1, 1_000_000):
        monkeypatch.setattr(convert, "FLUSH_BYTES", flush)
        monkeypatch.setattr(convert, "LANE_BYTES", flush)
        parts = converted(tmp_path / f"{flush}", resource_type, lines)
        assert [exact(line) for line in to_ndjson(paths(parts))] == [exact(line) for line in lines]
