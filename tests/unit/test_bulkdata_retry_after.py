"""Pacing: protocol facts 17 and 18, and the hot loop of section 6."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bulkdata.retry_after import LONGEST_WAIT, SHORTEST_WAIT, pace, parse_retry_after, server_clock

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 600 ", 600.0),
        ("1.5", 1.5),
        ("120, 120", 120.0),
        ("86400", LONGEST_WAIT),
        ("Wed, 04 Mar 2026 05:08:07 GMT", 120.0),
        ("Wednesday, 04-Mar-26 05:08:07 GMT", 120.0),
        ("Wed Mar  4 05:08:07 2026", 120.0),
        ("2026-03-04T05:08:07Z", 120.0),
        ("Wed, 04 Mar 2099 05:08:07 GMT", LONGEST_WAIT),
        (str(int(NOW.timestamp()) + 90), 90.0),
        (str((int(NOW.timestamp()) + 90) * 1000), 90.0),
    ],
)
def test_retry_after_is_read_in_every_form_that_servers_send(value: str, seconds: float) -> None:
    """Protocol fact 18: seconds or an HTTP-date; Oracle sends 600 and more."""
    assert parse_retry_after(value, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "-1",
        "soon",
        "NaN",
        "inf",
        "1e400",
        "9" * 5000,
        "99999999999999",
        "Wed, 04 Mar 2026 05:06:06 GMT",
        "Wed, 04 Mar 1970 05:06:06 GMT",
        "Wed, 99 Foo 2026 99:99:99 GMT",
        "1500000000",
        "2026-03-04T05:08:07",
    ],
)
def test_a_retry_after_that_says_nothing_leaves_the_pace_to_backoff(value: str | None) -> None:
    """Section 6: an HTTP-date (here one that has passed) must not become a hot loop."""
    assert parse_retry_after(value, NOW) is None


@STEADY
@given(st.one_of(st.text(max_size=60), st.from_regex(r"-?\d{1,40}(\.\d*)?", fullmatch=True)))
def test_whatever_the_header_holds_the_wait_is_sane(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_WAIT


@STEADY
@given(st.integers(min_value=1, max_value=200_000))
def test_an_http_date_means_the_same_as_its_distance_in_seconds(ahead: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=ahead), usegmt=True)
    assert parse_retry_after(date, NOW) == parse_retry_after(str(ahead), NOW) == min(ahead, LONGEST_WAIT)


@STEADY
@given(
    st.integers(min_value=-5, max_value=10**9),
    st.one_of(st.none(), st.floats(min_value=0, max_value=1e12)),
)
def test_the_pace_is_never_hot_and_never_endless(attempt: int, retry_after: float | None) -> None:
    wait = pace(attempt, retry_after)
    assert SHORTEST_WAIT <= wait <= LONGEST_WAIT


@STEADY
@given(st.integers(min_value=0, max_value=100))
def test_backoff_grows_until_its_cap_where_the_server_says_nothing(attempt: int) -> None:
    """Protocol fact 18: exponential backoff."""
    assert pace(attempt, None, first=3, longest=100) <= pace(attempt + 1, None, first=3, longest=100) <= 100
    assert pace(0, None, first=3) == 3
    assert pace(1, None, first=3) == 6
    assert pace(90, None, first=3, longest=100) == 100


def test_what_the_server_asks_for_wins_over_backoff() -> None:
    assert pace(0, 600, longest=100) == 600
    assert pace(9, 1.0) == 1.0


def test_a_wrong_local_clock_does_not_spoil_an_http_date() -> None:
    """The server's own Date header is the clock; ours is an hour ahead here."""
    ours = NOW + timedelta(hours=1)
    theirs = server_clock("Wed, 04 Mar 2026 05:06:07 GMT", ours)
    assert parse_retry_after("Wed, 04 Mar 2026 05:08:07 GMT", theirs) == 120
    assert server_clock("yesterday", ours) == ours
    assert server_clock(None, ours) == ours
