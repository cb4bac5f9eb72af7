"""NDJSON to Parquet, ours and others', measured: `python -m benchmarks.conversion [--data DIR] [--growth]`.

Without `--data` the sandbox's resources are multiplied (`multiply`) to `--min-mb` for each type. Every run is
a process of its own: pinned to one core for the CPU seconds, then with all cores for the wall time. A rate is
MB of NDJSON a CPU second, user and system, of the whole process, its imports included; beside it the rate
without what the same process costs on the first 20 lines. The best of `--repeats` runs counts, as noise only
adds. `--growth` converts 0.1, 0.5 and 2 GB of Observations by the pipeline alone. Ends with 1 when a limit of
issue 3 is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.corpus import Source, cores, gather, head
from benchmarks.growth import Point, fit
from benchmarks.process import Runs, observe_apart, repeat
from benchmarks.scores import OURS, Measured, Verdict, geometric_mean, verdicts, worst

TYPES = ("Patient", "Observation", "Encounter", "Claim", "ExplanationOfBenefit")
SIZES = (0.1, 0.5, 2.0)
"""Gigabytes of the growth run."""
_ON_ALL_CORES = ("ours", "duckdb lossy", "duckdb explicit")
_FIRST_LINES = 20


def main() -> int:
    options = _options()
    with _work(options.work) as work:
        try:
            found, decided = _grow(options, work) if options.growth else _compare(options, work)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(verdict.holds is False for verdict in decided))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    add = parser.add_argument
    add("--data", type=_folder, help="a folder of <Type>*.ndjson or .ndjson.gz (default: the sandbox's)")
    add("--types", nargs="+", default=list(TYPES), metavar="TYPE", help=f"default: {' '.join(TYPES)}")
    add("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    add("--min-mb", type=float, default=210, help="NDJSON a type at least, multiplied to it (default: 210)")
    add("--repeats", type=int, default=3, help="runs of each contender (default: 3)")
    add("--growth", action="store_true", help="how cost and memory of ours grow, instead")
    add("--sizes", type=float, nargs="+", default=SIZES, metavar="GB", help="of the growth run")
    add("--json", type=Path, help="also write the results to this file")
    add("--work", type=Path, help="keep the multiplied files here (default: a temporary folder)")
    return parser.parse_args()


def _folder(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return path


@contextlib.contextmanager
def _work(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="conversion-") as folder:
        yield Path(folder)


# --- the comparison -----------------------------------------------------------------------------------


def _compare(options: argparse.Namespace, work: Path) -> tuple[dict[str, Any], list[Verdict]]:
    measured: list[Measured] = []
    for name in options.types:
        (source,) = gather(options.data, [name], round(options.min_mb * 1e6), work)
        measured.append(_measure(source, options.contenders, options.repeats, work))
        _show_type(measured[-1])
        if options.work is None and work in source.path.parents:
            source.path.unlink()
    _show_ratios(measured)
    decided = verdicts(measured)
    _show_verdicts(decided, verdicts(measured, started=True))
    return {"cores": len(cores()), "types": [_plain(one) for one in measured]}, decided


def _measure(source: Source, contenders: Sequence[str], times: int, work: Path) -> Measured:
    mine = cores()
    with tempfile.TemporaryDirectory(prefix="measured-", dir=work) as name:
        folder = Path(name)
        few = head(source, _FIRST_LINES, folder / "head.ndjson")
        observed = folder / "observed.json"
        observe_apart(source, observed)

        def runs(contender: str, of: Source, threads: int, on: Sequence[int]) -> Runs:
            return repeat(contender, of, observed, threads=threads, cores=on, times=times, work=folder)

        # The few lines first: they also fill the caches of compiled code and of imports.
        start = {contender: runs(contender, few, 1, mine[-1:]) for contender in contenders}
        one = {contender: runs(contender, source, 1, mine[-1:]) for contender in contenders}
        many = [contender for contender in contenders if contender in _ON_ALL_CORES and len(mine) > 1]
        return Measured(source, one, start, {name: runs(name, source, len(mine), mine) for name in many})


def _plain(measured: Measured) -> dict[str, Any]:
    source = measured.source
    return {
        "type": source.resource_type,
        "bytes": source.bytes,
        "lines": source.lines,
        **{
            where: {name: [asdict(run) for run in runs.runs] for name, runs in found.items()}
            for where, found in (("one", measured.one), ("start", measured.start), ("all", measured.all))
        },
    }


# --- growth -------------------------------------------------------------------------------------------


def _grow(options: argparse.Namespace, work: Path) -> tuple[dict[str, Any], list[Verdict]]:
    mine = cores()
    found: dict[str, list[Point]] = {}
    for gigabytes in options.sizes:
        with tempfile.TemporaryDirectory(prefix="growth-", dir=work) as name:
            (source,) = gather(options.data, ["Observation"], round(gigabytes * 1e9), Path(name))
            for lanes in sorted({1, len(mine)}):
                runs = repeat(
                    OURS, source, source.path, threads=lanes, cores=mine[-lanes:], times=1, work=Path(name)
                )
                if not runs.complete(source):
                    print(f"{gigabytes} GB, {lanes} lanes: {runs.failed or 'lines are missing'}")
                    continue
                point = Point(source.bytes / 1e9, runs.cpu, runs.wall, runs.peak / 1e6)
                found.setdefault("1 lane" if lanes == 1 else f"{lanes} lanes", []).append(point)
    decided: list[Verdict] = []
    for lanes_name, points in found.items():
        _show_growth(lanes_name, points)
        peaks = [point.peak for point in points if point.gigabytes >= max(SIZES)]
        decided.append(Verdict(f"peak MB at 2 GB in, {lanes_name}", max(peaks, default=None), 1000, False))
    _show_verdicts(decided)
    return {name: [asdict(point) for point in points] for name, points in found.items()}, decided


def _show_growth(name: str, points: Sequence[Point]) -> None:
    print(f"\nOurs, {name}")
    print(f"{'GB':>6} {'CPU s':>8} {'wall s':>8} {'peak MB':>8} {'MB/CPU s':>9} {'off the line':>13}")
    sizes = [point.gigabytes for point in points]
    line = fit(sizes, [point.cpu for point in points]) if len(points) > 1 else None
    for point in points:
        off = "" if line is None else f"{point.cpu - line.at(point.gigabytes):+.2f} s"
        rate = point.gigabytes * 1e3 / point.cpu
        print(
            f"{point.gigabytes:6.2f} {point.cpu:8.2f} {point.wall:8.2f} {point.peak:8.0f} "
            f"{rate:9.1f} {off:>13}"
        )
    if line is not None:
        memory = fit(sizes, [point.peak for point in points])
        print(f"CPU = {line.base:.2f} s + {line.slope:.2f} s a GB; peak grows by {memory.slope:+.0f} MB a GB")


# --- what is printed ----------------------------------------------------------------------------------


def _show_type(measured: Measured) -> None:
    source = measured.source
    print(f"\n{source.resource_type}: {source.megabytes:,.0f} MB, {source.lines:,} lines")
    print(
        f"{'':16} {'MB/CPU s':>9} {'median':>7} {'no start':>8} {'x lossy':>8} {'x expl.':>8} {'x orjson':>8}"
        f" {'start s':>8} {'peak MB':>8} {'out MB':>7} {'rows':>10} {'all cores':>10} {'gain':>5}"
    )
    for name, runs in measured.one.items():
        print(f"{name:16} {_cells(measured, name, runs)}", flush=True)


def _cells(measured: Measured, name: str, runs: Runs) -> str:
    if runs.failed:
        return f"fails ({runs.failed})"
    if not runs.complete(measured.source):
        return f"WRONG: {runs.rows:,} rows and {runs.refused:,} refused of {measured.source.lines:,} lines"
    start, many = measured.start[name], measured.all.get(name)
    wall = "" if many is None else "fails" if many.failed else f"{many.wall:.2f} s"
    cells = " ".join(
        (
            _number(measured.rate(name), 9, 1),
            _number(measured.source.megabytes / runs.median_cpu, 7, 1),
            _number(measured.rate(name, started=True), 8, 1),
            *(
                _number(measured.ratio(name, to), 8, 2)
                for to in ("duckdb lossy", "duckdb explicit", "orjson")
            ),
            _number(None if start.failed else start.cpu, 8, 2),
            f"{runs.peak / 1e6:8.0f} {runs.out / 1e6:7.1f} {runs.rows:10,} {wall:>10}",
            _number(measured.gain(name), 5, 2),
            f" {runs.refused:,} refused" if runs.refused else "",
        )
    )
    return cells.rstrip()


def _show_ratios(measured: Sequence[Measured]) -> None:
    print("\nOurs, in CPU seconds, times as fast as")
    for to in ("duckdb lossy", "duckdb explicit", "pyarrow.json", "orjson"):
        ratios = [one.ratio(OURS, to) for one in measured]
        print(
            f"{to:16} geometric mean {_number(geometric_mean(ratios), 5, 2)}, worst"
            f" {_number(worst(ratios), 5, 2)}:  "
            + "  ".join(
                f"{one.source.resource_type} {_number(ratio, 0, 2)}"
                for one, ratio in zip(measured, ratios, strict=True)
            )
        )
    gains = [one.relative_gain() for one in measured]
    print(f"our gain from all cores to DuckDB's: geometric mean {_number(geometric_mean(gains), 5, 2)}")


def _show_verdicts(decided: Sequence[Verdict], started: Sequence[Verdict] | None = None) -> None:
    print(f"\n{'limit (issue 3)':56} {'measured':>9} {'no start':>9}")
    for position, verdict in enumerate(decided):
        said = {True: "holds", False: "MISSED", None: "not measured"}[verdict.holds]
        sign = ">=" if verdict.at_least else "<"
        limit = f"{verdict.name} {sign} {verdict.limit:g}"
        other = None if started is None else started[position].value
        digits = 2 if verdict.at_least else 0
        print(f"{limit:56} {_number(verdict.value, 9, digits)} {_number(other, 9, digits)}  {said}")


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-' if value is None else format(value, f',.{digits}f'):>{width}}"


if __name__ == "__main__":
    sys.exit(main())
