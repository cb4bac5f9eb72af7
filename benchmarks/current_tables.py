"""What a night costs a current table: `python -m benchmarks.current_tables [--rows 2000000] [--json FILE]`.

Observations of the sandbox, each with a random UUID, are converted to an export, merged into a current table,
and then a change is merged: half of its rows are updates, half are new. The updates are of rows `anywhere`,
so that every file is hit, or `recent`, of the rows that came last. Table and change have three sizes each.
At the smallest table our merge stands beside deltalake's MERGE, DuckDB, and chunks that are read and written;
everywhere beside making the table again from the exports, and beside converting the whole NDJSON again. Then
chunks of three sizes, and rows sorted by id.

Each run is a process of its own on one core (`current_work`): CPU seconds, user and system, its start
included, the best of the runs where several are cheap; memory is the worst run's. Ends with 1 when the table
has 2 million rows and a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import current_work as work
from benchmarks.current_figures import (
    HEAD,
    NIGHT,
    Cost,
    Layout,
    Whole,
    model_of,
    show_contenders,
    show_cost,
    show_layouts,
    show_model,
    show_verdicts,
    show_wholes,
    verdicts,
)
from benchmarks.current_work import ANYWHERE, CHANGE, FIRST, RECENT, Told, apart

SHARES = (0.001, 0.01, 0.1)
CHUNK_ROWS = (64 * 1024, 256 * 1024, 1024 * 1024)
PARTS = (1, 3, 10)
"""Tenths of the rows that the three tables have; the NDJSON is in ten files."""
_ROW_BYTES = 2_000
"""Of disk a row, at most: NDJSON and all tables that are there at once."""
_LEAST = 20_000
"""Rows: of the smallest table a change of 0.1 % is two rows then."""
_RUNS, _CHEAP = 3, 6.0
"""So many runs, while they cost fewer CPU seconds in all."""


# --- running -------------------------------------------------------------------------------------------


def best(run: Callable[[], Told], most: int = _RUNS) -> Told:
    """The cheapest of up to `most` runs, with the highest peak."""
    runs = [run()]
    while len(runs) < most and sum(told["cpu"] for told in runs) < _CHEAP:
        runs.append(run())
    least = min(runs, key=lambda told: float(told["cpu"]))
    return {**least, "peak": max(told["peak"] for told in runs)}


class Bench:
    """Exports and tables in one temporary lake."""

    def __init__(self, folder: Path, runs: int, kept: Path | None) -> None:
        self.folder = folder
        self.kept = kept
        self.runs = runs
        self.lake = folder / "lake"
        self.lake.mkdir()

    def ndjson(self, tenth: int) -> list[str]:
        """The first export of ten times that many rows, in ten files."""
        folder = self.kept or self.folder / "ndjson"
        folder.mkdir(exist_ok=True)
        if not any(folder.iterdir()):
            apart(work.make_first, folder=str(folder), rows=10 * tenth, piece=tenth)
        return [str(path) for path in sorted(folder.iterdir())]

    def convert(self, paths: Sequence[str], out: str, export_id: str, like: str | None = None) -> Told:
        """Into the lake's folder `out`; `like` is an export's folder."""
        part = next(str(path) for path in (self.lake / like).iterdir()) if like else None
        target = self.lake / out / export_id

        def run() -> Told:
            shutil.rmtree(target, ignore_errors=True)
            return apart(work.convert, paths=paths, out=str(target), export_id=export_id, like=part)

        return best(run, self.runs)

    @contextmanager
    def change(self, rows: int, share: float, kind: str, like: str) -> Iterator[tuple[str, Told]]:
        """The export of a change, converted, and what that cost."""
        name = f"change-{rows}-{share}-{kind}"
        path = self.folder / f"{name}.ndjson"
        apart(work.make_change, path=str(path), rows=rows, share=share, kind=kind)
        told = self.convert([str(path)], name, CHANGE, like)
        path.unlink()
        yield f"{name}/{CHANGE}", told
        shutil.rmtree(self.lake / name)

    def merge(
        self,
        table: str,
        exports: Sequence[str],
        *,
        anew: bool = False,
        chunk_rows: int | None = None,
        thinned: bool = True,
    ) -> Told:
        """Into a copy of the table, which stays as it is."""

        def run() -> Told:
            with self._copied(self.lake / table):
                options = {"anew": anew, "chunk_rows": chunk_rows, "thinned": thinned}
                return apart(work.merge, lake=str(self.lake), table="copy", exports=exports, **options)

        return best(run, self.runs)

    @contextmanager
    def _copied(self, table: Path) -> Iterator[Path]:
        """Files are never changed, so links will do."""
        copy = self.lake / "copy"
        shutil.copytree(table, copy, copy_function=_link)
        yield copy
        shutil.rmtree(copy)

    def first(self, table: str, export: str, chunk_rows: int | None = None) -> Told:
        """The table itself, of one export."""
        arguments = {"lake": str(self.lake), "exports": [export], "chunk_rows": chunk_rows}
        return apart(work.merge, table=table, **arguments)

    def delta_merge(self, first: str, change: str) -> Told:
        """deltalake's own MERGE into a table of its own."""
        table = self.lake / "delta"
        apart(work.delta_table, lake=str(self.lake), export=first, uri=str(table))

        def run() -> Told:
            with self._copied(table) as copy:
                return apart(work.delta_merge, lake=str(self.lake), export=change, uri=str(copy))

        return best(run, self.runs)

    def others(self, table: str, first: str, change: str, rows: int) -> dict[str, Told]:
        """What else could be done with a change."""
        out = str(self.folder / "duckdb.parquet")
        duckdb = best(
            lambda: apart(work.duckdb_rewrite, lake=str(self.lake), table=table, export=change, out=out),
            self.runs,
        )
        Path(out).unlink()
        if duckdb["rows"] != rows:
            raise ValueError(f"DuckDB has written {duckdb['rows']} rows and not {rows}")
        return {
            "our merge, chunks read and written": self.merge(table, [change], thinned=False),
            "deltalake's MERGE": self.delta_merge(first, change),
            "DuckDB writes all rows again": duckdb,
        }


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _checked(told: Told, rows: int, share: float, *, anew: bool = False) -> Told:
    """What a merge says it did, held against what there was to do."""
    old, new = (len(each) for each in work.changed(rows, share, RECENT))
    done = (told["rows"], told["added"], told["removed"])
    wanted = (rows + new, rows + new, rows) if anew else (rows + new, old + new, old)
    if done != wanted:
        raise ValueError(f"rows, added and removed are {done} and not {wanted}")
    return told


