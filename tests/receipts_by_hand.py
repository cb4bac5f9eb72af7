"""A receipt as an ingest leaves it, of nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipeline.exports.facts import Receipt
from pipeline.exports.owner import Owner

OWNER = Owner(run_id="r", host="h")


def receipt_of(transaction_time: str, *, complete: bool = True, **others: Any) -> Receipt:
    """Complete ones move the watermark to their `transactionTime`; the others had lines in quarantine."""
    members: dict[str, Any] = {
        "at": datetime(2026, 2, 1, 2, tzinfo=UTC),
        "attempt": 1,
        "owner": OWNER,
        "transaction_time": transaction_time,
        "watermark": transaction_time if complete else None,
        "incomplete": () if complete else ("2 lines are in quarantine",),
        "fingerprint": "f",
        "tables": {},
        "error_entries": {},
        **dict.fromkeys(("files", "raw_bytes", "decoded_bytes", "deleted"), 0),
    }
    return Receipt(**(members | others))
