"""`log.ndjson`: the export as a SMART Bulk Data Export log, version 2, made from the facts.

The format is that of smart-on-fhir/bulk-data-client ("Bulk Data Export Log Items"). Object stores cannot
append, so the log is written once, at the receipt (`log-0002.ndjson` when ingested again).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import ndjson

from pipeline.exports.attempt import Attempt
from pipeline.exports.connection import fhir_base_of
from pipeline.exports.facts import LandedBatch, Receipt
from pipeline.exports.request import require_request
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest


def write_log(
    session: Session, attempt: Attempt, manifest: Manifest, landed: Sequence[LandedBatch], receipt: Receipt
) -> None:
    """Writes the log of a published export beside its facts."""
    held = io.BytesIO()
    # A StringIO takes four times the memory.
    text = io.TextIOWrapper(held, encoding="utf-8", newline="", write_through=True)
    writer = ndjson.writer(text, ensure_ascii=False)
    for event in log_events(session, attempt, manifest, landed, receipt):
        writer.writerow(event)
    name = "log.ndjson" if attempt.facts.receipt is None else f"log-{attempt.number:04d}.ndjson"
    session.ledger.write_text(attempt.export_id, name, held.getvalue())


def log_events(
    session: Session, attempt: Attempt, manifest: Manifest, landed: Sequence[LandedBatch], receipt: Receipt
) -> Iterator[dict[str, Any]]:
    """The events, oldest first; one batch at a time is looked at."""
    facts = attempt.facts
    request = require_request(facts)
    intent = next(each for each in facts.intents if each.number == request.intent)
    kinds = Counter(file.kind for batch in landed for file in batch.files)

    def event(at: datetime, event_id: str, **detail: Any) -> dict[str, Any]:
        return {
            "exportId": facts.export_id,
            "timestamp": at.isoformat(),
            "eventId": event_id,
            "eventDetail": detail,
        }

    yield event(
        intent.at,
        "kickoff",
        exportUrl=fhir_base_of(session.source),
        softwareName="fhir-export-pipeline",
        requestParameters=intent.parameters,
        errorCode=None,
        errorBody=None,
        responseHeaders=None,
    )
    seen = facts.manifest.at if facts.manifest else receipt.at
    yield event(seen, "status_complete", transactionTime=manifest.transaction_time)
    yield event(
        seen,
        "manifest_complete",
        transactionTime=manifest.transaction_time,
        totalOutputFileCount=kinds["output"],
        totalDeletedFileCount=kinds["deleted"],
        totalErrorFileCount=kinds["error"],
        totalManifests=len(manifest.pages),
    )
    landed_at = [batch.at for batch in landed]
    for position in sorted(range(len(landed)), key=landed_at.__getitem__):
        batch = landed[position]
        for file in batch.files:
            yield event(
                batch.at, "download_request", fileUrl=file.url, itemType=file.kind, resourceType=file.type
            )
            yield event(
                batch.at,
                "download_complete",
                fileUrl=file.url,
                resourceCount=file.lines,
                fileSize=file.decoded_bytes,
            )
    yield event(
        receipt.at,
        "export_complete",
        files=kinds.total(),
        resources=receipt.rows,
        bytes=receipt.decoded_bytes,
        attachments=None,
        duration=round((receipt.at - intent.at).total_seconds() * 1000),
    )
