"""When to ask again: the `Retry-After` header in all its spellings, and backoff where it is absent.

For every server that the pipeline speaks to. Pure rules (protocol facts 17, 18 and section 6: an HTTP-date
once became a hot loop at a peer).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 6 * 3600.0
"""Seconds; no server makes us wait longer between two questions."""

SHORTEST_WAIT = 0.5
"""Seconds; not even `Retry-After: 0` makes a hot loop."""

_NUMBER = re.compile(r"\d{1,15}(\.\d{0,15})?")
_YEAR = 365 * 86400.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, between 0 and `LONGEST_WAIT`; None where it does not say.

    Dates count from the answer's own `Date`, so that a wrong clock here does no harm. `headers` are those of
    httpx: names in any case.
    """
    now = http_date(headers.get("date") or "") or datetime.now(UTC)
    return parse_retry_after(headers.get("retry-after"), now)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait, between 0 and `LONGEST_WAIT`; None where the header is absent or nonsense.

    Reads delta-seconds (fractions too), the three HTTP-date forms, an ISO instant, and an epoch number in
    seconds or milliseconds that some gateways send. A time that has passed says nothing (clocks differ):
    None. `now` is timezone-aware.
    """
    if value is None:
        return None
    text = value.strip()
    for candidate in (text, text.partition(",")[0].strip()):  # a proxy may join two headers: "120, 120"
        seconds = _seconds(candidate, now)
        if seconds is not None:
            return min(seconds, LONGEST_WAIT)
    return None


def pace(
    attempt: int,
    retry_after: float | None,
    *,
    first: float = 5.0,
    longest: float = 300.0,
    factor: float = 2.0,
    shortest: float = SHORTEST_WAIT,
) -> float:
    """Seconds until the next request, `attempt` counting from 0.

    What the server asks for is obeyed, within `shortest` and `LONGEST_WAIT`; where it asks for nothing:
    `first * factor ** attempt`, at most `longest`.
    """
    if retry_after is not None:
        return min(max(retry_after, shortest), LONGEST_WAIT)
    steps = min(max(attempt, 0), 64)
    return max(min(first * factor**steps, longest), shortest)


def http_date(text: str) -> datetime | None:
    """An HTTP-date in any of its three forms as an aware datetime, None when it is none."""
    try:
        moment = parsedate_to_datetime(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _seconds(text: str, now: datetime) -> float | None:
    if _NUMBER.fullmatch(text):
        return _from_number(float(text), now.timestamp())
    moment = http_date(text) or _iso_instant(text)
    if moment is None:
        return None
    return _ahead((moment - now).total_seconds())


def _from_number(number: float, now: float) -> float | None:
    if number < _YEAR:
        return number
    epoch = number / 1000 if number > 1e11 else number
    return _ahead(epoch - now) if abs(epoch - now) < _YEAR else None


def _ahead(seconds: float) -> float | None:
    return seconds if seconds > 0 else None


def _iso_instant(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
