"""`log.ndjson`: the export as a SMART Bulk Data Export log, version 2, made from the facts.

The format is that of smart-on-fhir/bulk-data-client ("Bulk Data Export Log Items"). Object stores cannot
append, so the log is written once, at the receipt (`log-0002.ndjson` when ingested again).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
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
    events = log_events(session, attempt, manifest, landed, receipt)
    text = io.StringIO()
    writer = ndjson.writer(text, ensure_ascii=False)
    for event in events:
        writer.writerow(event)
    name = "log.ndjson" if attempt.facts.receipt is None else f"log-{attempt.number:04d}.ndjson"
    session.ledger.write_text(attempt.export_id, name, text.getvalue().encode())


def log_events(
    session: Session, attempt: Attempt, manifest: Manifest, landed: Sequence[LandedBatch], receipt: Receipt
) -> list[dict[str, Any]]:
    """The events, oldest first."""
    facts = attempt.facts
    request = require_request(facts)
    intent = next(each for each in facts.intents if each.number == request.intent)
    files = [(batch, file) for batch in landed for file in batch.files]
    kinds = [file.kind for _, file in files]

    def event(at: datetime, event_id: str, **detail: Any) -> dict[str, Any]:
        return {
            "exportId": facts.export_id,
            "timestamp": at.isoformat(),
            "eventId": event_id,
            "eventDetail": detail,
        }

    events = [
        event(
            intent.at,
            "kickoff",
            exportUrl=fhir_base_of(session.source),
            softwareName="fhir-export-pipeline",
            requestParameters=intent.parameters,
            errorCode=None,
            errorBody=None,
            responseHeaders=None,
        )
    ]
    seen = facts.manifest.at if facts.manifest else receipt.at
    events.append(event(seen, "status_complete", transactionTime=manifest.transaction_time))
    events.append(
        event(
            seen,
            "manifest_complete",
            transactionTime=manifest.transaction_time,
            totalOutputFileCount=kinds.count("output"),
            totalDeletedFileCount=kinds.count("deleted"),
            totalErrorFileCount=kinds.count("error"),
            totalManifests=len(manifest.pages),
        )
    )
    for batch, file in sorted(files, key=lambda each: each[0].at):
        events.append(
            event(batch.at, "download_request", fileUrl=file.url, itemType=file.kind, resourceType=file.type)
        )
        events.append(
            event(
                batch.at,
                "download_complete",
                fileUrl=file.url,
                resourceCount=file.lines,
                fileSize=file.decoded_bytes,
            )
        )
    events.append(
        event(
            receipt.at,
            "export_complete",
            files=len(files),
            resources=receipt.rows,
            bytes=receipt.decoded_bytes,
            attachments=None,
            duration=round((receipt.at - intent.at).total_seconds() * 1000),
        )
    )
    return events
