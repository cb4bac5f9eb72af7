"""Moments as servers write them, at the ends of the calendar too: read as one that can be reckoned with, or
as none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.bulkdata.group import patients_of
from pipeline.bulkdata.manifest import instant_of
from pipeline.bulkdata.sidecar import deletions
from pipeline.exports.watermark import with_overlap
from pipeline.retry_after import retry_after

WEEK = 7 * 86_400
ODD = [
    "9999-12-31T23:59:59-14:00",
    "9999-12-31 23:59:59-14:00",
    "9999-12-31T23:59:59.9999999Z",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00.0000000+00:00",
    "Fri, 31 Dec 9999 23:59:59 -1400",
    "Fri Dec 31 9999 23:59:59 GMT-1400",
    "2026-02-30T00:00:00Z",
    "2026-01-01T24:00:00Z",
    "9999999999999",
]
zones = st.one_of(
    st.just("Z"),
    st.builds("{}{:02}:{:02}".format, st.sampled_from("+-"), st.integers(0, 24), st.integers(0, 60)),
)
instants = st.one_of(
    st.sampled_from(ODD),
    st.builds(
        "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}{}".format,
        st.sampled_from([0, 1, 2, 1969, 2026, 9998, 9999]),
        st.sampled_from([1, 2, 12]),
        st.sampled_from([1, 2, 30, 31]),
        st.sampled_from("T "),
        st.integers(0, 24),
        st.sampled_from([0, 59]),
        st.sampled_from([0, 59, 60]),
        st.sampled_from(["", ".5", ".999999", ".9999999"]),
        zones,
    ),
    st.text("0123456789-:+TZ.", max_size=40),
)


def examples(test: object) -> object:
    for each in ODD:
        test = example(each)(test)
    return test


@given(instants)
@examples
def test_a_deletion_has_a_moment_that_can_be_stored_and_read_or_none(text: str) -> None:
    entry = {"request": {"method": "DELETE", "url": "Patient/p1"}}
    bundles = [
        {"entry": [{**entry, "response": {"lastModified": text}}]},
        {"entry": [entry], "meta": {"lastUpdated": text}},
        {"entry": [entry], "timestamp": text},
    ]
    lines = "".join(json.dumps({"resourceType": "Bundle", **each}) + "\n" for each in bundles)
    own, *of_bundle = deletions([lines.encode()])
    assert own.exact == (own.at is not None)
    assert {each.at for each in of_bundle} == {own.at}
    stored = pa.array([own.at], pa.timestamp("us", "UTC"))
    assert stored.to_pylist() == [own.at]


@given(instants)
@examples
def test_a_transaction_time_can_be_reckoned_with_or_is_none(text: str) -> None:
    instant = instant_of(text)
    if instant is None:
        return
    moment = datetime.fromisoformat(instant)
    assert moment.astimezone(UTC) - timedelta(seconds=WEEK) < moment < moment + timedelta(days=300)
    assert datetime.fromisoformat(with_overlap(instant, WEEK)) < moment
    assert instant_of(instant) == instant


def test_the_ends_of_the_calendar_are_no_transaction_time() -> None:
    """.NET's and Java's placeholders."""
    assert {instant_of(each) for each in ODD if not each.isdigit()} == {None}
    assert instant_of("0002-01-02T00:00:00Z") == "0002-01-02T00:00:00Z"
    assert instant_of("1969-12-31T23:59:59-14:00") == "1969-12-31T23:59:59-14:00"


@given(instants)
@examples
def test_the_end_of_a_membership_and_a_pause_are_read_without_an_error(text: str) -> None:
    now = datetime.now(UTC)
    member = {"entity": {"reference": "Patient/a"}, "period": {"start": text, "end": text}}
    found = patients_of({"resourceType": "Group", "member": [member]}, "https://x.example/r4", now)
    assert found["a"][0] in ("active", "ended", "pending")
    wait = retry_after({"retry-after": text})
    assert wait is None or wait >= 0


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_a_deletion_beyond_the_calendar_is_one_without_a_moment(text: str) -> None:
    bundle = {
        "resourceType": "Bundle",
        "meta": {"lastUpdated": "2026-01-01T00:00:00Z"},
        "entry": [{"request": {"method": "DELETE", "url": "Patient/p1"}, "response": {"lastModified": text}}],
    }
    (found,) = deletions([json.dumps(bundle).encode() + b"\n"])
    assert (found.at, found.exact) == (datetime(2026, 1, 1, tzinfo=UTC), False)
