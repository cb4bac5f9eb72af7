"""From runs to rates, ratios and verdicts. Pure: nothing is run or printed here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.corpus import Source
from benchmarks.process import Runs

OURS, LOSSY, ORJSON = "ours", "duckdb lossy", "orjson"

LARGE = 200_000_000
"""Bytes of NDJSON from which the limits hold (issue 3)."""
_TELLING = 1.2
"""A run must cost this many times its own start before the start is subtracted."""


@dataclass(frozen=True)
class Measured:
    """All runs on one source, by contender: on one core, on its first lines on one core, on all cores."""

    source: Source
    one: Mapping[str, Runs]
    start: Mapping[str, Runs]
    all: Mapping[str, Runs]

    def cpu(self, contender: str, *, started: bool = False) -> float | None:
        """CPU seconds of the best run on one core; `started`: without what a few lines cost.

        None for a contender that failed, and for a difference too small to tell from noise.
        """
        runs = self.one.get(contender)
        if runs is None or not runs.complete(self.source):
            return None
        if not started:
            return runs.cpu
        start = self.start.get(contender)
        if start is None or start.failed or runs.cpu < _TELLING * start.cpu:
            return None
        return runs.cpu - start.cpu

    def rate(self, contender: str, *, started: bool = False) -> float | None:
        """MB of NDJSON a CPU second."""
        cpu = self.cpu(contender, started=started)
        return None if cpu is None else self.source.megabytes / cpu

    def ratio(self, contender: str, to: str, *, started: bool = False) -> float | None:
        """How many times faster than `to`, in CPU seconds; above 1 is faster."""
        mine, other = self.cpu(contender, started=started), self.cpu(to, started=started)
        return None if mine is None or other is None else other / mine

    def gain(self, contender: str) -> float | None:
        """Wall time on one core through wall time on all."""
        one, many = self.one.get(contender), self.all.get(contender)
        if one is None or many is None or not (one.complete(self.source) and many.complete(self.source)):
            return None
        return one.wall / many.wall

    def relative_gain(self) -> float | None:
        """Our gain from more cores as a part of DuckDB's own."""
        mine, other = self.gain(OURS), self.gain(LOSSY)
        return None if mine is None or other is None else mine / other


@dataclass(frozen=True)
class Verdict:
    """A limit of the issue and what was measured; `value` None: it was not."""

    name: str
    value: float | None
    limit: float
    at_least: bool = True

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value < self.limit


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """None for no values, or when one of them is missing: a mean without the bad ones flatters."""
    found = list(values)
    known = [value for value in found if value is not None]
    if not known or len(known) < len(found):
        return None
    return math.exp(math.fsum(map(math.log, known)) / len(known))


def worst(values: Iterable[float | None]) -> float | None:
    """The least; None for no values, or when one of them is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return min(known) if known and len(known) == len(found) else None


def verdicts(measured: Sequence[Measured], *, started: bool = False) -> list[Verdict]:
    """The limits of issue 3 that one core and all cores decide; memory is decided by the growth run."""
    large = [m for m in measured if m.source.bytes >= LARGE]
    lossy = [m.ratio(OURS, LOSSY, started=started) for m in large]
    orjson = [m.ratio(OURS, ORJSON, started=started) for m in large]
    return [
        Verdict("CPU, ours to DuckDB lossy, geometric mean", geometric_mean(lossy), 0.8),
        Verdict("CPU, ours to DuckDB lossy, worst type", worst(lossy), 0.6),
        Verdict("CPU, ours to orjson -> from_pylist, worst type", worst(orjson), 1.5),
        Verdict(
            "all cores, our gain to DuckDB's, geometric mean",
            geometric_mean(m.relative_gain() for m in large),
            0.8,
        ),
    ]
