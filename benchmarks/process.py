"""One contender in one fresh process: CPU seconds of it and its children, wall, peak memory, output."""

from __future__ import annotations

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Order
from benchmarks.corpus import Source

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """One process, from its start to its end. Seconds (`cpu`: user and system) and bytes.

    `rows` are counted in the Parquet files, `refused` by the contender; `failed` is the type of an error.
    """

    cpu: float
    wall: float
    peak: int
    rows: int
    refused: int
    out: int
    failed: str | None = None


@dataclass(frozen=True)
class Runs:
    """Repeated runs of one contender on one source. Seconds, bytes."""

    contender: str
    runs: tuple[Run, ...]

    @property
    def failed(self) -> str | None:
        """The type of the first error, None when all runs came through."""
        return next((run.failed for run in self.runs if run.failed), None)

    @property
    def cpu(self) -> float:
        """The best run's: noise only ever adds."""
        return min(run.cpu for run in self.runs)

    @property
    def median_cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)

    @property
    def wall(self) -> float:
        return min(run.wall for run in self.runs)

    @property
    def peak(self) -> int:
        """The worst run's."""
        return max(run.peak for run in self.runs)

    @property
    def out(self) -> int:
        return self.runs[-1].out

    @property
    def rows(self) -> int:
        return self.runs[-1].rows

    @property
    def refused(self) -> int:
        return self.runs[-1].refused

    def complete(self, source: Source) -> bool:
        """Every line of the source became a row in every run, or was refused by number."""
        return all(run.rows + run.refused == source.lines and run.failed is None for run in self.runs)


def repeat(
    contender: str,
    source: Source,
    observed: Path,
    *,
    threads: int,
    cores: Sequence[int],
    times: int,
    work: Path,
) -> Runs:
    """`times` runs after each other, each in a fresh process with an empty folder; stops at a failure."""
    runs: list[Run] = []
    for _ in range(times):
        runs.append(_run(contender, source, observed, threads, cores, work))
        if runs[-1].failed:
            break
    return Runs(contender, tuple(runs))


def _run(
    contender: str, source: Source, observed: Path, threads: int, cores: Sequence[int], work: Path
) -> Run:
    with tempfile.TemporaryDirectory(prefix="out-", dir=work) as folder:
        out = Path(folder) / "out"
        out.mkdir()
        order, answer = Path(folder) / "order.json", Path(folder) / "answer.json"
        Order(source.resource_type, source.path, out, observed, threads, tuple(cores)).write(order)
        code, cpu, wall = _timed(["benchmarks.contenders", contender, str(order)], answer)
        told = json.loads(answer.read_text() or "{}")
        if code or "failed" in told:
            return Run(cpu, wall, 0, 0, 0, 0, told.get("failed", f"exit {code}"))
        parquet = sorted(out.rglob("*.parquet"))
        size = sum(path.stat().st_size for path in parquet)
        return Run(cpu, wall, told["peak"], sum(map(_rows, parquet)), told["refused"], size)


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _timed(module: list[str], answer: Path) -> tuple[int, float, float]:
    """(exit code, CPU seconds with those of its children, wall seconds) of `python -m module ...`."""
    began = time.perf_counter()
    with answer.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", *module], stdout=out, stderr=subprocess.DEVNULL, cwd=_ROOT
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def observe_apart(source: Source, target: Path) -> None:
    """Write the observed schemas of a source (`observed`), in a process of its own: this one stays small."""
    subprocess.run(
        [sys.executable, "-m", "benchmarks.process", str(source.path), str(target)], check=True, cwd=_ROOT
    )


def _write_observed(source: Path, target: Path) -> None:
    from benchmarks.observed import arrow_schema, duckdb_columns, observe

    shape = observe(source)
    arrow = base64.b64encode(arrow_schema(shape).serialize().to_pybytes()).decode()
    target.write_text(json.dumps({"arrow": arrow, "duckdb": duckdb_columns(shape)}))


if __name__ == "__main__":
    _write_observed(Path(sys.argv[1]), Path(sys.argv[2]))
