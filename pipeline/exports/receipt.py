"""The receipt: all of it is published and verified; then the watermark moves and the job is given back."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.errors import ExportError, VerificationFailed
from pipeline.exports.attempt import Attempt, require_claim
from pipeline.exports.bulklog import write_log
from pipeline.exports.facts import ClosingFact, LandedBatch, Publication, Receipt
from pipeline.exports.request import require_request
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest

_SPOILING = ("fatal", "error")


def write_receipt(session: Session, attempt: Attempt, manifest: Manifest) -> Receipt:
    """Checks the tables once more, by their logs, and writes the receipt.

    Raises `VerificationFailed` when a table does not hold what was published.
    """
    publication = _publication(session, attempt)
    _check_tables(session, attempt, publication)
    landed = session.ledger.landed(attempt.export_id)
    errors = _error_entries(session, landed)
    incomplete = tuple(_spoilers(landed, publication, errors))
    intent = next(i for i in attempt.facts.intents if i.number == require_request(attempt.facts).intent)
    receipt = Receipt(
        at=session.now(),
        attempt=attempt.number,
        owner=session.owner,
        transaction_time=manifest.transaction_time,
        watermark=None if incomplete else _watermark(manifest, intent.parameters.get("until")),
        incomplete=incomplete,
        fingerprint=intent.fingerprint,
        tables=publication.tables,
        files=len(manifest.files),
        raw_bytes=sum(batch.raw_bytes for batch in landed),
        decoded_bytes=sum(file.decoded_bytes for batch in landed for file in batch.files),
        deleted=_deleted(session, landed),
        error_entries=errors,
    )
    require_claim(session, attempt)
    session.ledger.write(attempt.export_id, f"receipts/{attempt.number:04d}.json", receipt)
    write_log(session, attempt, manifest, landed, receipt)
    return receipt


def _publication(session: Session, attempt: Attempt) -> Publication:
    facts = session.ledger.read(attempt.export_id)
    for publication in facts.publications:
        if publication.attempt == attempt.number:
            return publication
    raise VerificationFailed(f"attempt {attempt.number} has not published yet", "Run the publish step first")


def _check_tables(session: Session, attempt: Attempt, publication: Publication) -> None:
    from pipeline.tables.delta import partition_rows

    for table, counts in publication.tables.items():
        rows = partition_rows(session.table_uri(table), attempt.export_id, session.lake.storage_options)
        if rows != counts.rows:
            raise VerificationFailed(
                f"{table} holds {rows} rows of this export, {counts.rows} were published",
                "Somebody else writes to this table; ingest the export again when that has stopped",
            )


def _watermark(manifest: Manifest, until: object) -> str | None:
    """`transactionTime`, or the `_until` that was sent (protocol fact 26); None where it is no instant."""
    if isinstance(until, str):
        return until
    instant = manifest.transaction_instant()
    try:
        return instant if instant and datetime.fromisoformat(instant).tzinfo else None
    except ValueError:
        return None


def _spoilers(landed: list[LandedBatch], publication: Publication, errors: dict[str, int]) -> list[str]:
    """Why the watermark must not move past this export (design, Facts)."""
    reasons = []
    spoiling = sum(errors.get(severity, 0) for severity in _SPOILING)
    if spoiling:
        reasons.append(f"the server reports {spoiling} errors")
    mismatches = sum(
        file.count is not None and file.count != file.lines for batch in landed for file in batch.files
    )
    if mismatches:
        reasons.append(f"{mismatches} files differ from the manifest's count")
    quarantined = sum(counts.quarantined for counts in publication.tables.values())
    if quarantined:
        reasons.append(f"{quarantined} lines are in quarantine")
    return reasons


def _error_entries(session: Session, landed: list[LandedBatch]) -> dict[str, int]:
    from pipeline.bulkdata.sidecar import outcome_counts

    found: dict[str, int] = {}
    for blocks in _sidecars(session, landed, "error"):
        for severity, count in outcome_counts([blocks]).items():
            found[severity] = found.get(severity, 0) + count
    return found


def _deleted(session: Session, landed: list[LandedBatch]) -> int:
    from pipeline.bulkdata.sidecar import deleted_resources

    return sum(len(deleted_resources([blocks])) for blocks in _sidecars(session, landed, "deleted"))


def _sidecars(session: Session, landed: list[LandedBatch], kind: str) -> list[bytes]:
    """The decoded content of the small files of one list."""
    from pipeline.bulkdata.decoding import decoded_blocks

    found = []
    for batch in landed:
        if batch.type == kind:
            with session.lake.local_copy(batch.raw) as raw:
                found += [
                    b"".join(decoded_blocks(raw, file.encoding, file.offset, file.length))
                    for file in batch.files
                ]
    return found


def release(session: Session, export_id: str) -> bool:
    """Gives the job back to the server (protocol fact 35); only after the receipt. False: try again later."""
    facts = session.ledger.read(export_id)
    if facts.receipt is None or not session.policy.release:
        return False
    if facts.released is not None:
        return True
    try:
        session.client.delete(require_request(facts).status_url)
    except ExportError as error:
        session.log(f"the job could not be released on the server yet: {error}")
        return False
    session.ledger.write(
        export_id, "released.json", ClosingFact(at=session.now(), reason="deleted on the server")
    )
    return True


def drop_raw(session: Session, export_id: str) -> int:
    """Removes the raw bytes of a published export (`keep_raw: false`), resumably; returns how many files."""
    facts = session.ledger.read(export_id)
    if facts.receipt is None or session.policy.keep_raw:
        return 0
    folder = f"{session.source.name}/raw/{export_id}"
    names = sorted(session.lake.sizes(folder))
    for name in names:
        session.lake.remove(f"{folder}/{name}")
    session.ledger.write(
        export_id, "raw-dropped.json", ClosingFact(at=session.now(), reason=f"{len(names)} files removed")
    )
    return len(names)
