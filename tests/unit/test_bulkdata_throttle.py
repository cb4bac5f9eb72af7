"""How many downloads run at a time: the rule, and the throttle that applies it to threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.byterate import ByteRate
from pipeline.bulkdata.throttle import Pace, Throttle

EVENTS = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.floats(0, 100), st.one_of(st.none(), st.floats(0, 60))),
    ),
    max_size=60,
)


@given(st.integers(1, 32), EVENTS)
def test_it_is_never_below_one_nor_above_the_limit(
    most: int, events: list[tuple[float, float | None] | None]
) -> None:
    pace, now = Pace.at_most(most), 0.0
    for event in events:
        now += 1.0
        pace = pace.went_well() if event is None else pace.overloaded(now, now - event[0], event[1])
        assert 1 <= pace.slots <= most


@given(st.integers(1, 32), st.integers(1, 20))
def test_it_recovers_from_any_overload(most: int, blows: int) -> None:
    """One more for each whole round: linear, so that it does not swing."""
    pace = Pace.at_most(most)
    for moment in range(blows):
        pace = pace.overloaded(moment, moment)
    files = 0
    while pace.slots < most:
        pace = pace.went_well()
        files += 1
        assert files <= most * (most + 1)


@given(st.integers(2, 32))
def test_one_overload_that_many_feel_is_one_halving(most: int) -> None:
    pace = Pace.at_most(most)
    for _ in range(most):
        pace = pace.overloaded(10.0, asked_at=9.0)
    assert pace.slots == most // 2
    assert pace.overloaded(12.0, asked_at=11.0).slots == max(1, most // 4)


@given(st.integers(2, 32))
def test_a_success_is_less_than_an_overload(most: int) -> None:
    halved = Pace.at_most(most).overloaded(1.0, 1.0)
    assert halved.slots == most // 2
    assert halved.went_well().slots <= halved.slots + 1


@given(st.lists(st.floats(0.001, 30), min_size=1, max_size=6))
def test_the_longest_hold_counts(pauses: list[float]) -> None:
    pace = Pace.at_most(4)
    for pause in pauses:
        pace = pace.overloaded(0.0, 0.0, pause)
    assert pace.held_until == max(pauses)


def test_no_more_than_the_limit_run_at_once() -> None:
    throttle, running, seen = Throttle(3), 0, []
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal running
        with throttle.turn() as turn:
            with lock:
                running += 1
                seen.append(running)
            time.sleep(0.002)
            with lock:
                running -= 1
            turn.well = True

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(60)))
    assert max(seen) <= 3


def test_after_overload_fewer_run_at_once() -> None:
    throttle = Throttle(8)
    with throttle.turn() as turn:
        turn.overloaded = True
    assert throttle.pace.slots == 4
    with throttle.turn() as turn:
        pass  # it broke off without a sign of overload, and without a file: it says nothing
    assert throttle.pace.slots == 4


def test_a_retry_after_holds_the_others_back() -> None:
    """Protocol fact 18: the server's word counts for all of its files."""
    throttle = Throttle(4)
    with throttle.turn() as turn:
        turn.overloaded, turn.pause = True, 0.4
    begun = time.monotonic()
    with throttle.turn():
        assert time.monotonic() - begun >= 0.35


def test_a_retry_after_beyond_the_longest_hold_holds_nobody() -> None:
    """The attempt ends then; its other threads must be able to end too."""
    throttle = Throttle(4, longest_hold=5)
    with throttle.turn() as turn:
        turn.overloaded, turn.pause = True, 6.0
    assert throttle.pace.held_until == float("-inf")
    with throttle.turn():
        pass


def test_a_rate_is_judged_over_whole_windows() -> None:
    now = 0.0
    rate = ByteRate(100, window=10, clock=lambda: now)
    now = 9.9
    assert not rate.too_slow_after(1)
    now = 10.0
    assert rate.too_slow_after(1)
    now = 20.0
    assert not rate.too_slow_after(1000)
    now = 31.0
    assert rate.too_slow_after(1099)


def test_without_a_floor_nothing_is_too_slow() -> None:
    now = 0.0
    rate = ByteRate(0, window=10, clock=lambda: now)
    now = 1e6
    assert not rate.too_slow_after(0)
