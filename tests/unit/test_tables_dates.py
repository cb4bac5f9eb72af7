"""`__x_start` and `__x_end` against the standard library's calendar (tables.md rule 5)."""

from __future__ import annotations

import calendar
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables.blocks import BlockCutter
from pipeline.tables.shredder import Shredder

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
FIRST = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // MICROSECOND
LAST = (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC) - EPOCH) // MICROSECOND

Span = tuple[int, int] | None
"""Earliest and latest instant in microseconds since 1970, both inclusive; None for what is no date."""

# hl7.org/fhir/R4/datatypes.html#dateTime, without the second 60; a time may lack its zone and its seconds.
FORM = re.compile(
    r"(?P<year>[0-9]{4})(-(?P<month>0[1-9]|1[0-2])(-(?P<day>0[1-9]|[12][0-9]|3[01])"
    r"(T(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9])(:(?P<second>[0-5][0-9])(\.(?P<fraction>[0-9]+))?)?"
    r"(?P<zone>Z|[+-]((0[0-9]|1[0-3]):[0-5][0-9]|14:00))?)?)?)?"
)


def span(text: str) -> Span:
    """The oracle."""
    found = FORM.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (
        None if found[name] is None else int(found[name])
        for name in ("year", "month", "day", "hour", "minute", "second")
    )
    assert year is not None
    if year == 0 or (day is not None and day > calendar.monthrange(year, month or 1)[1]):
        return None
    start = (
        datetime(year, month or 1, day or 1, hour or 0, minute or 0, second or 0, tzinfo=UTC) - EPOCH
    ) // MICROSECOND
    if month is None:
        width = timedelta(days=366 if calendar.isleap(year) else 365)
    elif day is None:
        width = timedelta(days=calendar.monthrange(year, month)[1])
    elif hour is None:
        width = timedelta(days=1)
    else:
        width = timedelta(minutes=1) if second is None else timedelta(seconds=1)
    microseconds = width // MICROSECOND
    if (fraction := found["fraction"]) is not None:
        start += int(fraction[:6].ljust(6, "0"))
        microseconds = 10 ** max(0, 6 - len(fraction))
    zone = found["zone"]
    if zone not in (None, "Z"):
        hours, minutes = zone[1:].split(":")
        offset = timedelta(hours=int(hours), minutes=int(minutes)) // MICROSECOND
        start += offset if zone[0] == "-" else -offset
    end = start + microseconds - 1
    return (start, end) if start >= FIRST and end <= LAST else None


# --- what the tables say --------------------------------------------------------------------------------


def shredded(resource_type: str, lines: Sequence[bytes]) -> pa.Table:
    cutter = BlockCutter(1 << 30)
    shredder = Shredder(resource_type, "20260101T020000Z")
    tables = []
    for blocks in (cutter.add([b"\n".join(lines)], "a.ndjson"), cutter.rest()):
        for block in blocks:
            found = shredder.shred(block)
            assert len(found.bad.heads) == 0
            tables.append(found.table)
    return pa.concat_tables(tables)


def escaped(text: str, how: int) -> bytes:
    """JSON in one of three spellings: plain, escapes for what is not ASCII, escapes for everything."""
    if how == 2:
        return ("".join(['"', *(f"\\u{unit:04x}" for unit in utf16(text)), '"'])).encode()
    return json.dumps(text, ensure_ascii=how == 1).encode()


def utf16(text: str) -> list[int]:
    data = text.encode("utf-16-be")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def spans(start: pa.ChunkedArray, end: pa.ChunkedArray) -> list[Span]:
    assert start.type == end.type == pa.timestamp("us", "UTC")
    pairs = zip(start.cast(pa.int64()).to_pylist(), end.cast(pa.int64()).to_pylist(), strict=True)
    found: list[Span] = []
    for a, b in pairs:
        assert (a is None) == (b is None)
        found.append(None if a is None else (a, b))
    return found


