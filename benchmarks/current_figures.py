"""From the runs of `current_tables` to figures, verdicts and what is printed. Nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.current_work import ANYWHERE, RECENT, Told
from benchmarks.scores import Verdict

NIGHT = 0.01
"""The change that the limits are about, ..."""
DECIDED_AT = 2_000_000
"""... and the rows of the table from which they hold."""
CHEAPER_LIMIT, PEAK_LIMIT = 3.0, 1000.0


@dataclass(frozen=True)
class Cost:
    """One change merged into a table. Seconds, bytes, rows, files."""

    table: int
    share: float
    kind: str
    change: int
    cpu: float
    peak: int
    out: int
    """Chunks that were rewritten, ..."""
    chunks: int
    """... of so many, ..."""
    rewritten: int
    """... and the rows in them."""
    convert: float
    """CPU seconds of converting the change's NDJSON."""


@dataclass(frozen=True)
class Whole:
    """What the first export of a table of that size cost. CPU seconds, bytes."""

    table: int
    ndjson: int
    convert: float
    peak: int
    first: float
    """The first merge."""
    first_peak: int
    again: float
    """Making the table again from both exports."""
    again_peak: int
    bytes: int


@dataclass(frozen=True)
class Layout:
    """Costs of a table, and of a change of 1 %, with another layout. CPU seconds, bytes."""

    name: str
    files: int
    bytes: int
    first: float
    anywhere: float
    recent: float
    peak: int
    scan: float


@dataclass(frozen=True)
class Model:
    """CPU seconds of a merge: of each, and of a million rows of the table, of the chunks that are rewritten
    and of the change."""

    each: float
    table: float
    rewritten: float
    change: float
    off: float
    """The largest difference to what was measured."""


def model_of(costs: Sequence[Cost]) -> Model:
    """By least squares on relative differences: a second more is little of forty. Nothing is negative."""
    import numpy as np

    rows = np.array([[1, c.table / 1e6, c.rewritten / 1e6, c.change / 1e6] for c in costs])
    seconds = np.array([c.cpu for c in costs])
    used = list(range(rows.shape[1]))
    found = np.zeros(rows.shape[1])
    while used:
        solved = np.linalg.lstsq(rows[:, used] / seconds[:, None], np.ones(len(costs)), rcond=None)[0]
        if solved.min() >= 0:
            found[used] = solved
            break
        used.pop(int(solved.argmin()))
    off = float(np.abs(rows @ found - seconds).max())
    return Model(*(float(each) for each in found), off)


def verdicts(costs: Sequence[Cost], wholes: Sequence[Whole]) -> list[Verdict]:
    """The limits, for a change of 1 % of a table that is large enough."""
    large = {whole.table: whole for whole in wholes if whole.table >= DECIDED_AT}
    nights = [cost for cost in costs if cost.share == NIGHT and cost.table in large]

    def cheaper(kind: str) -> float | None:
        return min(
            (large[cost.table].convert / cost.cpu for cost in nights if cost.kind == kind), default=None
        )

    peak = max((cost.peak / 1e6 for cost in nights), default=None)
    return [
        *(
            Verdict(
                f"times cheaper than converting again, 1 % {kind}: at least", cheaper(kind), CHEAPER_LIMIT
            )
            for kind in (RECENT, ANYWHERE)
        ),
        Verdict("peak MB of a merge, 1 %: below", peak, PEAK_LIMIT, at_least=False),
    ]


# --- what is printed -----------------------------------------------------------------------------------

HEAD = (
    f"{'change':>14} {'rows':>9} {'CPU s':>7} {'of converting':>14} {'peak MB':>8} {'chunks':>8}"
    f" {'rows in them':>13} {'converting it':>14}"
)


def show_cost(cost: Cost, convert: float) -> None:
    print(
        f"{cost.share:>5.1%} {cost.kind:>8} {cost.change:>9,} {cost.cpu:7.2f} {cost.cpu / convert:>13.0%} "
        f"{cost.peak / 1e6:9.0f} {f'{cost.out} of {cost.chunks}':>8} {cost.rewritten:>13,}"
        f" {cost.convert:>14.2f}",
        flush=True,
    )


def show_contenders(whole: Whole, cost: Cost, others: Mapping[str, Told]) -> None:
    print(f"\n{NIGHT:.0%} {cost.kind} of {whole.table:,} rows: CPU s, times ours, peak MB")
    for name, cpu, peak in (
        ("our merge", cost.cpu, cost.peak),
        *((name, told["cpu"], told["peak"]) for name, told in others.items()),
        ("the table made again", whole.again, whole.again_peak),
        ("converting the NDJSON again", whole.convert, whole.peak),
    ):
        print(f"{name:36} {cpu:7.2f} {cpu / cost.cpu:6.2f} {peak / 1e6:7.0f}")


def show_wholes(wholes: Sequence[Whole]) -> None:
    print(
        f"\n{'rows':>10} {'convert':>8} {'first merge':>12} {'made again':>11} {'peak MB of the three':>24}"
    )
    for each in wholes:
        peaks = "  ".join(f"{peak / 1e6:.0f}" for peak in (each.peak, each.first_peak, each.again_peak))
        print(f"{each.table:>10,} {each.convert:8.2f} {each.first:12.2f} {each.again:11.2f} {peaks:>24}")


def show_model(model: Model) -> None:
    print(
        f"\nCPU s of a merge = {model.each:.2f} + for each million rows {model.table:.2f} of the table,"
        f" {model.rewritten:.2f} of rewritten chunks, {model.change:.2f} of the change;"
        f" off by {model.off:.2f} at most"
    )


def show_layouts(layouts: Sequence[Layout], rows: int) -> None:
    print(f"\n{NIGHT:.0%} of {rows:,} rows, other layouts: CPU s")
    print(
        f"{'':22} {'files':>6} {'MB':>6} {'first merge':>12} {ANYWHERE:>9} {RECENT:>7} {'peak MB':>8}"
        f" {'scan of two columns':>20}"
    )
    for each in layouts:
        print(
            f"{each.name:22} {each.files:6} {each.bytes / 1e6:6.0f} {each.first:12.2f} {each.anywhere:9.2f}"
            f" {each.recent:7.2f} {each.peak / 1e6:8.0f} {each.scan:20.3f}"
        )


def show_verdicts(decided: Sequence[Verdict]) -> None:
    print()
    for verdict in decided:
        value = "-" if verdict.value is None else f"{verdict.value:.1f}"
        said = {True: "holds", False: "MISSED", None: "not measured"}[verdict.holds]
        print(f"{verdict.name} {verdict.limit:g}: {value}  {said}")
