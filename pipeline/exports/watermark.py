"""Where the next `_since` starts, and whether one may be sent at all (design, Facts; protocol fact 26)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pipeline.config import Source
from pipeline.exports.facts import Receipt

_WALKS_CHANGED_PATIENTS = ("apim-smart", "azure-fhir", "azure-fhir-export")
"""Servers that export with `_since` only the compartments of changed patients (protocol section 6)."""


@dataclass(frozen=True)
class Since:
    """The `_since` to send, or none, and why in words."""

    value: str | None
    reason: str


def watermark(receipts: Iterable[Receipt], fingerprint: str) -> str | None:
    """The greatest instant that is published, complete and of the same parameters, if any."""
    marks = [
        receipt.watermark
        for receipt in receipts
        if receipt.watermark is not None and receipt.fingerprint == fingerprint
    ]
    return max(marks, key=datetime.fromisoformat, default=None)


def moves_a_watermark(source: Source) -> bool:
    """Whether a later export of this source may begin where this one ends."""
    level = source.export.level
    return (
        source.export.since == "auto"
        and level != "group"
        and not (level == "patient" and source.profile in _WALKS_CHANGED_PATIENTS)
    )


def since_for(source: Source, receipts: Iterable[Receipt], fingerprint: str) -> Since:
    """What `since` of the configuration comes to for the next export.

    `auto` sends the watermark only where that cannot lose data: a Group export with `_since` leaves out the
    history of patients who joined the group (protocol fact 15), and some servers walk changed patients only.
    """
    wanted = source.export.since
    if wanted == "never":
        return Since(None, "full: since is never")
    if wanted != "auto":
        return Since(wanted, "the instant in the configuration")
    if source.export.level == "group":
        return Since(None, "full: with _since a new member of the group would come without history")
    if source.export.level == "patient" and source.profile in _WALKS_CHANGED_PATIENTS:
        return Since(None, "full: with _since this server leaves out changes of unchanged patients")
    mark = watermark(receipts, fingerprint)
    if mark is None:
        return Since(None, "full: no complete export of the same parameters yet")
    return Since(mark, "the transactionTime of the last complete export")
