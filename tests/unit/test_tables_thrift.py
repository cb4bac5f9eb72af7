"""Thrift's compact protocol: real footers come back byte for byte, damaged ones are named."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LakeError
from pipeline.tables import thrift
from pipeline.tables.thrift import decode, encode, items, list_of


def footer_of(file: bytes) -> bytes:
    size = int.from_bytes(file[-8:-4], "little")
    assert file[-4:] == b"PAR1"
    return file[-8 - size : -8]


def deep_check(data: bytes, kind: int = thrift.STRUCT) -> int:
    """Takes a structure or a list apart to its last value; each comes back as it was. Returns the values."""
    if kind == thrift.STRUCT:
        fields = decode(data)
        assert encode(fields) == data
        return sum(deep_check(*swapped(value)) for value in fields.values())
    if kind == thrift.LIST:
        inner, found = data[0] & 15, items(data)
        assert list_of(inner, found) == data
        return sum(deep_check(value, inner) for value in found)
    return 1


def swapped(field: tuple[int, Any]) -> tuple[Any, int]:
    kind, value = field
    return value, kind


# --- footers that others wrote ------------------------------------------------------------------------

SIMPLE = (
    *(pa.string(), pa.bool_(), pa.int8(), pa.uint32(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
    *(
        pa.binary(),
        pa.binary(5),
        pa.decimal128(20, 3),
        pa.date32(),
        pa.time64("ns"),
        pa.timestamp("us", "UTC"),
    ),
    *(pa.timestamp("ms"), pa.large_string(), pa.dictionary(pa.int8(), pa.string())),
)
KINDS = st.recursive(
    st.sampled_from(SIMPLE),
    lambda kinds: st.one_of(
        kinds.map(pa.list_),
        st.lists(kinds, min_size=1, max_size=4).map(
            lambda found: pa.struct([pa.field(f"m{i}", kind) for i, kind in enumerate(found)])
        ),
        kinds.map(lambda kind: pa.map_(pa.string(), kind)),
    ),
    max_leaves=8,
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
        "use_dictionary": st.booleans(),
        "write_statistics": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "version": st.sampled_from(["1.0", "2.4", "2.6"]),
        "write_page_index": st.booleans(),
        "write_page_checksum": st.booleans(),
        "store_schema": st.booleans(),
        "store_decimal_as_integer": st.booleans(),
    },
)


@given(
    kinds=st.lists(KINDS, min_size=1, max_size=20),
    rows=st.sampled_from([0, 1, 40]),
    group=st.sampled_from([1, 7, 1000]),
    options=OPTIONS,
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=300), max_size=3),
)
@settings(max_examples=60)
def test_footers_that_pyarrow_wrote_come_back_byte_for_byte(
    kinds: list[pa.DataType], rows: int, group: int, options: dict[str, Any], metadata: dict[str, str]
) -> None:
    schema = pa.schema([pa.field(f"c{i}", kind) for i, kind in enumerate(kinds)], metadata or None)
    table = pa.Table.from_arrays([pa.nulls(rows, kind) for kind in kinds], schema=schema)
    sink = BytesIO()
    pq.write_table(table, sink, row_group_size=group, **options)
    footer = footer_of(sink.getvalue())
    deep_check(footer)
    check_against_pyarrow(footer, pq.ParquetFile(sink).metadata)


def check_against_pyarrow(footer: bytes, metadata: pq.FileMetaData) -> None:
    """The values are those that pyarrow reads (parquet.thrift: FileMetaData, RowGroup, ColumnMetaData)."""
    fields = decode(footer)
    assert fields[3][1] == metadata.num_rows
    assert fields[6][1].decode() == metadata.created_by
    pairs = [decode(pair) for pair in items(fields[5][1])] if 5 in fields else []
    assert {pair[1][1]: pair[2][1] for pair in pairs} == (metadata.metadata or {})
    groups = items(fields[4][1])
    assert len(groups) == metadata.num_row_groups
    for number, encoded in enumerate(groups):
        group, theirs = decode(encoded), metadata.row_group(number)
        assert (group[2][1], group[3][1]) == (theirs.total_byte_size, theirs.num_rows)
        for i, column in enumerate(items(group[1][1])):
            meta, their = decode(decode(column)[3][1]), theirs.column(i)
            assert b".".join(items(meta[3][1])).decode() == their.path_in_schema
            sizes = (their.num_values, their.total_uncompressed_size, their.total_compressed_size)
            assert tuple(meta[field][1] for field in (5, 6, 7)) == sizes
            assert meta[9][1] == their.data_page_offset
            assert meta.get(11, (0, None))[1] == their.dictionary_page_offset
            assert (12 in meta) == their.is_stats_set


COLUMNS = (
    *(
        "i",
        "(i % 200)::utinyint",
        "i::hugeint",
        "i::decimal(9,2)",
        "i::double",
        "i % 2 = 0",
        "i::varchar",
        "null::int",
    ),
    *(
        "'x'::blob",
        "uuid()",
        "date '2020-01-01' + i::int",
        "time '01:02:03'",
        "now()",
        "interval 1 day",
        "[i, null]",
    ),
    *("{'a': i, 'b': [{'c': 'x'}]}", "map {'k': i}", "[]::int[][]", "'a'::enum('a', 'b')", "i::json"),
)


@pytest.mark.parametrize("rows", [0, 1, 5000])
@pytest.mark.parametrize(
    "options", ["", ", compression zstd", ", parquet_version v2", ", kv_metadata {k: 'v'}"]
)
def test_footers_that_duckdb_wrote_come_back_byte_for_byte(tmp_path: Path, rows: int, options: str) -> None:
    names = ", ".join(f"{column} as c{i}" for i, column in enumerate(COLUMNS))
    path = tmp_path / "t.parquet"
    form = f"format parquet, row_group_size 2048{options}"
    duckdb.sql(f"copy (select {names} from range({rows}) r(i)) to '{path}' ({form})")
    footer = footer_of(path.read_bytes())
    assert deep_check(footer) > 100
    check_against_pyarrow(footer, pq.ParquetFile(path).metadata)


def test_footers_that_polars_wrote_come_back_byte_for_byte() -> None:
    """Written by Rust: another encoder."""
    sink = BytesIO()
    values = {"a": [1, None], "b": ["x", "y"], "c": [[{"d": 1.5}], None], "e": [True, False]}
    pl.DataFrame(values).write_parquet(sink, row_group_size=1)
    footer = footer_of(sink.getvalue())
    assert deep_check(footer) > 50
    check_against_pyarrow(footer, pq.ParquetFile(sink).metadata)


# --- the protocol itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({}, "00"),
        ({1: (thrift.I32, 0)}, "15 00 00"),
        ({1: (thrift.I32, -1)}, "15 01 00"),
        ({1: (thrift.I64, 1), 2: (thrift.I16, -2)}, "16 02 14 03 00"),
        ({1: (thrift.I64, -25200)}, "16 df 89 03 00"),  # 50399, the specification's example of a varint
        ({1: (thrift.TRUE, True), 2: (thrift.TRUE, False)}, "11 12 00"),
        ({16: (thrift.BINARY, b"ab")}, "08 20 02 61 62 00"),
        ({1: (thrift.BYTE, 255), 16: (thrift.DOUBLE, 1.0)}, "13 ff f7 00 00 00 00 00 00 f0 3f 00"),
        (
            {3: (thrift.LIST, b"\x25\x02\x04"), 4: (thrift.STRUCT, b"\x15\x02\x00")},
            "39 25 02 04 1c 15 02 00 00",
        ),
    ],
)
def test_structures_are_written_as_the_specification_says(fields: thrift.Fields, data: str) -> None:
    """thrift-compact-protocol.md, worked out by hand."""
    assert encode(fields) == bytes.fromhex(data)
    assert decode(bytes.fromhex(data)) == fields


WHOLE = {thrift.I16: 16, thrift.I32: 32, thrift.I64: 64}
VALUES = st.one_of(
    *(
        st.tuples(st.just(kind), st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
        for kind, bits in WHOLE.items()
    ),
    st.tuples(st.just(thrift.TRUE), st.booleans()),
    st.tuples(st.just(thrift.BYTE), st.integers(0, 255)),
    st.tuples(st.just(thrift.DOUBLE), st.floats(allow_nan=False)),
    st.tuples(st.just(thrift.BINARY), st.binary(max_size=300)),
)
STRUCTS = st.recursive(
    st.dictionaries(st.integers(1, 2**15 - 1), VALUES, max_size=6),
    lambda inner: st.dictionaries(
        st.integers(1, 40),
        st.one_of(
            VALUES,
            inner.map(lambda fields: (thrift.STRUCT, encode(fields))),
            st.lists(inner.map(encode), max_size=20).map(
                lambda found: (thrift.LIST, list_of(thrift.STRUCT, found))
            ),
            st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20).map(
                lambda found: (thrift.LIST, list_of(thrift.I32, found))
            ),
        ),
        max_size=4,
    ),
    max_leaves=6,
)


@given(STRUCTS)
def test_any_structure_comes_back(fields: thrift.Fields) -> None:
    data = encode(fields)
    assert decode(data) == fields
    # What stands behind a structure is none of it.
    assert decode(data + b"\x15\x02") == fields
    deep_check(data)


# --- damage -------------------------------------------------------------------------------------------


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fails instead of hanging."""

    def ring(signal_number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_all(data: bytes, kind: int = thrift.STRUCT) -> None:
    if kind == thrift.STRUCT:
        for inner, value in decode(data).values():
            read_all(value, inner)
    elif kind == thrift.LIST:
        for value in items(data):
            read_all(value, data[0] & 15)


@cache
def real_footer() -> bytes:
    inner = pa.struct([("code", pa.string()), ("n", pa.float64())])
    rows = [{"id": "a", "x": [{"code": "c", "n": 1.5}], "t": True}, {"id": None, "x": [], "t": None}]
    schema = pa.schema([("id", pa.string()), ("x", pa.list_(inner)), ("t", pa.bool_())], {"k": "v"})
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, row_group_size=1, write_page_index=True)
    return footer_of(sink.getvalue())


