"""Pacing: protocol facts 17 and 18, and the hot loop of section 6."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.retry_after import (
    LONGEST_WAIT,
    SHORTEST_WAIT,
    http_date,
    pace,
    parse_retry_after,
    retry_after,
)

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
NAMES = [("Date", "Retry-After"), ("date", "retry-after")]


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


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),
    st.integers(-3600, 86_400),
    st.sampled_from(NAMES),
)
def test_a_date_counts_from_the_servers_own_clock(date: datetime, ahead: int, names: tuple[str, str]) -> None:
    """Protocol fact 18, and a local clock that is years off."""
    now = date.replace(microsecond=0, tzinfo=UTC)
    headers = httpx.Headers(
        {
            names[0]: format_datetime(now, usegmt=True),
            names[1]: format_datetime(now + timedelta(seconds=ahead), usegmt=True),
        }
    )
    assert retry_after(headers) == (min(ahead, LONGEST_WAIT) if ahead > 0 else None)


@pytest.mark.parametrize("date", [None, "yesterday", ""])
def test_without_a_date_of_the_server_our_clock_counts(date: str | None) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    wait = retry_after({"retry-after": until} | ({"date": date} if date is not None else {}))
    assert wait is not None
    assert 90 < wait <= 100


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40))
def test_no_header_breaks_the_reading(value: str) -> None:
    raw = value.encode("latin-1")
    wait = retry_after(httpx.Headers({b"Retry-After": raw, b"Date": raw}))
    assert wait is None or 0 <= wait <= LONGEST_WAIT


@pytest.mark.parametrize(
    "text", ["Wed, 04 Mar 2026 05:06:07 GMT", "Wednesday, 04-Mar-26 05:06:07 GMT", "Wed Mar  4 05:06:07 2026"]
)
def test_an_http_date_has_three_forms(text: str) -> None:
    """RFC 9110 section 5.6.7."""
    assert http_date(text) == NOW


@pytest.mark.parametrize("text", ["", "yesterday", "Wed, 99 Foo 2026 99:99:99 GMT", "120"])
def test_what_is_no_http_date_is_none(text: str) -> None:
    assert http_date(text) is None
