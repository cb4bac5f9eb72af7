"""Plans: the same seed gives the same plan in any process; over many seeds everything is drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from chaos.catalogue import CATALOGUE, LAKE_POINTS, REQUEST_POINTS, SERVER_EVENTS
from chaos.plan import SERVICE_TARGETS, plan_of
from chaos.summary import summary

PRINT = (
    "import json; from chaos.plan import plan_of as p; print(json.dumps([p(n).as_json() for n in range(20)]))"
)


@given(st.integers(0, 10**9))
def test_a_seed_is_a_plan_and_a_plan_is_json(seed: int) -> None:
    plan = plan_of(seed)
    assert plan == plan_of(seed)
    assert json.loads(json.dumps(plan.as_json()))["seed"] == seed
    assert (plan.driver == "services") == (seed % 10 == 9)
    assert all(1 <= len(night.lives) <= 3 for night in plan.nights)


def test_another_process_makes_the_same_plans() -> None:
    here = json.loads(json.dumps([plan_of(seed).as_json() for seed in range(20)]))
    tests = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": tests, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == here


def test_two_hundred_seeds_draw_every_fault_every_kill_point_and_every_event() -> None:
    plans = [plan_of(seed) for seed in range(200)]
    lives = [life for plan in plans for night in plan.nights for life in night.lives]
    assert {kind for plan in plans for kind in plan.kinds} == CATALOGUE.keys()
    assert {life.kill.point for life in lives if life.kill} == {"", *LAKE_POINTS, *REQUEST_POINTS}
    assert {life.server for life in lives} == {"", *SERVER_EVENTS}
    assert {life.target for life in lives} == {"command", *SERVICE_TARGETS}
    assert any(life.file_limit for life in lives)


def test_a_summary_counts_by_fault_kill_point_and_event() -> None:
    result = {
        "seed": 3,
        "commit": "c0ffee",
        "driver": "command line",
        "lives": 3,
        "faults": {"file 5xx": 2, "gone": 0},
        "kills": {"landed": 1},
        "events": {"disk full": 1},
        "verdict": {"ended": {"published": 1, "held": 1}, "resources": 70, "scans": 9},
        "problems": {"lost": ["one", "two"]},
        "seconds": 10.0,
        "cpu_seconds": 9.0,
    }
    text = summary([result])
    assert "| file 5xx | 2 | 1 | 1 | 1 | 1 |" in text
    assert "| landed | 1 | 1 | 1 | 1 | 1 |" in text
    assert "| disk full | 1 | 1 | 1 | 1 | 1 |" in text
    assert "gone" not in text
    assert "lost 2" in text