def measure(
    bench: Bench, paths: Sequence[str], rows: int, *, contend: bool
) -> tuple[Whole, list[Cost], dict[str, Told]]:
    """A table of that size and its changes; `contend`: what else could be done too."""
    export, table = f"first-{rows}/{FIRST}", f"table-{rows}"
    converted = bench.convert(paths, f"first-{rows}", FIRST)
    first = bench.first(table, export)
    ndjson, parquet = converted["ndjson"] / 1e6, first["bytes"] / 1e6
    print(f"\n{rows:,} rows: {ndjson:,.0f} MB of NDJSON, {parquet:.0f} MB of Parquet")
    print(HEAD)
    costs, again = [], first
    others: dict[str, Told] = {}
    for kind in (ANYWHERE, RECENT):
        for share in SHARES:
            with bench.change(rows, share, kind, export) as (change, of_change):
                told = _checked(bench.merge(table, [change]), rows, share)
                cost = Cost(
                    **{"table": rows, "share": share, "kind": kind, "change": of_change["rows"]},
                    **{name: told[name] for name in ("cpu", "peak", "out", "chunks", "rewritten")},
                    convert=of_change["cpu"],
                )
                costs.append(cost)
                show_cost(cost, converted["cpu"])
                if (kind, share) == (ANYWHERE, NIGHT):
                    again = _checked(bench.merge(table, [export, change], anew=True), rows, share, anew=True)
                    if contend:
                        others = bench.others(table, export, change, told["rows"])
                        _checked(others["deltalake's MERGE"], rows, share)
    whole = Whole(
        **{"table": rows, "ndjson": converted["ndjson"], "bytes": first["bytes"]},
        **{"convert": converted["cpu"], "peak": converted["peak"]},
        **{"first": first["cpu"], "first_peak": first["peak"]},
        **{"again": again["cpu"], "again_peak": again["peak"]},
    )
    return whole, costs, others


