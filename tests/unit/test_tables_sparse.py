"""Parts whose absent columns are footer entries with copied bytes, against plain pyarrow and every reader.

The oracle never sees the writer's way: it is the same rows as Python values, made a table of the whole schema
by `pa.Table.from_pylist` and written by `pyarrow.parquet` with its defaults, one row group for each of ours.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import VerificationFailed
from pipeline.tables import parts as parts_module
from pipeline.tables.delta import StagedPart, commit_export, part_path
from pipeline.tables.parts import HASH_KEY, PartWriter, rewrite_part
from pipeline.tables.schema import schema_hash

Row = dict[str, Any]

INSTANT = pa.timestamp("us", "UTC")
LEAVES: dict[pa.DataType, list[Any]] = {
    pa.string(): ["", "a", "a", "b" * 40, "Zoë \U0001f600", "\0", "null", "\u2028"],
    pa.bool_(): [True, False],
    pa.int32(): [0, 1, -1, 2**31 - 1, -(2**31)],
    pa.int64(): [0, 7, 2**63 - 1, -(2**63)],
    pa.float64(): [0.0, -0.0, 1.1, -2.5e-308, 1e308, float("inf"), float("-inf")],
    INSTANT: [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 2, 29, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
}  # fmt: skip


# --- schemas, what rows hold of them, rows -----------------------------------------------------------


def structures(kinds: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    members = st.lists(
        st.tuples(st.sampled_from("abcdef"), kinds), min_size=1, max_size=4, unique_by=lambda m: m[0]
    )
    return members.map(lambda found: pa.struct([pa.field(name, kind) for name, kind in found]))


def kinds(depth: int) -> st.SearchStrategy[pa.DataType]:
    leaf = st.sampled_from(list(LEAVES))
    if depth == 0:
        return leaf
    inner = kinds(depth - 1)
    lists = inner.map(lambda kind: pa.list_(pa.field("element", kind)))
    return st.one_of(structures(inner), lists, leaf)


SCHEMAS = (
    st.dictionaries(
        st.sampled_from(["id", "w", "x", "y", "z", "_unmapped"]), kinds(4), min_size=1, max_size=4
    )
    .map(lambda columns: pa.schema([pa.field(name, kind) for name, kind in columns.items()]))
    .filter(lambda schema: sum(1 for _ in leaf_paths(schema)) <= 60)
)


def leaf_paths(
    fields: Sequence[pa.Field] | pa.Schema, above: str = ""
) -> Iterator[tuple[str, pa.DataType, bool]]:
    """(path as in a Parquet footer, type, whether it lies in a list) of every leaf."""
    for field in fields:
        path, kind, repeats = f"{above}{field.name}", field.type, ".list." in above
        while pa.types.is_list(kind):
            path, kind, repeats = f"{path}.list.element", kind.value_type, True
        if pa.types.is_struct(kind):
            yield from leaf_paths(kind.fields, f"{path}.")
        else:
            yield path, kind, repeats


def part_of(chance: random.Random, kind: pa.DataType, share: float) -> pa.DataType:
    """The type with some of its members left out, at any depth; a structure keeps at least one."""
    if pa.types.is_list(kind):
        return pa.list_(pa.field("element", part_of(chance, kind.value_type, share)))
    if pa.types.is_struct(kind):
        fields = list(kind.fields)
        kept = [field for field in fields if chance.random() < share] or [chance.choice(fields)]
        return pa.struct([pa.field(field.name, part_of(chance, field.type, share)) for field in kept])
    return kind


def held_of(chance: random.Random, schema: pa.Schema) -> pa.Schema:
    share = chance.choice([0.2, 0.5, 0.9, 1.0])
    kept = [field for field in schema if chance.random() < share] or [chance.choice(list(schema))]
    chance.shuffle(kept)
    return pa.schema([pa.field(field.name, part_of(chance, field.type, share)) for field in kept])


def some_value(chance: random.Random, kind: pa.DataType, nulls: float) -> Any:
    if chance.random() < nulls:
        return None
    if pa.types.is_list(kind):
        return [some_value(chance, kind.value_type, nulls) for _ in range(chance.choice([0, 0, 1, 2, 3]))]
    if pa.types.is_struct(kind):
        return {field.name: some_value(chance, field.type, nulls) for field in kind.fields}
    return chance.choice(LEAVES[kind])


def some_rows(chance: random.Random, held: pa.Schema, count: int) -> list[Row]:
    nulls = chance.choice([0.0, 0.1, 0.4, 0.9, 1.0])
    return [{field.name: some_value(chance, field.type, nulls) for field in held} for _ in range(count)]


@dataclass(frozen=True)
class Group:
    """What is given to `write_all` at once."""

    tables: list[pa.Table]
    rows: list[Row]


def some_group(chance: random.Random, schema: pa.Schema, most: int = 30) -> Group:
    tables, rows = [], []
    for _ in range(chance.choice([1, 1, 2, 3])):
        held = held_of(chance, schema)
        mine = some_rows(chance, held, chance.choice([0, 1, 2, 7, most]))
        table = pa.Table.from_pylist(mine, schema=held)
        # Cut somewhere: arrays with an offset, several chunks.
        cut = chance.randrange(len(mine) + 1)
        tables += [table.slice(0, cut), table.slice(cut)] if chance.random() < 0.5 else [table]
        rows += mine
    return Group(tables, rows)


def write_ours(path: Path, schema: pa.Schema, groups: Sequence[Group]) -> None:
    with PartWriter(path, schema) as writer:
        for group in groups:
            writer.write_all(group.tables)
        part = writer.close()
    assert (part.rows, part.bytes) == (sum(len(group.rows) for group in groups), path.stat().st_size)


def write_plain(path: Path, schema: pa.Schema, groups: Sequence[Group]) -> pa.Table:
    """The oracle: the same rows and row groups, by pyarrow alone."""
    tables = [pa.Table.from_pylist(group.rows, schema=schema) for group in groups if group.rows]
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)
    return pa.concat_tables([schema.empty_table(), *tables])


# --- what must be the same ---------------------------------------------------------------------------


def check_readers(ours: Path, plain: Path, expected: pa.Table) -> None:
    found = pq.read_table(ours)
    found.validate(full=True)
    assert found.schema.equals(expected.schema)
    assert found.equals(expected)
    assert found.to_pylist() == expected.to_pylist()
    with duckdb.connect() as database:
        mine, theirs = (database.sql(f"from read_parquet('{path}')") for path in (ours, plain))
        assert mine.description == theirs.description
        assert mine.fetchall() == theirs.fetchall()
    frame = pl.read_parquet(ours)
    assert frame.schema == pl.read_parquet(plain).schema
    assert frame.to_dicts() == pl.read_parquet(plain).to_dicts() == expected.to_pylist()
    assert repr(pd.read_parquet(ours).to_dict("list")) == repr(pd.read_parquet(plain).to_dict("list"))


def check_single_columns(ours: Path, expected: pa.Table) -> None:
    with pq.ParquetFile(ours) as file:
        for path, _, _ in leaf_paths(expected.schema):
            one = file.read(columns=[path])
            top = path.partition(".")[0]
            assert one.column_names == [top]
            assert one.column(0).to_pylist() == [
                only(value, path.split(".")[1:]) for value in expected.column(top).to_pylist()
            ]


def only(value: Any, path: list[str]) -> Any:
    """The value with nothing but the leaf at the path."""
    if not path or value is None:
        return value
    if path[0] == "list":
        return [only(item, path[2:]) for item in value]
    return {path[0]: only(value[path[0]], path[1:])}


def check_footer(ours: Path, plain: Path) -> None:
    mine, theirs = pq.ParquetFile(ours).metadata, pq.ParquetFile(plain).metadata
    assert mine.schema.equals(theirs.schema)
    assert (mine.num_rows, mine.num_columns) == (theirs.num_rows, theirs.num_columns)
    assert mine.num_row_groups == theirs.num_row_groups
    size = ours.stat().st_size
    assert ours.read_bytes()[:4] == ours.read_bytes()[-4:] == b"PAR1"
    at = 4
    for number in range(mine.num_row_groups):
        group, other = mine.row_group(number), theirs.row_group(number)
        assert group.num_rows == other.num_rows
        columns = [group.column(i) for i in range(group.num_columns)]
        assert group.total_byte_size == sum(column.total_uncompressed_size for column in columns)
        for column, i in zip(columns, range(other.num_columns), strict=True):
            # Neither holes nor overlaps: each column begins where the one before it ended.
            assert at == (column.dictionary_page_offset or column.data_page_offset)
            assert at <= column.data_page_offset < at + column.total_compressed_size
            at += column.total_compressed_size
            check_column(column, other.column(i))
    assert at == size - 8 - mine.serialized_size


def check_column(column: Any, other: Any) -> None:
    """Statistics, levels and type of a column are those that pyarrow writes."""
    names = ("path_in_schema", "physical_type", "num_values", "is_stats_set")
    assert [getattr(column, name) for name in names] == [getattr(other, name) for name in names]
    assert column.compression == "ZSTD"
    mine, theirs = column.statistics, other.statistics
    assert str(mine.logical_type) == str(theirs.logical_type)
    for name in ("null_count", "num_values", "has_min_max", "min", "max", "physical_type"):
        assert getattr(mine, name) == getattr(theirs, name), (column.path_in_schema, name)


def check_metadata(ours: Path, schema: pa.Schema) -> None:
    pairs = pq.ParquetFile(ours).metadata.metadata
    assert set(pairs) == {HASH_KEY, b"ARROW:schema"}
    assert pairs[HASH_KEY].decode() == schema_hash(schema)
    # Arrow's own schema, as every Arrow library decodes it.
    assert pq.read_schema(ours).remove_metadata().equals(schema, check_metadata=True)


def check_all(ours: Path, plain: Path, schema: pa.Schema, groups: Sequence[Group]) -> None:
    write_ours(ours, schema, groups)
    expected = write_plain(plain, schema, groups)
    check_readers(ours, plain, expected)
    check_footer(ours, plain)
    check_single_columns(ours, expected)
    check_metadata(ours, schema)


CHANCE = st.integers(0, 2**32)


@given(SCHEMAS, CHANCE)
@settings(max_examples=40)
def test_any_rows_of_any_part_of_a_schema_are_read_as_pyarrow_would_have_written_them(
    schema: pa.Schema, seed: int
) -> None:
    """Several row groups that hold different columns, at every depth null or empty or missing."""
    chance = random.Random(seed)
    groups = [some_group(chance, schema) for _ in range(chance.choice([1, 1, 2, 4]))]
    with TemporaryDirectory() as folder:
        check_all(Path(folder, "ours"), Path(folder, "plain"), schema, groups)


def nested(kind: pa.DataType, depth: int) -> pa.DataType:
    return kind if depth == 0 else pa.struct([("a", pa.list_(pa.field("element", nested(kind, depth - 1))))])


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", list(LEAVES), ids=str)
def test_rows_that_are_all_null_or_all_empty_in_a_schema_of_every_type(
    tmp_path: Path, kind: pa.DataType, count: int
) -> None:
    """Each of them alone in its row group, so that nothing else decides what the bytes say."""
    deep = nested(kind, 2)
    schema = pa.schema([("id", kind), ("x", deep), ("y", pa.list_(pa.field("element", deep))), ("z", kind)])
    odd_x: list[Any] = [None, {"a": None}, {"a": []}, {"a": [None]}, {"a": [{"a": []}]}]
    odd_y: list[Any] = [None, [], [None], [{"a": None}, {"a": []}]]
    values: list[tuple[pa.Schema, Row]] = [
        (pa.schema([schema.field("id")]), {"id": None}),
        (pa.schema([schema.field("z")]), {"z": LEAVES[kind][0]}),
        *((pa.schema([schema.field("x")]), {"x": value}) for value in odd_x),
        *((pa.schema([schema.field("y")]), {"y": value}) for value in odd_y),
    ]
    groups = [
        Group([pa.Table.from_pylist([row] * count, schema=held)], [row] * count) for held, row in values
    ]
    check_all(tmp_path / "ours", tmp_path / "plain", schema, groups)


def shape(steps: Sequence[str], kind: pa.DataType) -> pa.DataType:
    for step in reversed(steps):
        kind = pa.list_(pa.field("element", kind)) if step == "list" else pa.struct([("m", kind)])
    return kind


def test_absent_columns_of_every_shape_side_by_side(tmp_path: Path) -> None:
    """Lists and structures in any order, three deep: equal depth does not mean equal repetition."""
    ways = [way for deep in range(4) for way in itertools.product(["list", "struct"], repeat=deep)]
    kinds = itertools.cycle(LEAVES)
    shapes = [pa.field(f"c{i}", shape(way, next(kinds))) for i, way in enumerate(ways * 2)]
    inner = pa.struct([pa.field("x", pa.string()), *shapes])
    items = pa.list_(pa.field("element", inner))
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("s", inner),
            ("l", items),
            *shapes,
            ("ll", pa.list_(pa.field("element", items))),
        ]
    )
    held = pa.struct([("x", pa.string())])
    held_items = pa.list_(pa.field("element", held))
    rows: list[Row] = [
        {"s": one, "l": many, "ll": [many, None, [], many]}
        for one in (None, {"x": None}, {"x": "a"})
        for many in (None, [], [None], [{"x": None}, None, {"x": "b"}])
    ]
    forms = [
        pa.schema([("id", pa.string())]),
        pa.schema([("s", held)]),
        pa.schema([("l", held_items), ("s", held)]),
        pa.schema([("ll", pa.list_(pa.field("element", held_items)))]),
    ]
    groups = []
    for form in forms:
        mine = [{name: row.get(name) for name in form.names} for row in rows]
        groups.append(Group([pa.Table.from_pylist(mine, schema=form)], mine))
    check_all(tmp_path / "ours", tmp_path / "plain", schema, groups)


def test_no_rows_make_a_whole_file(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("x", nested(INSTANT, 2))])
    held = pa.schema([schema.field("id")])
    for number, groups in enumerate(
        [[], [Group([held.empty_table()], [])], [Group([schema.empty_table()], [])] * 2]
    ):
        check_all(tmp_path / f"ours{number}", tmp_path / f"plain{number}", schema, groups)
        assert pq.ParquetFile(tmp_path / f"ours{number}").metadata.num_row_groups == 0


def test_an_absent_column_says_how_many_nulls_it_has_and_nothing_else(tmp_path: Path) -> None:
    """By hand, without an oracle's file: what a reader skips row groups by."""
    structure = pa.struct([("a", pa.int32()), ("b", pa.string()), ("c", pa.bool_())])
    schema = pa.schema([("id", pa.string()), ("n", pa.int64()), ("s", structure), ("t", INSTANT)])
    held = pa.schema([("s", pa.struct([("a", pa.int32())])), ("id", pa.string())])
    rows: list[Row] = [{"id": str(i), "s": {"a": i} if i % 2 else None} for i in range(10)]
    write_ours(tmp_path / "p", schema, [Group([pa.Table.from_pylist(rows, schema=held)], rows)])
    group = pq.ParquetFile(tmp_path / "p").metadata.row_group(0)
    found = {}
    for i in range(group.num_columns):
        column = group.column(i)
        found[column.path_in_schema] = (
            column.num_values,
            column.statistics.null_count,
            (column.statistics.min, column.statistics.max) if column.statistics.has_min_max else None,
        )
    assert found == {
        "id": (10, 0, ("0", "9")),
        "n": (10, 10, None),
        "s.a": (10, 5, (1, 9)),
        "s.b": (10, 10, None),
        "s.c": (10, 10, None),
        "t": (10, 10, None),
    }


