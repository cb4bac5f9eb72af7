from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import current_work as work
from benchmarks.current_figures import DECIDED_AT, NIGHT, Cost, Whole, model_of, show_verdicts, verdicts
from benchmarks.current_tables import best
from benchmarks.current_work import ANYWHERE, RECENT, Told, changed, identifier

TABLE = DECIDED_AT
WHOLE = Whole(TABLE, 2 * 10**9, 30.0, 3 * 10**8, 30.0, 10**9, 40.0, 10**9, 3 * 10**8)


def cost(cpu: float, kind: str, *, table: int = TABLE, share: float = NIGHT, peak: int = 999_000_000) -> Cost:
    return Cost(table, share, kind, round(table * share), cpu, peak, 1, 8, 250_000, 0.5)


def test_a_change_updates_rows_of_the_table_and_adds_as_many() -> None:
    for kind in (ANYWHERE, RECENT):
        old, new = changed(1000, 0.1, kind)
        assert len(set(old)) == len(new) == 50
        assert max(old) < 1000
        assert new == list(range(1000, 1050))
    assert changed(1000, 0.1, RECENT)[0] == list(range(950, 1000))
    anywhere = changed(1000, 0.1, ANYWHERE)[0]
    assert anywhere == changed(1000, 0.1, ANYWHERE)[0]
    assert min(anywhere) < 100


def test_ids_are_random_uuids_and_the_same_each_time() -> None:
    ids = [identifier(number) for number in range(1000)]
    assert len(set(ids)) == 1000
    assert all(uuid.UUID(each).version == 4 for each in ids)
    assert ids != sorted(ids)
    assert identifier(7) == ids[7]


def test_every_row_has_a_version_and_an_instant_of_its_own_and_a_change_is_later(tmp_path: Path) -> None:
    def read(path: Path) -> list[dict[str, str]]:
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        return [{"id": each["id"], **each["meta"]} for each in found]

    work.make_first(str(tmp_path), rows=60, piece=40)
    first = [row for path in sorted(tmp_path.iterdir()) for row in read(path)]
    assert [row["id"] for row in first] == [identifier(number) for number in range(60)]
    work.make_change(str(tmp_path / "change"), rows=60, share=0.5, kind=RECENT)
    change = read(tmp_path / "change")
    assert {row["id"] for row in change} == {identifier(number) for number in range(45, 75)}
    for name in ("versionId", "lastUpdated"):
        assert len({row[name] for row in first + change}) == 90
    assert min(row["lastUpdated"] for row in change) > max(row["lastUpdated"] for row in first)
    assert min(int(row["versionId"]) for row in change) > max(int(row["versionId"]) for row in first)


def test_lines_are_sorted_by_id(tmp_path: Path) -> None:
    work.make_first(str(tmp_path), rows=50, piece=25)
    pieces = sorted(tmp_path.iterdir())
    work.sort_lines([str(path) for path in pieces], str(tmp_path / "sorted"))
    made = b"".join(path.read_bytes() for path in pieces).splitlines()
    found = (tmp_path / "sorted").read_bytes().splitlines()
    assert sorted(found) == sorted(made)
    ids = [json.loads(line)["id"] for line in found]
    assert ids == sorted(ids)


def test_each_limit_holds_at_its_value_and_is_missed_beyond(capsys: pytest.CaptureFixture[str]) -> None:
    def holds(*costs: Cost) -> list[bool | None]:
        return [verdict.holds for verdict in verdicts(costs, [WHOLE])]

    assert holds(cost(10.0, RECENT), cost(10.0, ANYWHERE)) == [True, True, True]
    assert holds(cost(10.0, RECENT), cost(10.1, ANYWHERE)) == [True, False, True]
    assert holds(cost(10.1, RECENT), cost(10.0, ANYWHERE)) == [False, True, True]
    assert holds(cost(1.0, RECENT), cost(1.0, ANYWHERE, peak=10**9)) == [True, True, False]
    show_verdicts(verdicts([cost(5.0, RECENT), cost(20.0, ANYWHERE)], [WHOLE]))
    said = capsys.readouterr().out.split("\n")
    assert [line.split()[-2:] for line in said if line] == [
        ["6.0", "holds"],
        ["1.5", "MISSED"],
        ["999.0", "holds"],
    ]


def test_small_tables_and_other_changes_decide_nothing() -> None:
    small = replace(WHOLE, table=TABLE - 1)
    assert [v.value for v in verdicts([cost(99.0, RECENT, table=TABLE - 1)], [small])] == [None] * 3
    assert [v.value for v in verdicts([cost(99.0, RECENT, share=0.1)], [WHOLE])] == [None] * 3


def test_costs_are_shared_out_to_table_chunks_and_change() -> None:
    def made(table: int, rewritten: int, change: int) -> Cost:
        seconds = 0.5 + (2 * table + 8 * rewritten + 10 * change) / 1e6
        return Cost(table, 0.01, RECENT, change, seconds, 1, 1, 1, rewritten, 0.5)

    exact = model_of(
        [made(10**6, 10**6, 10**3), made(10**6, 10**5, 10**5), made(10**5, 10**4, 10**4), made(1, 1, 1)]
    )
    assert (exact.each, exact.table) == (pytest.approx(0.5), pytest.approx(2))
    assert (exact.rewritten, exact.change) == (pytest.approx(8), pytest.approx(10))
    assert exact.off == pytest.approx(0, abs=1e-9)
    shrinks = [replace(made(10**6 * n, 10**6, 10**5), cpu=20.0 - n) for n in (1, 2, 3)]
    assert min(model_of(shrinks).table, model_of(shrinks).rewritten, model_of(shrinks).change) >= 0


def test_the_cheapest_run_counts_and_the_highest_peak_and_dear_ones_run_once() -> None:
    def runs(*cpus: float) -> tuple[Told, int]:
        left = [{"cpu": cpu, "peak": round(cpu * 10)} for cpu in cpus]
        return best(lambda: left.pop(0)), len(cpus) - len(left)

    assert runs(2.0, 1.0, 1.5, 0.1) == ({"cpu": 1.0, "peak": 20}, 3)
    assert runs(9.0, 1.0) == ({"cpu": 9.0, "peak": 90}, 1)
