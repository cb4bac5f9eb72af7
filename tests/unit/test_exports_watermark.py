"""The watermark moves by complete exports of the same parameters only (design, Facts; protocol fact 26)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Source
from pipeline.exports.facts import Receipt
from pipeline.exports.owner import Owner
from pipeline.exports.watermark import since_for, watermark


def receipt(mark: str | None, fingerprint: str = "f") -> Receipt:
    return Receipt(
        at=datetime(2026, 1, 31, tzinfo=UTC),
        attempt=1,
        owner=Owner(run_id="r", host="h"),
        transaction_time=mark or "",
        watermark=mark,
        incomplete=() if mark else ("2 lines in quarantine",),
        fingerprint=fingerprint,
        tables={},
        files=0,
        raw_bytes=0,
        decoded_bytes=0,
        deleted=0,
        error_entries={},
    )


def source(profile: str = "smart", **export: Any) -> Source:
    return Source.model_validate(
        {
            "name": "hosp_a",
            "profile": profile,
            "fhir_url": "https://fhir.example.org",
            "auth": {"kind": "none"},
            "export": {"level": "system"} | export,
        }
    )


def test_without_receipts_there_is_none() -> None:
    assert watermark([], "f") is None


def test_it_is_the_greatest_instant_not_the_greatest_text() -> None:
    """Servers write offsets: 23:30-05:00 is later than 02:00Z of the next day."""
    marks = ["2026-01-31T02:00:00Z", "2026-01-30T23:30:00-05:00", "2026-01-31T03:00:00.000+02:00"]
    assert watermark([receipt(each) for each in marks], "f") == "2026-01-30T23:30:00-05:00"


def test_incomplete_exports_and_those_of_other_parameters_do_not_move_it() -> None:
    receipts = [receipt("2026-01-01T00:00:00Z"), receipt(None), receipt("2026-02-01T00:00:00Z", "other")]
    assert watermark(receipts, "f") == "2026-01-01T00:00:00Z"


@given(st.lists(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), min_size=1))
def test_it_never_moves_back_and_is_sent_as_it_came(moments: list[datetime]) -> None:
    texts = [each.replace(microsecond=0, tzinfo=UTC).isoformat() for each in moments]
    marks = [watermark([receipt(each) for each in texts[: n + 1]], "f") for n in range(len(texts))]
    assert marks == sorted(marks, key=lambda each: datetime.fromisoformat(each or ""))
    assert marks[-1] in texts


def test_never_and_an_instant_are_taken_at_their_word() -> None:
    receipts = [receipt("2026-01-31T02:00:00Z")]
    assert since_for(source(since="never"), receipts, "f").value is None
    wanted = "2025-06-01T00:00:00Z"
    assert since_for(source(since=wanted), receipts, "f").value == wanted


def test_auto_sends_the_watermark_where_that_cannot_lose_data() -> None:
    receipts = [receipt("2026-01-31T02:00:00Z")]
    assert since_for(source(), receipts, "f").value == "2026-01-31T02:00:00Z"
    assert since_for(source(), [], "f").value is None


@pytest.mark.parametrize(
    ("profile", "export"),
    [
        ("smart", {"level": "group", "group": "1"}),
        ("azure-fhir", {"level": "patient"}),
        ("azure-fhir-export", {"level": "patient"}),
    ],
)
def test_auto_stays_full_where_since_would_leave_data_out(profile: str, export: dict[str, str]) -> None:
    """Protocol fact 15: a new member of the group would come without history."""
    since = since_for(source(profile, **export), [receipt("2026-01-31T02:00:00Z")], "f")
    assert since.value is None
    assert since.reason.startswith("full")
