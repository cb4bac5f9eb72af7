"""What `current_tables` measures, each job in a process of its own: `python -m benchmarks.current_work JOB`.

Takes the job's arguments as JSON on standard input, pins itself to the last core, and prints its answer as
one line of JSON: CPU seconds, user and system, of the whole process up to then, its imports included; wall
seconds of the job; peak memory (Linux only) as the process's own high water, since `ru_maxrss` also remembers
the process that started it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.contenders import BLOCK_BYTES
from benchmarks.corpus import cores

ROOT = Path(__file__).parents[1]
FIRST, CHANGE = "20260101T020000Z", "20260102T020000Z"
"""The two exports."""
ANYWHERE, RECENT = "anywhere", "recent"
"""What a change updates: rows all over the table, or those that came last."""
Told = dict[str, Any]
_TYPE = "Observation"
_ZSTD = 1
_SCANS = 5


# --- the data ------------------------------------------------------------------------------------------


def changed(rows: int, share: float, kind: str) -> tuple[list[int], list[int]]:
    """The numbers of the rows that a change of `share` updates, and of as many that it adds."""
    amount = round(rows * share)
    updates = amount // 2
    if kind == RECENT:
        old = list(range(rows - updates, rows))
    else:
        old = sorted(random.Random(rows).sample(range(rows), updates))
    return old, list(range(rows, rows + amount - updates))


def identifier(number: int) -> str:
    """The id of row `number`: a random UUID, always the same."""
    digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest, version=4))


def lines(numbers: Iterable[int], *, night: int) -> Iterator[bytes]:
    """Those Observations as night 1 or 2 brings them: other content, a later `meta`."""
    from pipeline.sandbox.generator.datatypes import instant
    from pipeline.sandbox.generator.records import resources
    from pipeline.sandbox.generator.wire import line
    from pipeline.sandbox.generator.world import DAY, World, night_instant

    patients = 10_000_000
    made = resources(World(night, patients, 1), _TYPE, range(patients))
    for number, resource in zip(numbers, made, strict=False):
        resource["id"] = identifier(number)
        resource["meta"]["versionId"] = str(night * 10**9 + number)
        if night > 1:
            moment = night_instant(night) - 1 - number * 7919 % (DAY - 1000)
            resource["meta"]["lastUpdated"] = instant(moment, number & 3)
        yield line(resource)


def make_first(folder: str, rows: int, piece: int) -> Told:
    """The first export, `piece` rows a file."""
    made = lines(range(rows), night=1)
    for number in range(-(-rows // piece)):
        with (Path(folder) / f"{number:04d}.ndjson").open("wb") as file:
            file.writelines(islice(made, piece))
    return {}


def make_change(path: str, rows: int, share: float, kind: str) -> Told:
    """The next export, in one file: updates among new rows, as they come."""
    old, new = changed(rows, share, kind)
    numbers = old + new
    random.Random(rows).shuffle(numbers)
    with Path(path).open("wb") as file:
        file.writelines(lines(numbers, night=2))
    return {}


def sort_lines(paths: Sequence[str], to: str) -> Told:
    """All lines in the order of their ids."""
    together = [each for path in paths for each in Path(path).read_bytes().splitlines(keepends=True)]
    start = len(f'{{"resourceType":"{_TYPE}","id":"')
    together.sort(key=lambda each: each[start : start + 36])
    with Path(to).open("wb") as file:
        file.writelines(together)
    return {}


# --- what is measured ----------------------------------------------------------------------------------


def start() -> Told:
    """What a merge costs before it has anything to do: the interpreter and the imports."""
    import deltalake  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import pipeline.tables.current.merging  # noqa: F401

    return measured()


def convert(paths: Sequence[str], out: str, export_id: str, like: str | None = None) -> Told:
    """NDJSON to an export's Parquet parts; `like` is a part of the table so far."""
    from pipeline.tables.convert import Converter
    from pipeline.tables.parts import read_part_schema

    Path(out).mkdir(parents=True)
    known = read_part_schema(like) if like else None
    with Converter(_TYPE, known, export_id, Path(out)) as converter:
        for path in paths:
            converter.add(_blocks(path), Path(path).name)
        parts = converter.finish()
    told = measured()
    return {**told, "rows": converter.rows, "ndjson": sum(Path(path).stat().st_size for path in paths)} | {
        "bytes": sum(part.bytes for part in parts)
    }


def _blocks(path: str) -> Iterator[bytes]:
    with Path(path).open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def merge(
    lake: str,
    table: str,
    exports: Sequence[str],
    *,
    anew: bool = False,
    chunk_rows: int | None = None,
    thinned: bool = True,
) -> Told:
    """Exports (folders in the lake, the last one's named last) into a current table. `thinned`: chunks lose
    rows without being read and written by pyarrow."""
    from pipeline.lake.lake import open_lake
    from pipeline.sandbox.generator.world import night_instant
    from pipeline.tables.current import merging
    from pipeline.tables.current.merging import merge as merge_all
    from pipeline.tables.current.shares import Places, Share
    from pipeline.tables.parts import read_part_schema

    if not thinned:
        merging.thin = _unfit
    root = Path(lake)
    shares = [
        Share(night, 1, night_instant(number + 1) * 1000, tuple(_parts(root, folder)))
        for folder in exports
        for number, night in enumerate((FIRST, CHANGE))
        if folder.endswith(night)
    ]
    schema = read_part_schema(root / shares[-1].parts[-1])
    rows = {} if chunk_rows is None else {"chunk_rows": chunk_rows}
    places = Places(f"{table}/current", f"{table}/deleted")
    done = merge_all(open_lake(lake, root), places, schema, shares, anew=anew, **rows)
    told = measured()
    before, after = _chunks(root / places.current, done.version), _chunks(root / places.current)
    return {
        **told,
        "rows": done.rows,
        "added": done.added,
        "removed": done.removed,
        "out": done.chunks_out,
        "in": done.chunks_in,
        "chunks": len(before),
        "files": len(after),
        "bytes": sum(chunk.bytes for chunk in after.values()),
        "rewritten": sum(chunk.rows for name, chunk in before.items() if name not in after),
    }


