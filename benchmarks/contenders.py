"""The ways from NDJSON to Parquet that are compared. Each runs in a process of its own: see `process`.

    python -m benchmarks.contenders NAME ORDER.json

reads the order, pins itself, converts, and prints one line of JSON with what only it can know.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
"""Read at a time for the Converter: about what a download hands over."""
_BATCH_LINES = 10_000
_JSON_BLOCK = 8 << 20


@dataclass(frozen=True)
class Order:
    """What one run has to do. `out` is an empty folder, `observed` the file that `process` made."""

    resource_type: str
    source: Path
    out: Path
    observed: Path
    threads: int
    cores: tuple[int, ...]

    def write(self, path: Path) -> None:
        """As JSON, for `read_order`."""
        path.write_text(
            json.dumps(
                {
                    **asdict(self),
                    "source": str(self.source),
                    "out": str(self.out),
                    "observed": str(self.observed),
                }
            )
        )


def read_order(path: Path) -> Order:
    """The way back from `Order.write`."""
    found = json.loads(path.read_text())
    return Order(
        found["resource_type"],
        Path(found["source"]),
        Path(found["out"]),
        Path(found["observed"]),
        found["threads"],
        tuple(found["cores"]),
    )


def ours(order: Order) -> int:
    """The pipeline's Converter: exact, every bad line by itself."""
    from pipeline.tables.convert import Converter

    refused: list[int] = []
    with Converter(
        order.resource_type,
        None,
        "benchmark",
        order.out,
        refuse=lambda bad, _line: refused.append(bad.line),
        lanes=order.threads,
    ) as converter:
        converter.add(_blocks(order.source), order.source.name)
        converter.finish()
    return len(refused)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def duckdb_lossy(order: Order) -> int:
    """What most people type: `COPY (SELECT * FROM read_json(file)) TO ...`, types detected."""
    return _duckdb(order, "")


def duckdb_explicit(order: Order) -> int:
    """The same with the types of all columns given."""
    columns = json.loads(order.observed.read_text())["duckdb"]
    texts = (f"{_quoted(name)}: {_quoted(kind)}" for name, kind in columns.items())
    return _duckdb(order, f", columns={{{', '.join(texts)}}}")


def _duckdb(order: Order, options: str) -> int:
    import duckdb

    target = order.out / "out.parquet"
    with duckdb.connect(config={"threads": order.threads}) as database:
        database.execute("SET enable_progress_bar=false")
        database.execute(
            f"COPY (SELECT * FROM read_json({_quoted(str(order.source))}{options})) "
            f"TO {_quoted(str(target))} (FORMAT parquet, COMPRESSION zstd)"
        )
    return 0


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def pyarrow_json(order: Order) -> int:
    """`pyarrow.json.open_json` with the schema given, batch by batch into a ParquetWriter."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq

    pa.set_cpu_count(order.threads)
    schema = _arrow_schema(order)
    with (
        pyarrow.json.open_json(
            order.source,
            read_options=pyarrow.json.ReadOptions(use_threads=order.threads > 1, block_size=_JSON_BLOCK),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
        ) as reader,
        pq.ParquetWriter(order.out / "out.parquet", schema, compression="zstd") as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)
    return 0


def orjson_pylist(order: Order) -> int:
    """`orjson.loads` of each line, `Table.from_pylist` in batches with the schema given, a ParquetWriter."""
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(order.threads)
    schema = _arrow_schema(order)
    with (
        order.source.open("rb") as file,
        pq.ParquetWriter(order.out / "out.parquet", schema, compression="zstd") as writer,
    ):
        batch: list[Any] = []
        for line in file:
            batch.append(orjson.loads(line))
            if len(batch) == _BATCH_LINES:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    return 0


def _arrow_schema(order: Order) -> Any:
    import base64

    import pyarrow as pa

    text = json.loads(order.observed.read_text())["arrow"]
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


CONTENDERS: dict[str, Callable[[Order], int]] = {
    "ours": ours,
    "duckdb lossy": duckdb_lossy,
    "duckdb explicit": duckdb_explicit,
    "pyarrow.json": pyarrow_json,
    "orjson": orjson_pylist,
}
"""Each converts `source` into Parquet files in `out` and returns the lines that it refused."""


def main() -> int:
    """Run one contender. Prints no text of an error: it may hold a patient's data."""
    contender, order = CONTENDERS[sys.argv[1]], read_order(Path(sys.argv[2]))
    if hasattr(os, "sched_setaffinity"):
        # Before any import that starts threads.
        os.sched_setaffinity(0, order.cores)
    began = time.perf_counter()
    try:
        refused = contender(order)
    except Exception as error:  # noqa: BLE001 — whatever a contender fails with is its result
        print(json.dumps({"failed": type(error).__name__}))
        return 1
    wall = time.perf_counter() - began
    print(json.dumps({"refused": refused, "wall": wall, "peak": _peak_bytes()}))
    return 0


def _peak_bytes() -> int:
    """Of this program; `ru_maxrss` also remembers the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                own = int(line.split()[1]) * 1024
                return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        * unit
    )


if __name__ == "__main__":
    sys.exit(main())
