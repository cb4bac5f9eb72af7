"""Who is in a Group, and when that cannot be told (protocol fact 15)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.bulkdata.group import patients_of
from pipeline.errors import VerificationFailed

BASE = "https://fhir.example.org/r4"
NOW = datetime(2026, 1, 10, tzinfo=UTC)


def member(reference: str, **others: Any) -> dict[str, Any]:
    return {"entity": {"reference": reference}} | others


def group(*members: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"resourceType": "Group", "actual": True, "member": list(members)} | others


def told(*members: dict[str, Any], **others: Any) -> dict[str, str]:
    return patients_of(group(*members, **others), BASE, NOW)


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
    )
    assert found == {"a": "inactive", "b": "ended", "c": "active", "d": "active"}


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