def test_columns_that_the_schema_lacks_are_refused(tmp_path: Path) -> None:
    schema = pa.schema([("s", pa.struct([("a", pa.string())]))])
    for table in (
        pa.table({"other": ["x"]}),
        pa.table({"s": [{"b": "x"}]}),
        pa.table({"s": [{"a": 1}]}),
        pa.table({"s": [[{"a": "x"}]]}),
    ):
        with pytest.raises(VerificationFailed), PartWriter(tmp_path / "p", schema) as writer:
            writer.write_all([pa.table({"s": [{"a": "x"}]}), table])
        assert not (tmp_path / "p").exists()


# --- many rows ---------------------------------------------------------------------------------------

DEEP = pa.struct([("b", pa.struct([("c", pa.int64()), ("d", pa.string())])), ("e", pa.float64())])
ITEMS = pa.list_(pa.field("element", pa.struct([("u", pa.string()), ("v", INSTANT)])))
WIDE = pa.schema(
    [
        ("id", pa.string()),
        ("n", pa.int32()),
        ("s", pa.struct([("a", DEEP), ("t", ITEMS)])),
        ("gone", pa.struct([("x", pa.string()), ("y", ITEMS)])),
        ("late", pa.string()),
        ("flag", pa.bool_()),
        ("when", INSTANT),
    ]
)
MANY, FEW = 200_000, 1_000
START = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Row]]:
    """200,000 rows that hold some columns, then 1,000 that hold others; ours, the oracle's, the values."""
    folder = tmp_path_factory.mktemp("large")
    many: list[Row] = [
        {
            "id": f"p{i:06d}",
            "n": i if i % 3 else None,
            "s": None if i % 5 == 0 else {"a": None if i % 7 == 0 else {"b": {"c": i}}},
            "when": START + timedelta(minutes=i),
        }
        for i in range(MANY)
    ]
    few: list[Row] = [
        {
            "id": f"q{i:06d}",
            "late": f"l{i % 10}",
            "flag": i % 2 == 0,
            "s": {"t": [{"u": str(n)} for n in range(i % 4)]},
            "gone": {"y": [None, {"v": START}]} if i % 2 else None,
        }
        for i in range(FEW)
    ]
    held_many = pa.schema(
        [
            ("n", pa.int32()),
            ("id", pa.string()),
            ("s", pa.struct([("a", pa.struct([("b", pa.struct([("c", pa.int64())]))]))])),
            ("when", INSTANT),
        ]
    )
    held_few = pa.schema(
        [
            ("id", pa.string()),
            ("late", pa.string()),
            ("flag", pa.bool_()),
            ("s", pa.struct([("t", pa.list_(pa.field("element", pa.struct([("u", pa.string())]))))])),
            ("gone", pa.struct([("y", pa.list_(pa.field("element", pa.struct([("v", INSTANT)]))))])),
        ]
    )
    first = pa.Table.from_pylist(many, schema=held_many)
    with PartWriter(folder / "ours.parquet", WIDE) as writer:
        writer.write_all([first.slice(0, 1000), first.slice(1000)])
        writer.write_all([pa.Table.from_pylist(few, schema=held_few)])
        writer.close()
    whole = pa.Table.from_pylist(many + few, schema=WIDE)
    size = parts_module.ROW_GROUP_ROWS
    with pq.ParquetWriter(folder / "plain.parquet", WIDE) as plain:
        for begin, end in [(0, size), (size, MANY), (MANY, MANY + FEW)]:
            plain.write_table(whole.slice(begin, end - begin), row_group_size=size)
    return folder / "ours.parquet", folder / "plain.parquet", many + few


