"""What happened to an export run, in the order of time and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from pipeline.exports.facts import SUPPLEMENT
from pipeline.exports.ledger import Facts


@dataclass(frozen=True)
class Event:
    """Something that happened to an export run."""

    at: datetime
    what: str


def history(facts: Facts) -> tuple[Event, ...]:
    """Everything that the facts tell, oldest first; no URL with a query, no content."""
    events = chain(_asked(facts), _ingested(facts), _decided(facts))
    return tuple(sorted(events, key=lambda event: event.at))


def _asked(facts: Facts) -> Iterator[Event]:
    for intent in facts.intents:
        yield Event(intent.at, f"kick-off request {intent.number} by run {intent.owner.run_id}")
    for unprepared in facts.unprepared:
        what = f"kick-off request {unprepared.intent} could not be prepared: {unprepared.reason}"
        yield Event(unprepared.at, what)
    for number, refused in facts.intent_errors.items():
        yield Event(refused.at, f"kick-off request {number} brought no job: {refused.reason}")
    if facts.request:
        yield Event(facts.request.at, f"accepted by the server (request {facts.request.intent})")
    for look in facts.looks:
        yield Event(look.at, f"a status request failed: {look.reason}")
    if facts.manifest:
        yield Event(facts.manifest.at, f"manifest stored, transactionTime {facts.manifest.transaction_time}")
    if facts.released:
        yield Event(facts.released.at, f"released on the server: {facts.released.reason}")


def _ingested(facts: Facts) -> Iterator[Event]:
    for claim in facts.claims:
        yield Event(claim.at, f"ingest attempt {claim.number} by run {claim.owner.run_id}")
    for number, failed in facts.attempt_errors.items():
        yield Event(failed.at, f"attempt {number} failed ({failed.kind}): {failed.reason}")
    for publication in facts.publications:
        yield Event(publication.at, f"tables committed by attempt {publication.attempt}")
    for receipt in facts.receipts:
        bad = f", {receipt.quarantined} lines in quarantine" if receipt.quarantined else ""
        yield Event(receipt.at, f"receipt of attempt {receipt.attempt}: {receipt.rows} rows verified{bad}")


def _decided(facts: Facts) -> Iterator[Event]:
    for held in facts.helds.values():
        yield Event(held.at, f"held: {held.reason}")
    for retry in facts.retries.values():
        as_it_is = ", taken as it is" if retry.accept_partial else ""
        yield Event(retry.at, f"retry by hand after attempt {retry.after_attempt}{as_it_is}")
    for name, closing in facts.closings.items():
        if name != "held":
            yield Event(closing.at, f"{name}: {closing.reason}")
    if facts.succeeds:
        why = "for what was left out by" if facts.succeeds.supplement_of else "to ask again for"
        yield Event(
            facts.succeeds.at, f"opened {why} {facts.succeeds.supplement_of or facts.succeeds.export_id}"
        )
    if facts.successor:
        completes = facts.receipt or facts.successor.cause == SUPPLEMENT
        does = "asks for what was left out" if completes else "asks again"
        yield Event(facts.successor.at, f"export run {facts.successor.export_id} {does}")
