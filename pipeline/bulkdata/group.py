"""Who is in a Group, as far as the resource itself tells (protocol fact 15)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.errors import VerificationFailed

_REFERENCE = re.compile(
    r"(?P<base>.*/)?(?P<type>[A-Z][A-Za-z]{1,63})/(?P<id>[A-Za-z0-9\-._~]{1,256})(/_history/[^/]+)?"
)
_ADVICE = "Every export is a full one then"

ACTIVE, INACTIVE, ENDED = "active", "inactive", "ended"


def patients_of(group: Mapping[str, Any], fhir_url: str, now: datetime) -> dict[str, str]:
    """Patient id -> `active`, `inactive` or `ended`, of every member that is a patient.

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
    found: dict[str, str] = {}
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
            state = _state(member, now)
            # The same patient twice: a membership that ended, and one that has not.
            if found.get(match["id"]) != ACTIVE:
                found[match["id"]] = state
    if type(quantity) is int and quantity > members:
        raise VerificationFailed(f"the Group lists {members} of its {quantity} members", _ADVICE)
    return found


def _is_here(base: str | None, fhir_url: str) -> bool:
    return base is None or base.rstrip("/") == fhir_url.rstrip("/")


def _state(member: Mapping[str, Any], now: datetime) -> str:
    if member.get("inactive") is True:
        return INACTIVE
    period = member.get("period")
    end = period.get("end") if isinstance(period, dict) else None
    return ENDED if isinstance(end, str) and _is_over(end, now) else ACTIVE


def _is_over(end: str, now: datetime) -> bool:
    """Whether that moment is past for certain; a day or month without a zone is over a day later."""
    try:
        moment = datetime.fromisoformat(end)
    except ValueError:
        return False
    return moment.tzinfo is not None and moment <= now