def _unfit(*_: Any) -> int:
    from pipeline.tables.thinning import UnfitForThinning

    raise UnfitForThinning


def _parts(root: Path, folder: str) -> list[str]:
    return [f"{folder}/{path.name}" for path in sorted((root / folder).iterdir())]


def _chunks(folder: Path, before: int | None = None) -> dict[str, Any]:
    """By name; `before`: of the version before that one."""
    from deltalake import DeltaTable

    from pipeline.tables.current.chunks import ChunkTable

    table = DeltaTable(str(folder)) if before is None else DeltaTable(str(folder), version=before - 1)
    return {chunk.name: chunk for chunk in ChunkTable(table).chunks}


def delta_table(lake: str, export: str, uri: str) -> Told:
    """A Delta table of an export's rows, written by deltalake."""
    import deltalake

    deltalake.write_deltalake(uri, _rows(lake, export), writer_properties=_properties())
    return {}


def delta_merge(lake: str, export: str, uri: str) -> Told:
    """An export into that table by deltalake's own MERGE."""
    import deltalake

    table = deltalake.DeltaTable(uri)
    matched = table.merge(
        _rows(lake, export),
        "t.id = s.id",
        source_alias="s",
        target_alias="t",
        writer_properties=_properties(),
    )
    done = matched.when_matched_update_all().when_not_matched_insert_all().execute()
    told = measured()
    return {
        **told,
        "rows": sum(table.to_pyarrow_dataset().count_rows() for table in [deltalake.DeltaTable(uri)]),
        "added": done["num_target_rows_inserted"] + done["num_target_rows_updated"],
        "removed": done["num_target_rows_updated"],
        "out": done["num_target_files_removed"],
    }


def duckdb_rewrite(lake: str, table: str, export: str, out: str) -> Told:
    """All rows that stand, and those of an export, into one new Parquet file."""
    import duckdb

    folder = Path(lake) / table / "current"
    files = [str(folder / chunk.path) for chunk in _chunks(folder).values()]
    change = [f"{lake}/{path}" for path in _parts(Path(lake), export)]
    with duckdb.connect(config={"threads": 1, "memory_limit": "900MB", "temp_directory": out + ".tmp"}) as db:
        (rows,) = db.execute(
            "COPY (SELECT * FROM read_parquet($files)"
            " WHERE id NOT IN (SELECT id FROM read_parquet($change))"
            " UNION ALL BY NAME SELECT * FROM read_parquet($change))"
            f" TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)",
            {"files": files, "change": change},
        ).fetchone() or (0,)
    return {**measured(), "rows": rows}


def _properties() -> Any:
    from deltalake import WriterProperties

    return WriterProperties(compression="ZSTD", compression_level=_ZSTD)


def _rows(lake: str, export: str) -> Any:
    import pyarrow as pa

    from pipeline.tables.parts import batches, open_part, read_part_schema

    def each() -> Iterator[pa.RecordBatch]:
        for path in _parts(Path(lake), export):
            with open_part(f"{lake}/{path}") as part:
                yield from batches(part)

    schema = read_part_schema(f"{lake}/{_parts(Path(lake), export)[-1]}")
    return pa.RecordBatchReader.from_batches(schema, each())


def scan(lake: str, table: str) -> Told:
    """Two columns of all rows, by DuckDB from the live files; CPU seconds of the scan alone, the best one."""
    import duckdb

    folder = Path(lake) / table / "current"
    files = [str(folder / chunk.path) for chunk in _chunks(folder).values()]
    costs = []
    with duckdb.connect(config={"threads": 1}) as database:
        for _ in range(_SCANS):
            before = _cpu()
            database.execute(
                "SELECT max(subject.reference), sum(valueQuantity.__value_numeric), count(*)"
                " FROM read_parquet($files)",
                {"files": files},
            ).fetchall()
            costs.append(_cpu() - before)
    return {**measured(), "cpu": min(costs)}


# --- a process of its own ------------------------------------------------------------------------------


def _cpu() -> float:
    return time.process_time()


def measured() -> Told:
    """Of this process, until now: CPU seconds and peak bytes."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return {"cpu": _cpu(), "peak": int(found[1]) * 1024 if found else 0}


JOBS: dict[str, Callable[..., Told]] = {
    job.__name__: job
    for job in (
        *(make_first, make_change, sort_lines),
        *(start, convert, merge, delta_table, delta_merge, duckdb_rewrite, scan),
    )
}


def apart(job: Callable[..., Told], **arguments: Any) -> Told:
    """One job in a fresh process. Raises `CalledProcessError`; the cause is on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.current_work", job.__name__],
        input=json.dumps(arguments),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        check=True,
    )
    told: Told = json.loads(done.stdout)
    return told


class _Absent(MetaPathFinder):
    """pandas, which only the tests need: pyarrow imports it where it is installed, for half a second."""

    def find_spec(self, name: str, _path: Any, _target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name=name)


def main() -> int:
    """Run one job."""
    sys.meta_path.insert(0, _Absent())
    arguments = json.load(sys.stdin)
    if hasattr(os, "sched_setaffinity"):
        # Before any import that starts threads.
        os.sched_setaffinity(0, cores()[-1:])
    began = time.perf_counter()
    told = JOBS[sys.argv[1]](**arguments)
    print(json.dumps({**told, "wall": time.perf_counter() - began}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