def test_many_rows_are_several_row_groups_and_equal(large: tuple[Path, Path, list[Row]]) -> None:
    """tables.md rule 10: about 128k rows each."""
    ours, plain, _ = large
    metadata = pq.ParquetFile(ours).metadata
    assert [metadata.row_group(i).num_rows for i in range(3)] == [131_072, MANY - 131_072, FEW]
    check_footer(ours, plain)
    check_metadata(ours, WIDE)
    assert pq.read_table(ours).equals(pq.read_table(plain))
    assert pl.read_parquet(ours).equals(pl.read_parquet(plain), null_equal=True)
    difference = (
        f"(from '{ours}' except all from '{plain}') union all (from '{plain}' except all from '{ours}')"
    )
    assert duckdb.sql(f"select count(*) from ({difference})").fetchall() == [(0,)]


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("n = 150001", lambda row: row.get("n") == 150001),
        ("n > 199990", lambda row: (row.get("n") or 0) > 199990),
        ("n is null", lambda row: row.get("n") is None),
        ("id between 'p131071' and 'p131072'", lambda row: "p131071" <= row["id"] <= "p131072"),
        ("late = 'l7'", lambda row: row.get("late") == "l7"),
        ("late is not null", lambda row: row.get("late") is not None),
        ("late is null", lambda row: row.get("late") is None),
        ("flag", lambda row: row.get("flag") is True),
        ("not flag", lambda row: row.get("flag") is False),
        ("gone.x is null", lambda row: True),
        ("gone.x = 'a'", lambda row: False),
        ("gone is not null", lambda row: row.get("gone") is not None),
        ("s is null", lambda row: row.get("s") is None),
        ("s.a is null", lambda row: not (row.get("s") or {}).get("a")),
        ("s.a.b.c = 123456", lambda row: row["id"] == "p123456"),
        ("s.a.e is not null", lambda row: False),
        ("len(s.t) = 3", lambda row: len((row.get("s") or {}).get("t") or []) == 3),
        ("gone.y[2].v = timestamptz '2020-01-01 00:00:00+00'", lambda row: row.get("gone") is not None),
        (
            "\"when\" >= timestamptz '2020-05-18 21:00:00+00'",
            lambda row: row["id"] >= "p199980" and row["id"] < "q",
        ),
    ],
)
def test_duckdb_pushes_filters_down_on_present_and_absent_columns(
    large: tuple[Path, Path, list[Row]], condition: str, holds: Any
) -> None:
    ours, _, rows = large
    found = duckdb.sql(f"select id from '{ours}' where {condition} order by id").fetchall()
    assert [name for (name,) in found] == [row["id"] for row in rows if holds(row)]


