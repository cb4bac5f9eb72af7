"""What there is to tell of an export, by its facts."""

from __future__ import annotations

from pipeline.config import Occasion
from pipeline.exports.ledger import Facts
from pipeline.exports.overview import ExportSummary
from pipeline.notify.notice import Notice

_ENDED_BY_ITSELF: dict[str, Occasion] = {"held": "held", "rejected": "rejected", "gone": "gone"}


def notice_of(facts: Facts, summary: ExportSummary) -> Notice | None:
    """What somebody should know of this export now; None when nothing is wrong, or an operator ended it.

    A job that was cancelled at its deadline is told as `gone`: it ended without data, by itself.
    """
    state = summary.state
    if state == "damaged":
        return _notice("damaged", summary, ",".join(facts.damaged), None)
    receipt = facts.receipt
    if receipt is not None:
        if state == "published" and receipt.incomplete:
            return _notice("incomplete", summary, f"attempt {receipt.attempt}", facts)
        return None
    closing = facts.closings.get(state)
    event = _ENDED_BY_ITSELF.get(state)
    if event is None and closing is not None and closing.cause:
        event = "gone"
    if event is None or closing is None:
        return None
    return _notice(event, summary, f"{state} {closing.at.isoformat()}", facts)


def _notice(event: Occasion, summary: ExportSummary, instance: str, facts: Facts | None) -> Notice:
    from pipeline.exports.session import utc_now

    at = utc_now()
    if facts is not None and facts.receipt is not None:
        at = facts.receipt.at
    elif facts is not None and summary.state in facts.closings:
        at = facts.closings[summary.state].at
    return Notice(
        event=event,
        source=summary.source,
        export_id=summary.export_id,
        state=summary.state,
        reason=summary.reason,
        next_step=summary.next_step,
        at=at,
        instance=instance,
    )
