"""Who is in a Group, and when that cannot be told (protocol fact 15)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.group import patients_of
from pipeline.errors import VerificationFailed
from pipeline.exports.members import Member

BASE = "https://fhir.example.org/r4"
NOW = datetime(2026, 1, 10, tzinfo=UTC)


def member(reference: str, **others: Any) -> dict[str, Any]:
    return {"entity": {"reference": reference}} | others


def group(*members: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"resourceType": "Group", "actual": True, "member": list(members)} | others


def told(*members: dict[str, Any], **others: Any) -> dict[str, str]:
    """Patient -> standing."""
    found = patients_of(group(*members, **others), BASE, NOW)
    return {patient: standing for patient, (standing, _) in found.items()}


@pytest.mark.parametrize("reference", ["Patient/a", f"{BASE}/Patient/a", "Patient/a/_history/3"])
def test_patients_are_named_relative_or_absolute(reference: str) -> None:
    assert told(member(reference)) == {"a": "active"}


def test_members_that_are_no_patients_are_none() -> None:
    assert told(member("Patient/a"), member("Practitioner/b"), member("Device/c")) == {"a": "active"}


def test_a_membership_that_is_over_or_inactive_is_told_apart() -> None:
    """Who comes back counts as new then."""
    found = told(
        member("Patient/a", inactive=True),
        member("Patient/b", period={"end": "2026-01-09T00:00:00Z"}),
        member("Patient/c", period={"end": "2026-01-11T00:00:00Z"}),
        member("Patient/d", period={"end": "2025-12"}),
        member("Patient/e", period={"end": "2026-01-09"}),
        member("Patient/f", period={"end": "2026-01-08"}),
        member("Patient/g", period={"end": "2026"}),
        member("Patient/h", period={"start": "2026-01-12", "end": "2026-02"}),
        member("Patient/i", period={"start": "2026-01-09T23:00:00Z"}),
        member("Patient/j", period={"start": "soon", "end": "later"}),
    )
    assert found == {
        "a": "inactive", "b": "ended", "c": "active", "d": "ended", "e": "active",
        "f": "ended", "g": "active", "h": "pending", "i": "active", "j": "active",
    }  # fmt: skip


def test_whose_period_changes_counts_as_new() -> None:
    """A membership that was over by its date, and was made longer, was none in between."""
    periods = [{"end": "2026-03"}, {"end": "2026-04"}, {"start": "2026-01-01", "end": "2026-04"}, {}]
    told = [patients_of(group(member("Patient/a", period=each)), BASE, NOW)["a"] for each in periods]
    assert [standing for standing, _ in told] == ["active"] * 4
    assert len({Member("a", *each).digest for each in told}) == 4


@given(
    st.text(max_size=12)
    | st.from_regex(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\d(Z|\+14:00)?)?)?)?", fullmatch=True)
)
def test_any_text_in_a_period_is_borne(text: str) -> None:
    for period in ({"start": text}, {"end": text}, {"start": text, "end": text}):
        assert told(member("Patient/a", period=period))["a"] in ("active", "ended", "pending")


@pytest.mark.parametrize("over_first", [True, False])
def test_of_two_memberships_the_active_one_counts(over_first: bool) -> None:
    over, again = member("Patient/a", inactive=True), member("Patient/a")
    assert told(*([over, again] if over_first else [again, over])) == {"a": "active"}


def test_an_empty_group_says_so() -> None:
    assert patients_of({"resourceType": "Group", "quantity": 0}, BASE, NOW) == {}


@pytest.mark.parametrize(
    "broken",
    [
        {"resourceType": "Patient"},
        {"resourceType": "Group"},
        {"resourceType": "Group", "quantity": False},
        {"resourceType": "Group", "actual": False, "characteristic": [{}]},
        group(member("Group/other")),
        group(member("Patient/a"), {"entity": {"identifier": {"value": "secret-mrn"}}}),
        group(member("https://other.example.org/r4/Patient/secret-mrn")),
        group(member("urn:uuid:secret-mrn")),
        group({}),
        group(member("Patient/a"), quantity=2),
        {"resourceType": "Group", "member": ["secret-mrn"]},
    ],
)
def test_a_group_that_does_not_list_all_its_members_is_refused_and_names_nobody(broken: Any) -> None:
    with pytest.raises(VerificationFailed) as refused:
        patients_of(broken, BASE, NOW)
    assert "secret-mrn" not in str(refused.value)
