"""The receipt: all of it is published and verified, and the watermark may move."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.exports.attempt import Attempt, require_claim
from pipeline.exports.bulklog import write_log
from pipeline.exports.facts import Intent, LandedBatch, Publication, Receipt
from pipeline.exports.foreign_files import foreign_files
from pipeline.exports.ledger import Facts
from pipeline.exports.lost_marks import note_lost_mark
from pipeline.exports.partial import missing_errors
from pipeline.exports.request import require_request
from pipeline.exports.session import Session
from pipeline.exports.sidecars import read_sidecars

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest


def write_receipt(session: Session, attempt: Attempt, manifest: Manifest) -> Receipt:
    """Checks the tables once more, by their logs, and writes the receipt.

    Raises `VerificationFailed` when a table does not hold what was published.
    """
    publication = _publication(session, attempt)
    _check_tables(session, attempt, publication)
    landed = session.ledger.packed_landed(attempt.export_id)
    sidecars = read_sidecars(session, landed)
    foreign = foreign_files(session, manifest)
    partial = (*missing_errors(sidecars.spoiling), *publication.partial)
    intent = next(i for i in attempt.facts.intents if i.number == require_request(attempt.facts).intent)
    incomplete = (
        *partial,
        *_spoilers(landed, publication, len(foreign)),
        *_clock_went_back(manifest, intent),
    )
    receipt = Receipt(
        at=session.now(),
        attempt=attempt.number,
        owner=session.owner,
        transaction_time=manifest.transaction_time,
        watermark=None if incomplete else _watermark(session, attempt.facts, manifest, intent),
        incomplete=incomplete,
        fingerprint=intent.fingerprint,
        tables=publication.tables,
        files=len(manifest.files),
        raw_bytes=sum(batch.raw_bytes for batch in landed),
        decoded_bytes=sum(file.decoded_bytes for batch in landed for file in batch.files),
        deleted=sidecars.deleted,
        error_entries=sidecars.error_entries,
        error_codes=sidecars.error_codes,
        partial=partial,
        quarantined_untyped=publication.quarantined_untyped,
        quarantine=publication.quarantine,
    )
    require_claim(session, attempt)
    if receipt.watermark is None:
        note_lost_mark(session, attempt.facts, attempt.number)
    session.ledger.write(attempt.export_id, f"receipts/{attempt.number:04d}.json", receipt)
    write_log(session, attempt, manifest, landed, receipt)
    return receipt


def _publication(session: Session, attempt: Attempt) -> Publication:
    """The newest since the last receipt: an earlier attempt may have died right behind it."""
    facts = session.ledger.read(attempt.export_id)
    for publication in reversed(facts.publications):
        if facts.settled_attempt < publication.attempt <= attempt.number:
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


def _watermark(session: Session, facts: Facts, manifest: Manifest, intent: Intent) -> str | None:
    """`transactionTime`, or the `_until` that was sent where that is earlier (protocol fact 26).

    Of a server whose `transactionTime` is the end of the job, so much earlier as the job can have taken; that
    is a difference of our own times, and no clock is compared with the server's. None where the server's is
    no instant: nothing then says how far its data goes.
    """
    instant, until = manifest.transaction_instant(), intent.parameters.get("until")
    try:
        reached = datetime.fromisoformat(instant) if instant else None
    except ValueError:
        return None
    if instant is None or reached is None or reached.tzinfo is None:
        return None
    if session.profile.transaction_time == "end":
        seen = facts.manifest.at if facts.manifest else session.now()
        reached -= max(seen - intent.at, timedelta(0))
        instant = reached.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(until, str) and datetime.fromisoformat(until) < reached:
        return until
    return instant


def _clock_went_back(manifest: Manifest, intent: Intent) -> list[str]:
    """A server that is at an earlier time than the one that it gave before: what it wrote in between has an
    earlier time than the `_since`, and was not asked for."""
    since, instant = intent.parameters.get("since"), manifest.transaction_instant()
    try:
        back = since and instant and datetime.fromisoformat(instant) < datetime.fromisoformat(str(since))
    except (ValueError, TypeError):
        return []
    what = f"transactionTime {instant} is before the _since {since} that was sent"
    return [f"{what}: the server's clock went back"] if back else []


def _spoilers(landed: Sequence[LandedBatch], publication: Publication, foreign: int) -> list[str]:
    """Why else the watermark must not move past this export (design, Facts)."""
    reasons = []
    if foreign:
        reasons.append(
            f"{foreign} error files lie where the token must not go, so nobody knows what they say"
        )
    mismatches = sum(
        file.count not in (None, file.lines + file.erased) for batch in landed for file in batch.files
    )
    if mismatches:
        reasons.append(f"{mismatches} files differ from the manifest's count")
    if publication.quarantined:
        reasons.append(f"{publication.quarantined} lines are in quarantine")
    return reasons