def test_a_footer_cut_anywhere_is_damaged() -> None:
    """A structure ends with its stop byte: no beginning of one is one."""
    footer = real_footer()
    for size in range(len(footer)):
        with pytest.raises(LakeError, match="footer is damaged"):
            decode(footer[:size])
    for kind, value in decode(footer).values():
        for size in range(len(value) if kind == thrift.LIST else 0):
            with pytest.raises(LakeError, match="footer is damaged"):
                items(value[:size])


@given(st.data())
@settings(max_examples=400)
def test_flipped_bytes_are_read_or_named_and_nothing_else(data: st.DataObject) -> None:
    footer = bytearray(real_footer())
    places = st.integers(0, len(footer) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        footer[place] = value
    size = data.draw(st.one_of(st.just(len(footer)), places))
    read_or_named(bytes(footer[:size]))


@given(st.binary(max_size=200))
@settings(max_examples=400)
def test_any_bytes_are_read_or_named_and_nothing_else(data: bytes) -> None:
    read_or_named(data)


def read_or_named(data: bytes) -> None:
    with at_most(2):
        try:
            read_all(data)
        except LakeError as named:
            assert "footer is damaged" in str(named)


def varint(value: int) -> bytes:
    out = bytearray()
    thrift.write_varint(out, value)
    return bytes(out)


@pytest.mark.parametrize("size", [2**31 - 1, 2**62, 2**80])
@pytest.mark.parametrize(
    "around", [b"\x19", b"\x1c\x19", b"\x19\x19"], ids=["list", "in a struct", "in a list"]
)
def test_a_length_that_no_file_has_costs_neither_time_nor_memory(around: bytes, size: int) -> None:
    for kind in range(16):
        check_damage(around + bytes([0xF0 | kind]) + varint(size) + b"\x00" * 9)


@pytest.mark.parametrize(
    "data",
    [
        b"\x18" + varint(2**62) + b"abc",
        b"\x1c" * 100_000,
        b"\x19" * 100_000,
        b"\x16" + b"\xff" * 2_000_000,
        b"\x18" + b"\x80" * 2_000_000,
        b"\x06" + b"\x80" * 2_000_000,
    ],
    ids=["text", "structs in structs", "lists in lists", "number", "length", "field number"],
)
def test_endless_structures_and_numbers_cost_neither_time_nor_memory(data: bytes) -> None:
    check_damage(data)


def check_damage(data: bytes) -> None:
    tracemalloc.start()
    try:
        with at_most(2), pytest.raises(LakeError, match="footer is damaged"):
            read_all(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
