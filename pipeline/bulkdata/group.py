"""Who is in a Group, as far as the resource itself tells (protocol fact 15)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.errors import VerificationFailed

_REFERENCE = re.compile(
    r"(?P<base>.*/)?(?P<type>[A-Z][A-Za-z]{1,63})/(?P<id>[A-Za-z0-9\-._~]{1,256})(/_history/[^/]+)?"
)
_ADVICE = "Every export is a full one then"

_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")

ACTIVE, INACTIVE, ENDED, PENDING = "active", "inactive", "ended", "pending"
_BEST = (ACTIVE, PENDING, INACTIVE, ENDED)


def patients_of(group: Mapping[str, Any], fhir_url: str, now: datetime) -> dict[str, tuple[str, str]]:
    """Patient id -> `active`, `inactive`, `ended` or `pending`, and the period of the membership as text (of
    all of them where there are several), of every member that is a patient.

    Whether a server exports inactive members is its own choice, so they are told apart and not left out.
    Raises VerificationFailed for a Group that does not list its members, or not all: who has joined since
    cannot be told then. The error names nobody.
    """
    if group.get("resourceType") != "Group":
        raise VerificationFailed("the server's answer is no Group", _ADVICE)
    listed = group.get("member")
    quantity = group.get("quantity")
    if not isinstance(listed, list) or not listed:
        if quantity == 0 and type(quantity) is int:
            return {}
        raise VerificationFailed("the Group lists no members", _ADVICE)
    found: dict[str, list[tuple[str, str]]] = {}
    members = 0
    for member in listed:
        entity = member.get("entity") if isinstance(member, dict) else None
        reference = entity.get("reference") if isinstance(entity, dict) else None
        match = _REFERENCE.fullmatch(reference) if isinstance(reference, str) else None
        if match is None or not _is_here(match["base"], fhir_url):
            raise VerificationFailed("the Group names members otherwise than by id", _ADVICE)
        if match["type"] == "Group":
            raise VerificationFailed("the Group has other groups in it", _ADVICE)
        members += 1
        if match["type"] == "Patient":
            found.setdefault(match["id"], []).append(_membership(member, now))
    if type(quantity) is int and quantity > members:
        raise VerificationFailed(f"the Group lists {members} of its {quantity} members", _ADVICE)
    # The same patient twice: a membership that ended, and one that has not.
    return {
        patient: (
            min((state for state, _ in each), key=_BEST.index),
            ";".join(sorted({period for _, period in each if period})),
        )
        for patient, each in found.items()
    }


def _is_here(base: str | None, fhir_url: str) -> bool:
    return base is None or base.rstrip("/") == fhir_url.rstrip("/")


def _membership(member: Mapping[str, Any], now: datetime) -> tuple[str, str]:
    period = member.get("period")
    said = period if isinstance(period, dict) else {}
    start, end = (each if isinstance(each := said.get(name), str) else "" for name in ("start", "end"))
    text = f"{start}/{end}" if start or end else ""
    if member.get("inactive") is True:
        return INACTIVE, text
    if end and _is_past(end, now, last=True):
        return ENDED, text
    return PENDING if start and not _is_past(start, now, last=False) else ACTIVE, text


def _is_past(text: str, now: datetime, *, last: bool) -> bool:
    """Whether a moment is past; of a year, month or day its begin or its `last` day is meant, and it is past
    when it is past everywhere, a day later. What is no time is taken as one that changes nothing."""
    if match := _DATE.fullmatch(text):
        year, month, day = (int(each or 0) for each in match.groups())
        try:
            if day:
                begin = datetime(year, month, day, tzinfo=UTC)
                over = begin + timedelta(days=1)
            elif month:
                begin = datetime(year, month, 1, tzinfo=UTC)
                over = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
            else:
                begin, over = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
            return (over if last else begin) + timedelta(days=1) <= now
        except (ValueError, OverflowError):
            return not last
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return not last
    return moment <= now if moment.tzinfo else not last
