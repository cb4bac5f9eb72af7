"""Lineage: `_lineage`, one row per source file, and `_exports`, one row per export that is whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.exports.attempt import Attempt
from pipeline.exports.facts import FileRows, LandedBatch, LandedFile, Publication, StagedBatch
from pipeline.exports.quarantine import UNTYPED
from pipeline.exports.session import Session
from pipeline.exports.staging import SIDECARS

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from pipeline.bulkdata.manifest import Manifest


_ROWS = 2_000
"""Rows of `_lineage` that are in memory at a time: about 5 MB."""


def lineage_schema() -> pa.Schema:
    """Columns of `_lineage`: which bytes of which file of which manifest became which rows, by which run."""
    import pyarrow as pa

    text, number, when = pa.string(), pa.int64(), pa.timestamp("us", "UTC")
    share = pa.struct([("table_name", text), ("rows", number), ("quarantined", number)])
    return pa.schema(
        [
            ("source_file", text),  # what `_source_file` in the tables names
            ("kind", text),
            ("manifest_index", number),
            ("resource_type", text),
            ("table_name", text),
            ("url", text),
            ("etag", text),
            ("sha256", text),
            ("decoded_bytes", number),
            ("manifest_count", number),
            ("lines", number),
            ("rows", number),
            ("quarantined", number),
            ("tables", pa.list_(share)),  # where its lines went, also those of another type than declared
            ("warnings", pa.list_(text)),
            ("raw_path", text),
            ("raw_offset", number),
            ("raw_length", number),
            ("raw_encoding", text),
            ("transaction_time", text),
            ("landed_at", when),
            ("attempt", number),
            ("dagster_run_id", text),
        ]
    )


def exports_schema() -> pa.Schema:
    """Columns of `_exports`: an export is whole when it is listed here (design, Tables)."""
    import pyarrow as pa

    text, number, when = pa.string(), pa.int64(), pa.timestamp("us", "UTC")
    table = pa.struct([("table_name", text), ("rows", number), ("quarantined", number), ("version", number)])
    return pa.schema(
        [
            ("transaction_time", text),
            ("request", text),
            ("level", text),
            ("group_id", text),
            ("since", text),
            ("since_reason", text),
            ("supplement_of", text),
            ("patients", number),
            ("fingerprint", text),
            ("requested_at", when),
            ("accepted_at", when),
            ("published_at", when),
            ("files", number),
            ("rows", number),
            ("quarantined", number),
            ("tables", pa.list_(table)),
            ("attempt", number),
            ("dagster_run_id", text),
        ]
    )


def write_lineage(
    session: Session,
    attempt: Attempt,
    manifest: Manifest,
    landed: Sequence[LandedBatch],
    staged: Sequence[StagedBatch],
) -> None:
    """Replaces this export's rows of `_lineage`. `staged`: the conversions, in the order of `landed`."""
    import pyarrow as pa

    schema = lineage_schema()

    def tables() -> Iterator[pa.Table]:
        rows = _all_rows(session, attempt, manifest, landed, staged)
        while some := list(islice(rows, _ROWS)):
            yield pa.Table.from_pylist(some, schema=schema)

    _replace(session, attempt, "_lineage", tables(), schema)


def _all_rows(
    session: Session,
    attempt: Attempt,
    manifest: Manifest,
    landed: Iterable[LandedBatch],
    staged: Iterable[StagedBatch],
) -> Iterator[dict[str, Any]]:
    """The rows of all files; one batch of each kind at a time is looked at."""
    conversions = iter(staged)
    for batch in landed:
        became: dict[str, tuple[StagedBatch, FileRows]] = {}
        if batch.type not in SIDECARS:
            conversion = next(conversions)
            became = {file.name: (conversion, file) for file in conversion.files}
        yield from _lineage_rows(session, attempt, manifest, batch, became)