def check(texts: Sequence[str], how: int = 0) -> None:
    """As a date, as a dateTime inside a structure, and as the instants of a list."""
    parts = [escaped(text, how) for text in texts]
    lines = [
        b'{"resourceType":"Patient","birthDate":%s,"identifier":[{"period":{"end":%s}}]}' % (part, part)
        for part in parts
    ]
    table = shredded("Patient", lines)
    expected = [span(text) for text in texts]
    assert table["birthDate"].to_pylist() == list(texts)
    assert spans(table["__birthDate_start"], table["__birthDate_end"]) == expected
    period = pa.chunked_array([chunk.values.field("period") for chunk in table["identifier"].chunks])
    assert [each["end"] for each in period.to_pylist()] == list(texts)
    inner = [
        pa.chunked_array([chunk.field(f"__end_{side}") for chunk in period.chunks])
        for side in ("start", "end")
    ]
    assert spans(*inner) == expected
    assert "__start_start" not in [field.name for field in period.type]


ZONES = st.one_of(
    st.sampled_from(
        ["", "Z", "+00:00", "-00:00", "+14:00", "-14:00", "+05:30", "-12:45", "+13:59", "+14:01"]
    ),
    st.builds("{}{:02}:{:02}".format, st.sampled_from("+-"), st.integers(0, 15), st.integers(0, 60)),
)
YEARS = st.one_of(
    st.sampled_from([0, 1, 2, 1582, 1900, 1969, 1970, 2000, 2024, 9998, 9999]), st.integers(0, 9999)
)
DAYS = st.one_of(
    st.builds("{:04}-{:02}-{:02}".format, YEARS, st.integers(0, 13), st.integers(0, 32)),
    st.builds("{:04}-{}".format, YEARS, st.sampled_from(["01-01", "02-28", "02-29", "12-31"])),
)
CLOCKS = st.one_of(
    st.builds("{:02}:{:02}:{:02}".format, st.integers(0, 24), st.integers(0, 60), st.integers(0, 61)),
    st.builds("{:02}:{:02}".format, st.integers(0, 24), st.integers(0, 60)),
    st.sampled_from(["00:00:00", "23:59:59", "23:59:60", "24:00:00"]),
)
FRACTIONS = st.one_of(
    st.just(""),
    st.text("0123456789", min_size=1, max_size=9).map(".{}".format),
    st.sampled_from([".", ".000000", ".999999", ".9999999", ".999999999", ".0000001", "." + "1" * 40]),
)
DATES = st.one_of(
    YEARS.map("{:04}".format),
    st.builds("{:04}-{:02}".format, YEARS, st.integers(0, 13)),
    DAYS,
    st.builds("{}T{}{}{}".format, DAYS, CLOCKS, FRACTIONS, ZONES),
)


@st.composite
def nearly(draw: st.DrawFn) -> str:
    """A date with a character too much, too few or changed."""
    text: str = draw(DATES)
    at = draw(st.integers(0, len(text)))
    instead = draw(
        st.sampled_from(["", *"0129-:.TZtz+ /\0\u0662\u2212\uff11", "\U0001f600", "Z", "T", "-01", "+01:00"])
    )
    return f"{text[:at]}{instead}{text[at + draw(st.integers(0, 2)) :]}"


@given(st.lists(DATES, min_size=1, max_size=40), st.integers(0, 2))
@settings(max_examples=100)
def test_dates_of_every_precision_mean_what_the_calendar_says(texts: list[str], how: int) -> None:
    check(texts, how)


@given(st.lists(st.one_of(nearly(), st.text(max_size=12)), min_size=1, max_size=40), st.integers(0, 2))
@settings(max_examples=100)
def test_a_text_that_is_no_date_is_kept_and_has_no_instants(texts: list[str], how: int) -> None:
    check(texts, how)


def test_every_month_of_every_year() -> None:
    """The rule of leap years for all of them."""
    check([f"{year:04}-{month:02}" for year in range(10_000) for month in (2, 12)])
    check([f"{year:04}-02-{day}" for year in range(10_000) for day in (28, 29, 30)])


