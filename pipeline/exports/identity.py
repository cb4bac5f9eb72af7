"""The id of an export run: `YYYYMMDDTHHMMSSZ`, the scheduled time or the time of the request."""

from __future__ import annotations

import re
from collections.abc import Container
from datetime import UTC, datetime, timedelta

from pipeline.errors import ConfigError

_FORMAT = "%Y%m%dT%H%M%SZ"
_PATTERN = re.compile(r"^\d{8}T\d{6}Z$")


def is_export_id(text: str) -> bool:
    """Whether `text` is a well-formed id of a moment that exists."""
    if not _PATTERN.match(text):
        return False
    try:
        datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return True


def require_export_id(text: str) -> str:
    """`text` itself. Raises `ConfigError` when it is no export id."""
    if not is_export_id(text):
        raise ConfigError(
            f"{text!r} is not the id of an export", "An id is a moment in UTC, written 20260131T020000Z"
        )
    return text


def export_id_at(moment: datetime, taken: Container[str] = ()) -> str:
    """The id for a moment; where it is taken, the next free second."""
    moment = moment.astimezone(UTC).replace(microsecond=0)
    while (text := moment.strftime(_FORMAT)) in taken:
        moment += timedelta(seconds=1)
    return text


def unscheduled_id(moment: datetime, taken: Container[str] = ()) -> str:
    """The same, and never that of a schedule's time, which is a whole minute."""
    found = export_id_at(moment, taken)
    while found.endswith("00Z"):
        found = export_id_at(moment_of(found) + timedelta(seconds=1), taken)
    return found


def moment_of(export_id: str) -> datetime:
    """The moment that an id is made from. Raises `ConfigError` when it is none."""
    return datetime.strptime(require_export_id(export_id), _FORMAT).replace(tzinfo=UTC)