def test_duckdb_reads_nested_fields_alone(large: tuple[Path, Path, list[Row]]) -> None:
    ours, _, rows = large
    found = duckdb.sql(f"select s.a.b.c, s.a.b.d, s.a.e, gone.x, s.t[1].u, s.t[1].v from '{ours}'").fetchall()
    for row, (c, *absent, u, v) in zip(rows, found, strict=True):
        assert c == (((row.get("s") or {}).get("a") or {}).get("b") or {}).get("c")
        items = (row.get("s") or {}).get("t")
        assert (u, v) == (items[0]["u"] if items else None, None)
        assert absent == [None, None, None]


def test_pyarrow_and_polars_filter_by_statistics(large: tuple[Path, Path, list[Row]]) -> None:
    ours, _, _ = large
    names = ["id", "late"]
    assert pq.read_table(ours, filters=[("n", "=", 150_001)], columns=names).to_pylist() == [
        {"id": "p150001", "late": None}
    ]
    late = pq.read_table(ours, filters=[("late", "=", "l7")], columns=names)
    assert late.num_rows == FEW // 10
    scan = pl.scan_parquet(ours)
    assert scan.filter(pl.col("late") == "l7").select(names).collect().to_dicts() == late.to_pylist()
    assert scan.filter(pl.col("n") == 150_001).select(names).collect().rows() == [("p150001", None)]
    assert scan.filter(pl.col("late").is_null()).select(pl.len()).collect().item() == MANY
    assert scan.filter(pl.col("s").struct.field("a").is_null()).select(pl.len()).collect().item() == (
        pl.scan_parquet(large[1])
        .filter(pl.col("s").struct.field("a").is_null())
        .select(pl.len())
        .collect()
        .item()
    )


