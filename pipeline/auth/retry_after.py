"""The Retry-After header (RFC 9110 section 10.2.3)."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?", re.ASCII)


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait, zero or more, as the server asks: a number or an HTTP-date (protocol fact 18).

    A date is measured against the answer's own Date, so that a wrong clock here does no harm. None when the
    header is missing or means nothing.
    """
    value = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until = http_date(value)
    if until is None:
        return None
    since = http_date(headers.get("Date", "")) or datetime.now(UTC)
    wait = (until - since).total_seconds()
    return max(0.0, wait) if math.isfinite(wait) else None


def http_date(value: str) -> datetime | None:
    """An HTTP-date as an aware datetime, None when it is not one."""
    try:
        parsed = parsedate_to_datetime(value)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
