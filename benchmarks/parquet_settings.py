"""What Parquet settings cost on our own tables: `python -m benchmarks.parquet_settings [--data DIR]`.

Converts NDJSON once, takes the parts back as Arrow, and for each setting prints CPU seconds of writing, size,
and CPU seconds of three DuckDB queries on one thread. Then: what columns that are null everywhere cost, in
nanoseconds a row and leaf, as they are in that table and in plain shapes, with the options that might help.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import Order, ours
from benchmarks.corpus import cores, gather

if TYPE_CHECKING:
    import pyarrow as pa

ZSTD_1: Mapping[str, Any] = {"compression": "zstd", "compression_level": 1}
ROWS = 128 * 1024
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "zstd 1, 128k rows": {},
    "zstd 3": {"compression_level": 3},
    "zstd 5": {"compression_level": 5},
    "snappy": {"compression": "snappy", "compression_level": None},
    "lz4": {"compression": "lz4", "compression_level": None},
    "not compressed": {"compression": "none", "compression_level": None},
    "no dictionary": {"use_dictionary": False},
    "dictionary but for ids": {"use_dictionary": ...},
    "row groups of 32k": {"row_group_size": 32 * 1024},
    "row groups of 512k": {"row_group_size": 512 * 1024},
    "pages of 128 kB": {"data_page_size": 128 * 1024},
    "pages of 4 MB": {"data_page_size": 4 << 20},
    "no limit of rows in a page": {"max_rows_per_page": 1 << 20},
    "batches of 128k values": {"write_batch_size": ROWS},
    "both of these": {"max_rows_per_page": 1 << 20, "write_batch_size": ROWS},
    "no statistics": {"write_statistics": False},
    "page index": {"write_page_index": True},
    "data pages 2.0": {"data_page_version": "2.0"},
    "no Arrow schema": {"store_schema": False},
}
"""Each beside the first, with which all the rest is as in the first."""
UNIQUE = ("id", "fullUrl", "reference", "_source_line")
"""Names of leaves whose values hardly repeat."""
_GROUPS = ("code.coding[1].code", "type.coding[1].code", "class.code", "gender", "status", "_source_file")


def main() -> int:
    options = _options()
    import pyarrow as pa

    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(prefix="parquet-") as name:
        folder = Path(name)
        for resource_type in options.types:
            data = options.data.resolve() if options.data else None
            table = _table(data, resource_type, options.min_mb, folder)
            _show_settings(resource_type, table, folder, options.repeats)
            _show_nulls(table, options.repeats)
        _show_shapes(options.repeats)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parquet_settings", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--data", type=Path, help="a folder of <Type>*.ndjson or .ndjson.gz")
    parser.add_argument("--types", nargs="+", default=["Observation", "Claim"], metavar="TYPE")
    parser.add_argument("--min-mb", type=float, default=100, help="NDJSON a type (default: 100)")
    parser.add_argument("--repeats", type=int, default=3, help="of each, the best counts (default: 3)")
    return parser.parse_args()


def _table(data: Path | None, resource_type: str, megabytes: float, folder: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (source,) = gather(data, [resource_type], round(megabytes * 1e6), folder)
    out = folder / resource_type
    out.mkdir()
    ours(Order(resource_type, source.path, out, source.path, 1, tuple(cores())))
    tables = [pq.read_table(path, use_threads=False) for path in sorted(out.glob("*.parquet"))]
    return pa.concat_tables(tables).combine_chunks()


# --- settings -----------------------------------------------------------------------------------------


def _show_settings(resource_type: str, table: pa.Table, folder: Path, repeats: int) -> None:
    print(f"\n{resource_type}: {table.num_rows:,} rows, {len(leaves(table.schema)):,} leaves")
    print(f"{'':28} {'write s':>8} {'MB':>8} {'ids s':>7} {'group s':>8} {'one row s':>10}")
    target = folder / "setting.parquet"
    for name, setting in SETTINGS.items():
        chosen = dict(setting)
        if chosen.get("use_dictionary") is ...:
            chosen["use_dictionary"] = [path for path in leaves(table.schema) if _leaf(path) not in UNIQUE]
        cost = best_cpu(lambda chosen=chosen: write(table, target, chosen), repeats)  # type: ignore[misc]
        reads = [best_cpu(query, repeats) for query in _queries(target, table)]
        print(
            f"{name:28} {cost:8.3f} {target.stat().st_size / 1e6:8.2f} {reads[0]:7.3f} {reads[1]:8.3f}"
            f" {reads[2]:10.3f}",
            flush=True,
        )


def write(table: pa.Table, target: Any, setting: Mapping[str, Any]) -> None:
    """Write a table with ZSTD_1 and `setting`, ParquetWriter's names and `row_group_size`."""
    import pyarrow.parquet as pq

    chosen = {**ZSTD_1, **setting}
    rows = chosen.pop("row_group_size", ROWS)
    with pq.ParquetWriter(target, table.schema, **chosen) as writer:
        writer.write_table(table, row_group_size=rows)


