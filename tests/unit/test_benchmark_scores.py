from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import Source
from benchmarks.growth import fit
from benchmarks.process import Run, Runs
from benchmarks.scores import Measured, geometric_mean, verdicts, worst

LINES = 1000


def runs(*cpus: float, wall: float = 1.0, lines: int = LINES, failed: str | None = None) -> Runs:
    return Runs("x", tuple(Run(cpu, wall, 10, lines - 1, 1, 5, failed) for cpu in cpus))


def measured(ours: float, lossy: float, orjson: float, *, size: int = 240_000_000, **more: Any) -> Measured:
    one = {"ours": runs(ours + 1, ours), "duckdb lossy": runs(lossy), "orjson": runs(orjson, orjson + 3)}
    start = {"ours": runs(1.0), "duckdb lossy": runs(0.5), "orjson": runs(0.5)}
    many = {"ours": runs(ours, wall=0.5), "duckdb lossy": runs(lossy, wall=0.4)}
    parts = {"one": one, "start": start, "all": many} | more
    return Measured(Source("Patient", Path("p"), size, LINES), **parts)


def test_the_best_run_counts_and_a_rate_is_megabytes_a_cpu_second() -> None:
    found = measured(3.0, 2.4, 8.0)
    assert found.rate("ours") == pytest.approx(80)
    assert found.rate("ours", started=True) == pytest.approx(120)
    assert found.ratio("ours", "duckdb lossy") == pytest.approx(0.8)
    assert found.ratio("ours", "duckdb lossy", started=True) == pytest.approx(1.9 / 2)


def test_the_gain_is_ours_to_duckdbs() -> None:
    assert measured(3, 3, 3).relative_gain() == pytest.approx((1 / 0.5) / (1 / 0.4))


def test_each_limit_holds_at_its_value_and_is_missed_below() -> None:
    def holds(*all_of: Measured) -> list[bool | None]:
        return [verdict.holds for verdict in verdicts(all_of)]

    assert holds(measured(1.0, 0.8, 1.5)) == [True, True, True, True]
    assert holds(measured(1.0, 0.79, 1.5)) == [False, True, True, True]
    assert holds(measured(1.0, 0.6, 1.5), measured(1.0, 1.2, 1.5)) == [True, True, True, True]
    assert holds(measured(1.0, 0.59, 1.5), measured(1.0, 1.2, 1.5)) == [True, False, True, True]
    assert holds(measured(1.0, 1.0, 1.49), measured(1.0, 1.0, 9.0)) == [True, True, False, True]
    slow = {"ours": runs(1.0, wall=0.6), "duckdb lossy": runs(1.0, wall=0.4)}
    assert holds(measured(1.0, 1.0, 2.0, all=slow)) == [True, True, True, False]


def test_files_below_200_mb_decide_nothing() -> None:
    assert [verdict.value for verdict in verdicts([measured(1, 1, 1, size=199_000_000)])] == [None] * 4


@pytest.mark.parametrize("bad", [runs(1.0, lines=LINES - 1), runs(1.0, failed="ArrowInvalid")])
def test_a_contender_that_lost_lines_or_failed_has_no_rate(bad: Runs) -> None:
    found = measured(1.0, 1.0, 2.0)
    one = {**found.one, "ours": bad}
    lame = Measured(found.source, one, found.start, found.all)
    assert lame.rate("ours") is None
    assert lame.relative_gain() is None
    assert [verdict.holds for verdict in verdicts([found, lame])] == [None] * 4


def test_a_mean_with_a_part_missing_is_no_mean() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([2.0, None]) is None
    assert geometric_mean([]) is None
    assert worst([2.0, 8.0]) == 2.0
    assert worst([2.0, None]) is None


def test_a_line_is_fitted_by_least_squares() -> None:
    exact = fit([0.1, 0.5, 2.0], [2.2, 3.0, 6.0])
    assert (exact.base, exact.slope) == (pytest.approx(2.0), pytest.approx(2.0))
    uneven = fit([0, 1, 2], [0, 3, 3])  # by hand: mean 1 and 2, slope 3/2, base 1/2
    assert (uneven.base, uneven.slope) == (pytest.approx(0.5), pytest.approx(1.5))
    assert uneven.at(2) == pytest.approx(3.5)
    with pytest.raises(ValueError, match="two sizes"):
        fit([1, 1], [2, 3])