def test_every_day_of_odd_years() -> None:
    years = (0, 1, 4, 100, 400, 1600, 1900, 1969, 1970, 1972, 2000, 2023, 2024, 2100, 9996, 9999)
    check([f"{year:04}-{month:02}-{day:02}" for year in years for month in range(14) for day in range(33)])


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2020", "2020-01-01T00:00:00", "2020-12-31T23:59:59.999999"),
        ("2020-02", "2020-02-01T00:00:00", "2020-02-29T23:59:59.999999"),
        ("1900-02", "1900-02-01T00:00:00", "1900-02-28T23:59:59.999999"),
        ("1969-12-31", "1969-12-31T00:00:00", "1969-12-31T23:59:59.999999"),
        ("0001", "0001-01-01T00:00:00", "0001-12-31T23:59:59.999999"),
        ("9999", "9999-01-01T00:00:00", "9999-12-31T23:59:59.999999"),
        ("2024-02-29T12:30:15Z", "2024-02-29T12:30:15", "2024-02-29T12:30:15.999999"),
        ("2024-02-29T12:30:15.5", "2024-02-29T12:30:15.5", "2024-02-29T12:30:15.599999"),
        ("2024-02-29T12:30:15.123456789Z", "2024-02-29T12:30:15.123456", "2024-02-29T12:30:15.123456"),
        ("2024-01-01T00:30:00+14:00", "2023-12-31T10:30:00", "2023-12-31T10:30:00.999999"),
        ("2023-12-31T23:30:00-14:00", "2024-01-01T13:30:00", "2024-01-01T13:30:00.999999"),
        ("0001-01-01T14:00:00+14:00", "0001-01-01T00:00:00", "0001-01-01T00:00:00.999999"),
        ("0001-01-01T13:59:59+14:00", None, None),
        ("9999-12-31T09:59:59-14:00", "9999-12-31T23:59:59", "9999-12-31T23:59:59.999999"),
        ("9999-12-31T10:00:00-14:00", None, None),
        ("0000", None, None),
        ("2023-02-29", None, None),
        ("2016-12-31T23:59:60Z", None, None),
        ("2024-02-29T24:00:00Z", None, None),
        ("2024-02-29T12:00:00+14:01", None, None),
        ("2024-02-29T12:00:00.Z", None, None),
        ("2024-02-29 12:00:00Z", None, None),
        ("20240229", None, None),
        ("", None, None),
    ],
)
def test_by_hand(text: str, start: str | None, end: str | None) -> None:
    """The oracle itself, too."""

    def microseconds(each: str) -> int:
        return (datetime.fromisoformat(each).replace(tzinfo=UTC) - EPOCH) // MICROSECOND

    expected = None if start is None or end is None else (microseconds(start), microseconds(end))
    assert span(text) == expected
    check([text])


def test_a_list_of_dates_has_lists_of_instants_aligned_with_it() -> None:
    line = (
        b'{"resourceType":"ServiceRequest","occurrenceTiming":'
        b'{"event":["2020",null,"no date","2020-02-29T01:00:00+01:00"],"_event":[null,{"id":"e"},null,null]}}'
    )
    empty = b'{"resourceType":"ServiceRequest","occurrenceTiming":{"event":[]}}'
    absent = b'{"resourceType":"ServiceRequest","occurrenceTiming":{}}'
    found = [row["occurrenceTiming"] for row in shredded("ServiceRequest", [line, empty, absent]).to_pylist()]
    at = datetime(2020, 2, 29, tzinfo=UTC)
    year = datetime(2020, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert found[0]["__event_start"] == [datetime(2020, 1, 1, tzinfo=UTC), None, None, at]
    assert found[0]["__event_end"] == [year, None, None, at + timedelta(seconds=1) - MICROSECOND]
    assert [each["__event_start"] for each in found[1:]] == [[], None]
    assert [each["__event_end"] for each in found[1:]] == [[], None]


def test_times_and_other_texts_are_no_dates() -> None:
    """Only date, dateTime and instant have instants; `time`, an id and a string do not."""
    line = (
        b'{"resourceType":"Observation","id":"2020","valueTime":"12:00:00","valueString":"2020",'
        b'"issued":"2020"}'
    )
    names = shredded("Observation", [line]).column_names
    assert [name for name in names if name.startswith("__")] == ["__issued_start", "__issued_end"]