def _queries(path: Path, table: pa.Table) -> Iterator[Callable[[], object]]:
    import duckdb

    source = f"read_parquet('{path}')"
    known = table.slice(table.num_rows // 2, 1).column("id")[0].as_py()

    def ask(text: str, *values: str) -> object:
        with duckdb.connect(config={"threads": 1}) as database:
            return database.execute(text, values).fetchall()

    group = "_source_file"
    for candidate in _GROUPS:
        with contextlib.suppress(duckdb.BinderException):
            ask(f"SELECT {candidate} FROM {source} LIMIT 0")
            group = candidate
            break
    yield lambda: ask(f"SELECT count(DISTINCT id) FROM {source}")
    yield lambda: ask(f"SELECT {group}, count(*) FROM {source} GROUP BY 1")
    yield lambda: ask(f"SELECT * FROM {source} WHERE id = ?", known)


def best_cpu(act: Callable[[], object], repeats: int) -> float:
    """The least CPU seconds of this process that one call took."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        found.append(time.process_time() - began)
    return min(found)


def leaves(schema: pa.Schema) -> list[str]:
    """The paths of all leaves as Parquet writes them: `name.list.element.family`."""
    return [path for field in schema for path in _leaves(field.type, field.name)]


def _leaves(kind: pa.DataType, path: str) -> list[str]:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return [leaf for inner in kind.fields for leaf in _leaves(inner.type, f"{path}.{inner.name}")]
    if pa.types.is_list(kind):
        return _leaves(kind.value_type, f"{path}.list.element")
    return [path]


def _leaf(path: str) -> str:
    return path.removesuffix(".list.element").rpartition(".")[2]


# --- columns that are null everywhere -----------------------------------------------------------------


def _show_nulls(table: pa.Table, repeats: int) -> None:
    import pyarrow as pa

    table = table.slice(0, ROWS).combine_chunks()
    narrow = without_nulls(table)
    count = len(leaves(table.schema)) - len(leaves(narrow.schema))
    both = []
    for one in (table, narrow):
        both.append(best_cpu(lambda one=one: write(one, pa.BufferOutputStream(), {}), repeats))  # type: ignore[misc]
    each = (both[0] - both[1]) / max(1, count) / table.num_rows * 1e9
    print(
        f"{count} leaves are null everywhere: writing {table.num_rows:,} rows costs {both[0]:.3f} s with them"
        f" and {both[1]:.3f} s without, {each:.1f} ns a row and leaf"
    )


def without_nulls(table: pa.Table) -> pa.Table:
    """The same rows without the leaves, at every depth, that hold nothing."""
    import pyarrow as pa

    kept = {}
    for name in table.column_names:
        column = table.column(name)
        array = _pruned(column.chunk(0)) if column.num_chunks == 1 else _pruned(column.combine_chunks())
        if array is not None:
            kept[name] = array
    return pa.table(kept)


def _pruned(array: pa.Array) -> pa.Array | None:
    import pyarrow as pa

    if array.null_count == len(array):
        return None
    if pa.types.is_struct(array.type):
        # Flattened: a child may hold a value where its parent is null.
        values_of = zip(array.type.fields, array.flatten(), strict=True)
        inner = ((field.name, _pruned(values)) for field, values in values_of)
        kept = [(name, values) for name, values in inner if values is not None]
        if not kept:
            return None
        names, arrays = [name for name, _ in kept], [values for _, values in kept]
        return pa.StructArray.from_arrays(arrays, names=names, mask=array.is_null())
    if pa.types.is_list(array.type):
        values = _pruned(array.values)
        if values is None:
            return None
        kind = pa.list_(pa.field("element", values.type))
        buffers = array.buffers()[:2]
        return pa.Array.from_buffers(
            kind, len(array), buffers, array.null_count, array.offset, children=[values]
        )
    return array


def _show_shapes(repeats: int) -> None:
    import pyarrow as pa

    shapes = dict(null_shapes(ROWS))
    print(f"\nNull leaves, ns a row and leaf, {ROWS:,} rows")
    print(f"{'':28} " + " ".join(f"{name:>13}" for name in shapes))
    for name, setting in SETTINGS.items():
        if setting.get("use_dictionary") is ...:
            continue
        cells = []
        for table in shapes.values():
            act = lambda table=table: write(table, pa.BufferOutputStream(), setting)  # noqa: E731,B023
            cells.append(best_cpu(act, repeats) / len(leaves(table.schema)) / ROWS * 1e9)
        print(f"{name:28} " + " ".join(f"{cell:13.1f}" for cell in cells), flush=True)


def null_shapes(rows: int) -> Iterator[tuple[str, pa.Table]]:
    """Tables of twenty leaves that hold nothing: flat, and below structures and lists, null or present."""
    import pyarrow as pa

    ten = pa.struct([(f"x{i}", pa.string()) for i in range(10)])
    deep = pa.struct([("y", pa.struct([("z", ten)]))])
    listed = pa.list_(pa.field("element", ten))
    twice = pa.list_(pa.field("element", pa.struct([("y", listed)])))

    def tens(array: pa.Array) -> pa.Table:
        return pa.table({"a": array, "b": array})

    def present(count: int) -> pa.Array:
        return pa.StructArray.from_arrays([pa.nulls(count, pa.string())] * 10, fields=list(ten.fields))

    def each(count: int) -> pa.Array:
        offsets = pa.array(range(0, count * rows + 1, count), pa.int32())
        return pa.ListArray.from_arrays(offsets, present(count * rows))

    yield "flat", pa.table({f"x{i}": pa.nulls(rows, pa.string()) for i in range(20)})
    yield "null struct", tens(pa.nulls(rows, ten))
    yield "three deep", tens(pa.nulls(rows, deep))
    yield "in a struct", tens(present(rows))
    yield "null list", tens(pa.nulls(rows, listed))
    yield "list in list", tens(pa.nulls(rows, twice))
    yield "in a list of 1", tens(each(1))
    yield "in a list of 5", tens(each(5))


if __name__ == "__main__":
    sys.exit(main())
