"""Reading only the columns that hold anything gives what reading everything gives, whoever wrote the file.

Schemas and rows are those of test_tables_sparse; what must come out is the rows as Python values.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tables_sparse import CHANCE, SCHEMAS, Group, Row, leaf_paths, some_group, write_ours

from pipeline.errors import LakeError
from pipeline.tables.current import taking
from pipeline.tables.current.taking import ChunkFiles, taken
from pipeline.tables.parts import widen
from pipeline.tables.sparse_reading import held_columns

OPTIONS: dict[str, list[Any]] = {
    "write_statistics": [True, True, True, False],
    "data_page_version": ["1.0", "2.0"],
    "compression": ["snappy", "none", "zstd"],
    "use_dictionary": [True, False],
    "store_schema": [True, False],
    "write_page_index": [True, False],
}
"""How other writers write."""


def held_of(path: Path) -> list[list[str]]:
    with path.open("rb") as file:
        return held_columns(file)


def read_sparsely(path: Path, schema: pa.Schema) -> list[pa.Table]:
    """Each row group, from nothing but the columns named for it."""
    held = held_of(path)
    with pq.ParquetFile(path) as part:
        assert len(held) == part.metadata.num_row_groups
        found = []
        for group, columns in enumerate(held):
            assert columns
            assert len(set(columns)) == len(columns)
            found.append(widen(part.read_row_group(group, columns=columns), schema))
    return found


def check(path: Path, schema: pa.Schema, rows: Sequence[Row]) -> None:
    """Table by table as if all columns were read, and row by row as it was written."""
    with pq.ParquetFile(path) as part:
        whole = [widen(part.read_row_group(i), schema) for i in range(part.metadata.num_row_groups)]
    found = read_sparsely(path, schema)
    for mine, theirs in zip(found, whole, strict=True):
        mine.validate(full=True)
        assert mine.equals(theirs)
    expected = pa.Table.from_pylist(list(rows), schema=schema).to_pylist()
    assert [row for table in found for row in table.to_pylist()] == expected


def groups_of(chance: random.Random, schema: pa.Schema) -> list[Group]:
    return [some_group(chance, schema) for _ in range(chance.choice([1, 2, 3]))]


def rows_in(groups: Sequence[Group]) -> list[Row]:
    return [row for group in groups for row in group.rows]


@given(SCHEMAS, CHANCE)
@settings(max_examples=100)
def test_any_rows_of_our_parts_are_read_whole(schema: pa.Schema, seed: int) -> None:
    """Row groups that hold different columns, whose absent ones are footer entries with copied bytes."""
    groups = groups_of(random.Random(seed), schema)
    with TemporaryDirectory() as folder:
        write_ours(Path(folder, "part"), schema, groups)
        check(Path(folder, "part"), schema, rows_in(groups))


@given(SCHEMAS, CHANCE)
@settings(max_examples=100)
def test_any_rows_of_plain_files_are_read_whole(schema: pa.Schema, seed: int) -> None:
    """In row groups of any size, with and without what tells how deep the nulls go."""
    chance = random.Random(seed)
    rows = rows_in(groups_of(chance, schema))
    options = {name: chance.choice(choices) for name, choices in OPTIONS.items()}
    with TemporaryDirectory() as folder:
        table = pa.Table.from_pylist(rows, schema=schema)
        path = Path(folder, "plain")
        pq.write_table(table, path, row_group_size=chance.choice([1, 2, 5, 1000]), **options)
        check(path, schema, rows)


@given(SCHEMAS, CHANCE)
@settings(max_examples=40)
def test_any_rows_that_delta_rs_wrote_are_read_whole(schema: pa.Schema, seed: int) -> None:
    """As when somebody has compacted the table: another Parquet library altogether."""
    rows = rows_in(groups_of(random.Random(seed), schema))
    with TemporaryDirectory() as folder:
        write_deltalake(folder, pa.Table.from_pylist(rows, schema=schema))
        paths = [Path(folder, each["path"]) for each in add_actions(folder)]
        assert len(paths) == bool(rows)
        for path in paths:
            check(path, schema, rows)


def add_actions(root: str) -> list[dict[str, Any]]:
    return pa.table(DeltaTable(root).get_add_actions()).select(["path"]).to_pylist()


# --- what is there without a value -------------------------------------------------------------------

DEEP = pa.struct([("c", pa.string()), ("d", pa.list_(pa.field("element", pa.int32())))])
ITEMS = pa.list_(pa.field("element", DEEP))
SCHEMA = pa.schema(
    [("id", pa.string()), ("x", pa.struct([("a", pa.string()), ("b", DEEP), ("l", ITEMS)])), ("y", ITEMS)]
)
SHAPES: list[Row] = [
    {"id": None},
    {"x": None},
    {"x": {"a": None}},
    {"x": {"b": {}}},
    {"x": {"l": []}},
    {"x": {"l": [None]}},
    {"x": {"l": [None, None]}},
    {"x": {"l": [{}, None]}},
    {"x": {"l": [{"d": []}]}},
    {"x": {"l": [{"d": [None]}]}},
    {"y": []},
    {"y": [None]},
    {"y": [{"c": None}, None, {"d": [None, None]}]},
    {"y": [{"c": "z"}, None]},
    {"x": {"a": "z", "l": [None]}},
]


def shaped(row: Row) -> list[Row]:
    return pa.Table.from_pylist([row], schema=SCHEMA).to_pylist()


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "plain"])
def test_nulls_and_emptiness_at_every_depth_are_told_apart(tmp_path: Path, ours: bool) -> None:
    """Each shape alone in its row group, so that no other row tells; all columns nullable (tables.md 7)."""
    path = tmp_path / "part"
    if ours:
        write_ours(
            path, SCHEMA, [Group([pa.Table.from_pylist([row], schema=SCHEMA)], [row]) for row in SHAPES]
        )
    else:
        pq.write_table(pa.Table.from_pylist(SHAPES, schema=SCHEMA), path, row_group_size=1)
    found = [table.to_pylist() for table in read_sparsely(path, SCHEMA)]
    assert found == [shaped(row) for row in SHAPES]
    # Absent rows and absent structures aside, no two of them are alike.
    assert len({repr(each) for each in found}) == len(SHAPES) - 1


LEFT: dict[str, tuple[Row, set[str]]] = {
    "one value": ({"id": "1"}, {"id"}),
    "a value tells of its structure": ({"x": {"a": "1"}}, {"x.a"}),
    "and of its list": ({"id": "1", "x": {"l": [{"c": "1"}]}}, {"id", "x.l.list.element.c"}),
    "an empty list beside values": (
        {"y": [{"c": "1"}], "x": {"a": "1", "l": []}},
        {"y.list.element.c", "x.a", "x.l.list.element.c"},
    ),
}


@pytest.mark.parametrize(("row", "columns"), LEFT.values(), ids=LEFT.keys())
def test_columns_of_which_nothing_is_there_are_left_out(tmp_path: Path, row: Row, columns: set[str]) -> None:
    """Else nothing would be won."""
    for number, write in enumerate(writers()):
        path = tmp_path / str(number)
        write(path, [row])
        (held,) = held_of(path)
        assert set(held) == columns
        assert read_sparsely(path, SCHEMA)[0].to_pylist() == shaped(row)


def writers() -> list[Callable[[Path, list[Row]], None]]:
    def sparse(path: Path, rows: list[Row]) -> None:
        write_ours(path, SCHEMA, [Group([pa.Table.from_pylist(rows, schema=SCHEMA)], rows)])

    def plain(path: Path, rows: list[Row]) -> None:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)

    return [sparse, plain]


def test_of_rows_without_anything_one_column_says_how_many(tmp_path: Path) -> None:
    for number, write in enumerate(writers()):
        path = tmp_path / str(number)
        write(path, [{"id": None}] * 3)
        assert [len(columns) for columns in held_of(path)] == [1]
        assert read_sparsely(path, SCHEMA)[0].to_pylist() == shaped({}) * 3


def test_each_row_group_is_looked_at_by_itself(tmp_path: Path) -> None:
    rows: list[Row] = [{"id": "1"}, {"x": {"a": "1"}}, {"y": [None]}]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "p", row_group_size=1)
    assert held_of(tmp_path / "p") == [["id"], ["x.a"], ["y.list.element.c"]]


def test_without_statistics_every_column_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": "1"}], schema=SCHEMA), tmp_path / "p", write_statistics=False)
    assert held_of(tmp_path / "p") == [[path for path, _, _ in leaf_paths(SCHEMA)]]


def test_a_file_without_rows_has_no_groups(tmp_path: Path) -> None:
    write_ours(tmp_path / "p", SCHEMA, [])
    assert held_of(tmp_path / "p") == []


# --- what is no part ---------------------------------------------------------------------------------


def test_a_cut_file_and_another_file_are_said_to_be_no_part(tmp_path: Path) -> None:
    """At every length; the whole file is one."""
    pq.write_table(pa.Table.from_pylist(SHAPES[:2], schema=SCHEMA), tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    assert held_columns(io.BytesIO(data)) == held_of(tmp_path / "p")
    for size in [*range(64), *range(64, len(data), 97), len(data) - 1]:
        with pytest.raises(LakeError, match="Parquet"):
            held_columns(io.BytesIO(data[:size]))
    for other in (b"", b"PAR1", b'{"resourceType":"Patient"}\n' * 50, b"\0" * 100, data + b"\n"):
        with pytest.raises(LakeError, match="Parquet"):
            held_columns(io.BytesIO(other))


NO_FOOTERS = {"text": b"no footer" * 9, "ones": b"\xff" * 60, "zeros": b"\0" * 60, "nothing": b""}


@pytest.mark.parametrize("footer", NO_FOOTERS.values(), ids=NO_FOOTERS.keys())
def test_a_footer_that_is_none_is_said_to_be_no_part(footer: bytes) -> None:
    """The end of the file alone looks like Parquet."""
    data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(LakeError, match="Parquet"):
        held_columns(io.BytesIO(data))


# --- some rows of parts ------------------------------------------------------------------------------


@given(SCHEMAS, CHANCE, st.booleans())
@settings(max_examples=60)
def test_the_rows_that_are_kept_come_out_in_order_and_untouched(
    schema: pa.Schema, seed: int, ours: bool
) -> None:
    """Any of them, across row groups and batches; then in files of a given size, none left behind."""
    chance = random.Random(seed)
    groups = groups_of(chance, schema)
    rows = rows_in(groups)
    share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    keep = np.array([chance.random() < share for _ in rows], np.bool_)
    limit = chance.choice([1, 3, 1000])
    kept = [row for row, stays in zip(rows, keep, strict=True) if stays]
    expected = pa.Table.from_pylist(kept, schema=schema).to_pylist()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(taking, "_BATCH_ROWS", chance.choice([1, 4, 1000]))
        path, out = Path(folder, "part"), Path(folder, "out")
        out.mkdir()
        if ours:
            write_ours(path, schema, groups)
        else:
            pq.write_table(
                pa.Table.from_pylist(rows, schema=schema), path, row_group_size=chance.choice([1, 7])
            )
        assert [row for some in taken(path, keep) for row in widen(some, schema).to_pylist()] == expected
        with ChunkFiles(out, schema, limit) as files:
            for some in taken(path, keep):
                files.add(some)
            files.cut()
            sizes = [part.rows for part in files.finished]
            written = [row for part in files.finished for row in pq.read_table(part.path).to_pylist()]
        assert written == expected
        assert sizes == [limit] * (len(kept) // limit) + [len(kept) % limit] * (len(kept) % limit > 0)
        assert list(out.iterdir()) == []


def test_a_failure_leaves_no_chunk_files_behind(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b", "c"]})
    with pytest.raises(ZeroDivisionError), ChunkFiles(tmp_path, table.schema, 2) as files:
        files.add(table)
        assert len(files.finished) == 1
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_chunk_files_are_cut_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of few rows may be a large one."""
    monkeypatch.setattr(taking, "_GROUP_BYTES", 1)
    monkeypatch.setattr(taking, "CHUNK_BYTES", 100_000)
    chance = random.Random(1)
    table = pa.table({"id": [chance.randbytes(60_000).hex() for _ in range(5)]})
    with ChunkFiles(tmp_path, table.schema, 1000) as files:
        for row in range(5):
            files.add(table.slice(row, 1))
        files.cut()
        found = [pq.read_table(part.path).column("id").to_pylist() for part in files.finished]
    assert [len(each) for each in found] == [2, 2, 1]
    assert [each for some in found for each in some] == table.column("id").to_pylist()