def test_pandas_reads_the_large_part(large: tuple[Path, Path, list[Row]]) -> None:
    ours, plain, _ = large
    columns = ["n", "late", "flag", "when"]
    pd.testing.assert_frame_equal(
        pd.read_parquet(ours, columns=columns), pd.read_parquet(plain, columns=columns)
    )
    nested = {"columns": ["late", "gone"], "filters": [("late", "!=", "")]}
    few = pd.read_parquet(ours, **nested)
    assert len(few) == FEW
    assert repr(few.to_dict("list")) == repr(pd.read_parquet(plain, **nested).to_dict("list"))


# --- through Delta: its readers and writers are parquet-rs, arrow-rs and DataFusion ------------------------

N1, N2 = "20260101T020000Z", "20260102T020000Z"


def publish(root: Path, export_id: str, schema: pa.Schema, files: Sequence[Sequence[Group]]) -> list[Row]:
    """Commits parts that we write; returns the rows with their Delta partition, from the values alone."""
    staged, rows = [], []
    for groups in files:
        path = part_path(export_id, 1)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_ours(root / path, schema, groups)
        mine = [row for group in groups for row in group.rows]
        staged.append(StagedPart(path, (root / path).stat().st_size, len(mine)))
        rows += pa.Table.from_pylist(mine, schema=schema).to_pylist()
    commit_export(str(root), export_id=export_id, attempt=1, replaces_after=0, parts=staged, schema=schema)
    return [{**row, "export_id": export_id} for row in rows]


