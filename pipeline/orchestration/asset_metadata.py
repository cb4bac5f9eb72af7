"""What the UI shows of `export_request`, `export_manifest` and `export_receipt`, told now or rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline.exports.facts import Receipt, TableCounts
from pipeline.exports.ledger import Facts
from pipeline.exports.request import require_request
from pipeline.orchestration.names import Names
from pipeline.orchestration.table_metadata import table_metadata

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest
    from pipeline.exports.attempt import Attempt
    from pipeline.exports.session import Session


def request_metadata(facts: Facts) -> dict[str, Any]:
    """Of an accepted request: what was asked for."""
    request = require_request(facts)
    intent = next(each for each in facts.intents if each.number == request.intent)
    return {
        "export_id": facts.export_id,
        "status_url": dg.MetadataValue.text(request.status_url),
        "accepted_at": request.at.isoformat(),
        "parameters": dg.MetadataValue.json(
            {name: value for name, value in intent.parameters.items() if value}
        ),
        "since": intent.since_reason,
        "requests_sent": len(facts.intents),
    }


def manifest_metadata(attempt: Attempt, manifest: Manifest) -> dict[str, Any]:
    """Of a stored manifest: which files, of which type."""
    return {
        "export_id": attempt.export_id,
        "attempt": attempt.number,
        "transactionTime": manifest.transaction_time,
        "pages": len(manifest.pages),
        "files": len(manifest.files),
        "lines": sum(file.count or 0 for file in manifest.of_kind("output")),
        "types": dg.MetadataValue.json(_files_by_type(manifest)),
        "deleted_files": len(manifest.of_kind("deleted")),
        "error_files": len(manifest.of_kind("error")),
        "files_named_again": manifest.repeated,
    }


def receipt_metadata(export_id: str, receipt: Receipt, released: bool) -> dict[str, Any]:
    """Of a receipt: what was published. `released`: whether the job was given back to the server."""
    return {
        "export_id": export_id,
        "attempt": receipt.attempt,
        "transactionTime": receipt.transaction_time,
        "watermark": receipt.watermark or "not moved: " + "; ".join(receipt.incomplete),
        "complete": not receipt.incomplete,
        "rows": receipt.rows,
        "quarantined": receipt.quarantined,
        "files": receipt.files,
        "raw_bytes": receipt.raw_bytes,
        "decoded_bytes": receipt.decoded_bytes,
        "deleted": receipt.deleted,
        "error_entries": dg.MetadataValue.json(receipt.error_entries),
        "released_on_server": released,
    }


def published_metadata(
    session: Session,
    names: Names,
    attempt: Attempt,
    manifest: Manifest,
    table: str,
    tables: Mapping[str, TableCounts],
) -> dict[str, Any]:
    """Of a table, or that the server sent nothing for it."""
    counts = tables.get(table)
    if counts is None:  # the server sent no file of this type: zero rows, and no table yet
        return {"dagster/partition_row_count": 0, "export_id": attempt.export_id, "files": 0}
    return table_metadata(session, names, attempt, manifest, table, counts)


def _files_by_type(manifest: Manifest) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in manifest.of_kind("output"):
        found[file.type or "?"] = found.get(file.type or "?", 0) + 1
    return found
