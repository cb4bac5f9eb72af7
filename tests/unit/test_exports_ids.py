"""The id of an export run is a moment in UTC that nobody else has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.exports.identity import export_id_at, is_export_id, require_export_id

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)).map(lambda each: each.replace(tzinfo=UTC))
ZONES = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(MOMENTS, ZONES)
def test_an_id_names_its_second_whatever_the_zone(moment: datetime, zone: timezone) -> None:
    text = export_id_at(moment.astimezone(zone))
    assert is_export_id(text)
    assert require_export_id(text) == text
    read = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert read == moment.replace(microsecond=0)


@given(MOMENTS, st.integers(0, 20), st.sets(st.integers(0, 20)))
def test_a_taken_id_gives_the_next_free_second(moment: datetime, run: int, others: set[int]) -> None:
    moment = moment.replace(microsecond=0)
    taken = {export_id_at(moment + timedelta(seconds=n)) for n in {*range(run), *others}}
    found = export_id_at(moment, taken)
    free = next(n for n in range(100) if n not in {*range(run), *others})
    assert found == export_id_at(moment + timedelta(seconds=free))
    assert found not in taken


@given(st.lists(MOMENTS, min_size=2, max_size=2, unique=True))
def test_ids_sort_as_time_does(moments: list[datetime]) -> None:
    earlier, later = sorted(moments)
    assert export_id_at(earlier) <= export_id_at(later)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20260131",
        "20260131T020000",
        "2026-01-31T02:00:00Z",
        "20260230T020000Z",
        "20260131T250000Z",
        "20260131T020000Z\n",
        " 20260131T020000Z",
        "20260131T020000Z/..",
        "../20260131T020000Z",
        "２０２６０１３１T020000Z",
    ],
)
def test_what_is_no_moment_is_no_id(text: str) -> None:
    assert not is_export_id(text)
    with pytest.raises(ConfigError, match="not the id"):
        require_export_id(text)