def measure_layouts(bench: Bench, paths: Sequence[str], rows: int) -> list[Layout]:
    """The same table in chunks of each size, and with its rows in the order of their ids."""
    export, by_id = f"first-{rows}", f"sorted-{rows}"
    joined = bench.folder / "sorted.ndjson"
    apart(work.sort_lines, paths=paths, to=str(joined))
    bench.convert([str(joined)], by_id, FIRST)
    joined.unlink()
    wanted = [(f"chunks of {size // 1024}k rows", export, size) for size in CHUNK_ROWS]
    found = []
    for name, source, size in [*wanted, ("256k, sorted by id", by_id, 256 * 1024)]:
        table = f"layout-{size}-{source}"
        made = bench.first(table, f"{source}/{FIRST}", size)
        told = {}
        for kind in (ANYWHERE, RECENT):
            with bench.change(rows, NIGHT, kind, f"{source}/{FIRST}") as (change, _):
                told[kind] = _checked(bench.merge(table, [change], chunk_rows=size), rows, NIGHT)
        peak = max(each["peak"] for each in told.values())
        scan = apart(work.scan, lake=str(bench.lake), table=table)["cpu"]
        costs = {"first": made["cpu"], ANYWHERE: told[ANYWHERE]["cpu"], RECENT: told[RECENT]["cpu"]}
        found.append(Layout(name, made["files"], made["bytes"], **costs, peak=peak, scan=scan))
        shutil.rmtree(bench.lake / table)
    return found


# --- the command ---------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    tenth = (_LEAST if options.quick else options.rows) // 10
    with tempfile.TemporaryDirectory(prefix="current-", dir=options.folder) as name:
        if (free := shutil.disk_usage(name).free) < 10 * tenth * _ROW_BYTES:
            print(f"{name} has {free / 1e9:.1f} GB free: too little for {10 * tenth:,} rows", file=sys.stderr)
            return 2
        return _run(Bench(Path(name), 1 if options.quick else _RUNS, options.ndjson), tenth, options.json)


def _run(bench: Bench, tenth: int, out: Path | None) -> int:
    print(f"starting a process and importing: {best(lambda: apart(work.start))['cpu']:.2f} CPU s of each")
    paths = bench.ndjson(tenth)
    wholes, costs, layouts = [], [], []
    contenders: dict[str, Told] = {}
    for parts in PARTS:
        rows = parts * tenth
        whole, of_size, others = measure(bench, paths[:parts], rows, contend=parts == PARTS[0])
        wholes.append(whole)
        costs += of_size
        if others:
            contenders = others
            show_contenders(whole, next(cost for cost in of_size if cost.share == NIGHT), others)
        if parts == PARTS[1]:
            layouts = measure_layouts(bench, paths[:parts], rows)
            show_layouts(layouts, rows)
        shutil.rmtree(bench.lake / f"table-{rows}")
        shutil.rmtree(bench.lake / f"first-{rows}")
    show_wholes(wholes)
    model = model_of(costs)
    show_model(model)
    decided = verdicts(costs, wholes)
    show_verdicts(decided)
    if out is not None:
        found: dict[str, Any] = {
            "costs": [asdict(each) for each in costs],
            "wholes": [asdict(each) for each in wholes],
            "layouts": [asdict(each) for each in layouts],
            "contenders": contenders,
            "model": asdict(model),
            "verdicts": [asdict(each) for each in decided],
        }
        out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(verdict.holds is False for verdict in decided))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.current_tables", description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=200_000, help="of the largest table (default: 200,000)")
    add("--quick", action="store_true", help="20,000 rows: whether it runs, not what it costs")
    add("--json", type=Path, help="also write the results to this file")
    add("--folder", help="where the temporary folder is made; it needs 2 kB a row")
    add("--ndjson", type=Path, help="a folder for the NDJSON, made once for that number of rows and kept")
    options = parser.parse_args()
    if options.rows < _LEAST:
        parser.error(f"--rows: {_LEAST:,} at least")
    return options


if __name__ == "__main__":
    sys.exit(main())