def _lineage_rows(
    session: Session,
    attempt: Attempt,
    manifest: Manifest,
    batch: LandedBatch,
    became: Mapping[str, tuple[StagedBatch, FileRows]],
) -> Iterator[dict[str, Any]]:
    for file in batch.files:
        yield {
            "source_file": file.name,
            "kind": file.kind,
            "manifest_index": file.index,
            "resource_type": file.type,
            "table_name": batch.type if file.kind == "output" and batch.type != UNTYPED else None,
            "url": file.url,
            "etag": file.etag,
            "sha256": file.sha256,
            "decoded_bytes": file.decoded_bytes,
            "manifest_count": file.count,
            "lines": file.lines,
            **_became(file, *became.get(file.name, (None, None))),
            "raw_path": batch.raw,
            "raw_offset": file.offset,
            "raw_length": file.length,
            "raw_encoding": file.encoding,
            "transaction_time": manifest.transaction_time,
            "landed_at": batch.at,
            "attempt": attempt.number,
            "dagster_run_id": session.owner.run_id,
        }


def write_exports_row(
    session: Session, attempt: Attempt, manifest: Manifest, publication: Publication
) -> None:
    """Lists the export as whole; called after the last table's commit."""
    import pyarrow as pa

    from pipeline.auth.origins import printable

    facts = attempt.facts
    request, intents = facts.request, {intent.number: intent for intent in facts.intents}
    intent = intents.get(request.intent) if request else None
    parameters = intent.parameters if intent else {}
    row = {
        "transaction_time": manifest.transaction_time,
        "request": printable(manifest.request) if manifest.request else None,
        "level": parameters.get("level"),
        "group_id": parameters.get("group"),
        "since": parameters.get("since"),
        "since_reason": intent.since_reason if intent else None,
        "supplement_of": facts.supplement_of or None,
        "patients": intent.patients if intent else None,
        "fingerprint": intent.fingerprint if intent else None,
        "requested_at": intent.at if intent else None,
        "accepted_at": request.at if request else None,
        "published_at": session.now(),
        "files": len(manifest.files),
        "rows": sum(counts.rows for counts in publication.tables.values()),
        "quarantined": publication.quarantined,
        "tables": [
            {"table_name": name, "rows": c.rows, "quarantined": c.quarantined, "version": c.version}
            for name, c in publication.tables.items()
        ],
        "attempt": attempt.number,
        "dagster_run_id": session.owner.run_id,
    }
    schema = exports_schema()
    _replace(session, attempt, "_exports", [pa.Table.from_pylist([row], schema=schema)], schema)


def _became(file: LandedFile, batch: StagedBatch | None, counts: FileRows | None) -> dict[str, Any]:
    """Rows and warnings of a file; a `deleted` or `error` file has no rows."""
    if batch is None or counts is None:
        return {"rows": None, "quarantined": None, "tables": None, "warnings": list(file.warnings)}
    rows = batch.tables_of(counts)
    shares = [
        {"table_name": name, "rows": rows.get(name, 0), "quarantined": counts.bad.get(name, 0)}
        for name in sorted({*rows, *counts.bad})
    ]
    return {
        "rows": counts.rows,
        "quarantined": counts.quarantined,
        "tables": shares,
        "warnings": [*file.warnings, *_warnings(batch, counts)],
    }


def _warnings(batch: StagedBatch, counts: FileRows) -> list[str]:
    others = {name: rows for name, rows in batch.tables_of(counts).items() if name != batch.type}
    declared = "no type" if batch.type == UNTYPED else f"type {batch.type}"
    found = []
    if others:
        went = ", ".join(f"{rows} lines to {name}" for name, rows in sorted(others.items()))
        found.append(f"the file declares {declared}: {went}")
    if counts.quarantined:
        found.append(f"{counts.quarantined} lines are in quarantine")
    return found


def _replace(
    session: Session, attempt: Attempt, table: str, rows: Iterable[pa.Table], schema: pa.Schema
) -> None:
    from pipeline.tables.delta import write_small_partition

    def put(local: Path, path: str) -> None:
        session.lake.put_file(local, f"{session.table(table)}/{path}")

    with session.lake.spool() as spool:
        write_small_partition(
            session.table_uri(table),
            export_id=attempt.export_id,
            attempt=attempt.number,
            replaces_after=attempt.facts.settled_attempt,
            tables=rows,
            schema=schema,
            put=put,
            spool=spool,
            storage_options=session.lake.storage_options,
        )
