"""Rows taken out of Parquet files page by page, against reading, filtering and what every reader then sees.

Schemas and rows are those of test_tables_sparse; the oracle is the rows as Python values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_tables_sparse import CHANCE, SCHEMAS, Row, some_group, write_ours

from pipeline.errors import LakeError
from pipeline.tables.sparse_reading import held_columns
from pipeline.tables.thinning import UnfitForThinning, is_thinned, thin

PLAIN: dict[str, list[Any]] = {
    "write_statistics": [True, True, False],
    "compression": ["snappy", "none", "zstd"],
    "use_dictionary": [True, False],
    "data_page_size": [100, 1 << 20],
    "dictionary_pagesize_limit": [1, 40, 1 << 20],
    "write_page_index": [True, False],
    "write_batch_size": [3, 1024],
}
"""How other writers write, and pages and dictionaries of a few values."""


def rows_of(path: Path) -> list[Row]:
    table = pq.read_table(path)
    table.validate(full=True)
    return table.to_pylist()


def check(source: Path, keep: np.ndarray[Any, Any], folder: Path) -> None:
    """The rows that stay, for several readers; statistics that hold; and once more, from what came out."""
    target = folder / "thinned"
    rows = rows_of(source)
    stay = [row for row, stays in zip(rows, keep, strict=True) if stays]
    assert thin(source, target, keep) == len(stay)
    assert rows_of(target) == stay
    assert pl.read_parquet(target).height == len(stay)
    assert pq.read_schema(target) == pq.read_schema(source)
    with pq.ParquetFile(target) as part, target.open("rb") as file:
        # What is read of the columns that hold anything is all.
        held = held_columns(file)
        for group, columns in enumerate(held):
            metadata = part.metadata.row_group(group)
            for place in range(metadata.num_columns):
                check_statistics(metadata.column(place), part.read_row_group(group), columns)
    # Twice the same bytes: nothing of what lay in memory before.
    assert thin(source, folder / "twice", keep) == len(stay)
    assert (folder / "twice").read_bytes() == target.read_bytes()
    again = np.arange(len(stay)) % 2 == 0
    thin(target, folder / "again", again)
    assert rows_of(folder / "again") == stay[::2]


def check_statistics(column: Any, table: pa.Table, held: Sequence[str]) -> None:
    statistics = column.statistics
    if "." in column.path_in_schema or statistics is None:
        return
    values = table.column(column.path_in_schema)
    assert column.num_values == len(values)
    assert statistics.null_count == values.null_count
    assert (column.path_in_schema in held) or values.null_count == len(values)
    if statistics.has_min_max:
        there = [each for each in values.to_pylist() if each is not None and not isnan(each)]
        assert all(statistics.min <= each <= statistics.max for each in there)


def isnan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def mask(chance: random.Random, rows: int) -> np.ndarray[Any, Any]:
    """At least one row stays."""
    share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    keep = np.array([chance.random() < share for _ in range(rows)], np.bool_)
    keep[chance.randrange(rows)] = True
    return keep


@given(SCHEMAS, CHANCE, st.booleans())
@settings(max_examples=60)
def test_the_rows_that_stay_are_untouched(schema: pa.Schema, seed: int, ours: bool) -> None:
    """Of our parts, whose absent columns are copied bytes, and of what pyarrow writes in any way."""
    chance = random.Random(seed)
    groups = [some_group(chance, schema) for _ in range(chance.choice([1, 2, 3]))]
    rows = [row for group in groups for row in group.rows]
    if not rows:
        return
    with TemporaryDirectory() as folder:
        source = Path(folder, "source")
        if ours:
            write_ours(source, schema, groups)
        else:
            options = {name: chance.choice(choices) for name, choices in PLAIN.items()}
            table = pa.Table.from_pylist(rows, schema=schema)
            pq.write_table(table, source, row_group_size=chance.choice([1, 7, 1000]), **options)
            # pyarrow 26 cannot read all that it writes in such small pages.
            assume(pq.ParquetFile(source).read().num_rows == len(rows))
        check(source, mask(chance, len(rows)), Path(folder))


@pytest.fixture(scope="module")
def large() -> pa.Table:
    """Long and short runs, dictionaries that become too large, texts, lists over many rows, numbers."""
    chance = random.Random(3)
    size = 40_000
    runs = [number // chance.choice([1, 3, 900]) for number in range(size)]
    return pa.table(
        {
            "id": [chance.randbytes(16).hex() for _ in range(size)],
            "run": pa.array([runs[number] % 700 for number in range(size)], pa.int32()),
            "few": [None if chance.random() < 0.3 else chance.choice(["a", "b", "c"]) for _ in range(size)],
            "wide": pa.array([chance.randrange(2**62) for _ in range(size)]),
            "real": [chance.random() for _ in range(size)],
            "flag": [chance.choice([True, False, None]) for _ in range(size)],
            "none": pa.nulls(size, pa.string()),
            "same": ["x"] * size,
            "list": [
                [
                    {"a": chance.choice(["", "p", "q" * 50]), "b": number}
                    for number in range(chance.randrange(4))
                ]
                for _ in range(size)
            ],
        }
    )


@pytest.mark.parametrize("share", [0.0001, 0.005, 0.5, 0.999])
def test_many_rows_of_every_encoding(tmp_path: Path, large: pa.Table, share: float) -> None:
    """Several pages a column, bit-packed runs of any width; DuckDB and pyarrow find the same."""
    source, target = tmp_path / "source", tmp_path / "target"
    pq.write_table(
        large,
        source,
        row_group_size=25_000,
        compression="zstd",
        data_page_size=50_000,
        dictionary_pagesize_limit=200_000,
    )
    keep = np.random.default_rng(7).random(large.num_rows) >= share
    thin(source, target, keep)
    expected = large.filter(pa.array(keep))
    found = pq.read_table(target)
    found.validate(full=True)
    assert found.equals(expected.cast(found.schema))
    found = duckdb.sql(f"SELECT * FROM read_parquet('{target}')").to_arrow_table()
    for name in ("id", "run", "few", "wide", "real", "flag", "same"):
        assert found.column(name).to_pylist() == expected.column(name).to_pylist()
    (least,) = duckdb.sql(f"SELECT min(wide), max(wide), count(few) FROM read_parquet('{target}')").fetchall()
    wide = expected.column("wide").to_pylist()
    assert least == (min(wide), max(wide), len(expected) - expected.column("few").null_count)


def test_row_groups_without_rows_are_left_out_and_whole_ones_are_copied(tmp_path: Path) -> None:
    table = pa.table({"id": [str(number) for number in range(30)], "x": [[number] for number in range(30)]})
    pq.write_table(table, tmp_path / "source", row_group_size=10)
    keep = np.array([*[True] * 10, *[False] * 10, *[True, False] * 5], np.bool_)
    assert thin(tmp_path / "source", tmp_path / "target", keep) == 15
    with pq.ParquetFile(tmp_path / "target") as part:
        assert [part.metadata.row_group(n).num_rows for n in range(part.metadata.num_row_groups)] == [10, 5]
    assert rows_of(tmp_path / "target") == table.filter(pa.array(keep)).to_pylist()


def test_a_file_says_that_it_may_remember_values_of_rows_that_are_gone(tmp_path: Path) -> None:
    """Its dictionary does: erasing is to read and write it. Once, however often rows are taken out."""
    pq.write_table(pa.table({"id": ["a", "b", "c", "a"], "name": ["x", "secret", "x", "x"]}), tmp_path / "0")
    for number, keep in enumerate([[True, False, True, True], [True, True, False]]):
        thin(tmp_path / str(number), tmp_path / str(number + 1), np.array(keep))
        with (
            pq.ParquetFile(tmp_path / str(number)) as before,
            pq.ParquetFile(tmp_path / str(number + 1)) as after,
        ):
            assert (is_thinned(before), is_thinned(after)) == (number > 0, True)
            assert len(after.metadata.metadata) == len(before.metadata.metadata) + (number == 0)
    assert b"secret" in (tmp_path / "2").read_bytes()
    assert pq.read_table(tmp_path / "2").column("name").to_pylist() == ["x", "x"]


@pytest.mark.parametrize(
    "options",
    [{"data_page_version": "2.0"}, {"compression": "gzip"}, {"column_encoding": {"id": "DELTA_BYTE_ARRAY"}}],
    ids=["pages of the second version", "another codec", "another encoding"],
)
def test_files_that_are_written_otherwise_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    table = pa.table({"id": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "source", use_dictionary=False, **options)
    with pytest.raises(UnfitForThinning):
        thin(tmp_path / "source", tmp_path / "target", np.array([True, False, True]))
    assert not (tmp_path / "target").exists()


def test_damaged_files_are_said_to_be_damaged(tmp_path: Path, large: pa.Table) -> None:
    """Any byte may be another: what comes is a LakeError, or a file; never the end of the process."""
    source, target = tmp_path / "source", tmp_path / "target"
    pq.write_table(large.slice(0, 600), source, compression="none", data_page_size=2000)
    data = source.read_bytes()
    keep = np.arange(600) % 3 > 0
    chance = random.Random(5)
    refused = 0
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 1, 4])):
            broken[chance.randrange(len(data))] = chance.randrange(256)
        source.write_bytes(broken)
        try:
            thin(source, target, keep)
        except (LakeError, UnfitForThinning):
            refused += 1
            assert not target.exists()
        target.unlink(missing_ok=True)
    assert refused > 10
    for size in range(0, len(data), 5003):
        source.write_bytes(data[:size])
        with pytest.raises(LakeError):
            thin(source, target, keep)


def test_a_mask_of_another_length_is_no_mask(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a", "b", "c"]}), tmp_path / "source")
    for keep in ([True, False], [True, False, True, True]):
        with pytest.raises(LakeError):
            thin(tmp_path / "source", tmp_path / "target", np.array(keep))
        assert not (tmp_path / "target").exists()
