"""How cost and memory grow with the input: a line through the runs, and how far they lie from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One run: gigabytes of NDJSON (10**9 bytes), CPU and wall seconds, peak memory in MB (10**6 bytes)."""

    gigabytes: float
    cpu: float
    wall: float
    peak: float


@dataclass(frozen=True)
class Line:
    """`value = base + slope * gigabytes`, by least squares."""

    base: float
    slope: float

    def at(self, gigabytes: float) -> float:
        return self.base + self.slope * gigabytes


def fit(sizes: Sequence[float], values: Sequence[float]) -> Line:
    """Raises ValueError for fewer than two different sizes."""
    if len(set(sizes)) < 2:
        raise ValueError("a line needs two sizes")
    mean_size, mean_value = sum(sizes) / len(sizes), sum(values) / len(values)
    spread = sum((size - mean_size) ** 2 for size in sizes)
    slope = sum((s - mean_size) * (v - mean_value) for s, v in zip(sizes, values, strict=True)) / spread
    return Line(mean_value - slope * mean_size, slope)