def in_order(rows: Sequence[Row]) -> list[str]:
    return sorted(repr(dict(sorted(row.items()))) for row in rows)


def check_delta(root: Path, rows: Sequence[Row]) -> None:
    table = DeltaTable(str(root))
    assert in_order(table.to_pyarrow_table().to_pylist()) == in_order(rows)
    assert in_order(pl.scan_delta(str(root)).collect().to_dicts()) == in_order(rows)
    answer = QueryBuilder().register("t", table).execute("select * from t").read_all()
    assert in_order(pa.table(answer).to_pylist()) == in_order(rows)
    one = (
        QueryBuilder().register("t", table).execute("select count(*) as n from t where id is null").read_all()
    )
    assert pa.table(one).to_pylist() == [{"n": sum(row["id"] is None for row in rows)}]


@pytest.mark.parametrize("seed", range(4))
def test_delta_reads_compacts_and_vacuums_such_parts(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    text = [("id", pa.string()), ("late", pa.string())]
    schema = pa.schema(
        [*text, *((f"c{i}", nested(kind, chance.randrange(4))) for i, kind in enumerate(LEAVES))]
    )
    files = [[some_group(chance, schema, 20) for _ in range(2)] for _ in range(6)]
    rows = publish(tmp_path, N1, schema, files[:3]) + publish(tmp_path, N2, schema, files[3:])
    check_delta(tmp_path, rows)
    table = DeltaTable(str(tmp_path))
    before = set(tmp_path.glob("*/*.parquet"))
    assert table.optimize.compact()["numFilesAdded"] == 2
    check_delta(tmp_path, rows)
    removed = table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert len(removed) == len(before) == 6
    assert not before & set(tmp_path.glob("*/*.parquet"))
    check_delta(tmp_path, rows)


def test_a_part_is_rewritten_to_a_wider_schema_from_what_is_absent_in_it(tmp_path: Path) -> None:
    chance = random.Random(8)
    schema = pa.schema([("id", pa.string()), ("x", nested(pa.bool_(), 3)), ("y", nested(INSTANT, 2))])
    wide = pa.schema([("new", nested(pa.int32(), 1)), *schema, ("flag", pa.bool_())])
    groups = [some_group(chance, schema) for _ in range(5)]
    write_ours(tmp_path / "narrow", schema, groups)
    part = rewrite_part(tmp_path / "narrow", tmp_path / "ours", wide)
    expected = write_plain(tmp_path / "plain", wide, groups)
    assert (part.rows, part.schema) == (expected.num_rows, wide)
    assert pq.read_table(tmp_path / "ours").equals(expected)
