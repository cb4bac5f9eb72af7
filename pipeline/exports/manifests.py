"""The manifest of an export: stored once, then matched with what the server shows later (design, Facts)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import (
    ConfigError,
    ExportError,
    JobFailed,
    JobGone,
    StillRunning,
    Unreachable,
    VerificationFailed,
)
from pipeline.exports.attempt import Attempt, landed_whole
from pipeline.exports.closing import close
from pipeline.exports.facts import Cause, FileKind, ManifestFact
from pipeline.exports.request import require_request
from pipeline.exports.session import Session
from pipeline.exports.state import deadline_of
from pipeline.exports.tidying import give_back

if TYPE_CHECKING:
    from pipeline.bulkdata.answers import StatusAnswer
    from pipeline.bulkdata.manifest import Manifest, ManifestFile

FileKey = tuple[FileKind, int]


def without_query(url: str) -> str:
    """The URL without query string and fragment: what may be stored and printed."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


def stored_manifest(session: Session, export_id: str) -> Manifest:
    """The manifest as it was first seen, signatures removed. Raises `LakeError` when there is none."""
    from pipeline.bulkdata.manifest import Manifest, assemble

    pages = session.ledger.manifest_pages(export_id)
    if pages and not pages[0].page:
        return Manifest.nothing()
    return assemble([fact.page for fact in pages])


def store_manifest(session: Session, export_id: str, manifest: Manifest) -> None:
    """Writes the manifest's pages; the first one last, so that its existence means all of them."""
    from pipeline.bulkdata.manifest import redacted_page

    facts = [
        ManifestFact(
            at=session.now(),
            transaction_time=manifest.transaction_time,
            pages=len(manifest.pages) or 1,
            page=redacted_page(page),
        )
        for page in manifest.pages or ({},)  # a server may send no manifest for nothing at all
    ]
    for number in range(len(facts), 1, -1):
        session.ledger.write(export_id, f"manifest-{number:04d}.json", facts[number - 1])
    session.ledger.write(export_id, "manifest.json", facts[0])


@dataclass
class LiveManifest:
    """File URLs that work now. They stay in memory, and are asked for again when they have expired."""

    session: Session
    attempt: Attempt
    _files: dict[FileKey, ManifestFile] | None = None
    _requires_token: bool | None = None
    _lock: Lock = field(default_factory=Lock)

    def file(self, key: FileKey) -> tuple[ManifestFile, bool | None]:
        """The file with a live URL, and the manifest's `requiresAccessToken`."""
        with self._lock:
            if self._files is None:
                self._read()
            assert self._files is not None  # noqa: S101 - for the type checker: _read has filled it
            return self._files[key], self._requires_token

    def expire(self, file: ManifestFile) -> None:
        """That URL is refused: the next one comes from a fresh status read. One read serves all threads."""
        with self._lock:
            if self._files is not None and self._files.get((file.kind, file.index)) is file:
                self._files = None

    def _read(self) -> None:
        stored = stored_manifest(self.session, self.attempt.export_id)
        self.take(stored, ask_for_manifest(self.session, self.attempt))

    def take(self, stored: Manifest, live: Manifest) -> None:
        """Uses a manifest that was just read. Raises `VerificationFailed` when it is not the stored one."""
        self._files = match(stored.files, live.files)
        self._requires_token = live.requires_access_token


_live: dict[tuple[str, str, str, int], LiveManifest] = {}


def live_manifest(session: Session, attempt: Attempt) -> LiveManifest:
    """The live URLs of this attempt; one for all steps of a process, so that the server is asked once."""
    key = (session.lake.root, attempt.facts.source, attempt.export_id, attempt.number)
    if key not in _live:
        _live.clear()  # an earlier attempt's URLs are of no use
    return _live.setdefault(key, LiveManifest(session, attempt))


def open_manifest(session: Session, attempt: Attempt) -> Manifest:
    """The manifest to ingest, stored if it is new. The server is not asked when all bytes are here already.

    Raises `StillRunning`, `JobGone`, `JobFailed`, `Unreachable`, `AuthError`, `VerificationFailed`.
    """
    facts = attempt.facts
    if landed_whole(session, facts):
        return stored_manifest(session, facts.export_id)
    manifest = ask_for_manifest(session, attempt)
    if facts.manifest is None:
        store_manifest(session, facts.export_id, manifest)
    stored = stored_manifest(session, facts.export_id)
    live_manifest(session, attempt).take(stored, manifest)
    return stored


def ask_for_manifest(session: Session, attempt: Attempt) -> Manifest:
    """Reads the status, which must be complete by now; writes down when the job is over without a result.

    Past the deadline every other answer, and none, ends the export (protocol fact 25).
    """
    from pipeline.bulkdata.answers import Complete, Failed, Gone, InProgress, RetryLater

    facts = attempt.facts
    try:
        answer = _patient_status(session, require_request(facts).status_url)
    except VerificationFailed:
        raise  # an answer, though no manifest: the job is over
    except ExportError as error:
        _end_if_overdue(session, attempt, f"the last status request failed: {error.cause}")
        raise
    if isinstance(answer, Complete):
        return answer.manifest
    if isinstance(answer, RetryLater):
        _end_if_overdue(session, attempt, f"the last answer was {answer.reason}")
        raise Unreachable(f"the server puts us off: {answer.reason}", "", answer.retry_after)
    if isinstance(answer, InProgress):
        _end_if_overdue(session, attempt, "the server still works on it")
        raise StillRunning(f"the server still works on {facts.label}", "It is ingested when it is ready")
    if isinstance(answer, Gone):
        reason = f"the server does not know the job any more (HTTP {answer.http_status})"
        close(session, attempt.export_id, "gone", reason, cause="gone")
        raise JobGone(reason, _ASK_AGAIN)
    assert isinstance(answer, Failed)  # noqa: S101 - for the type checker: nothing else is left
    reason = f"the server ended the job with HTTP {answer.http_status}: {answer.reason}"
    close(session, attempt.export_id, "gone", reason, cause="failed")
    raise JobFailed(reason, _ASK_AGAIN)


def _end_if_overdue(session: Session, attempt: Attempt, last: str) -> None:
    """Cancels an export that had no manifest before its deadline. Raises `JobFailed` then."""
    # Read anew: the attempt may have stored the manifest itself since.
    if not is_overdue(session, attempt) or session.ledger.read(attempt.export_id).manifest is not None:
        return
    reason = f"not ready within {session.source.deadline_hours:g} h; {last}"
    problem = cancel_export(session, attempt.export_id, reason, "deadline")
    left = f"; the job may still run on the server: {problem.cause}" if problem else ""
    raise JobFailed(f"the export was cancelled: {reason}{left}", _ASK_AGAIN)


def _patient_status(session: Session, url: str) -> StatusAnswer:
    """The status; short waits that the server asks for are waited here, since the job is known to be over."""
    from pipeline.bulkdata.answers import RetryLater

    for _ in range(_SHORT_WAITS):
        answer = session.client.status(url)
        if not isinstance(answer, RetryLater) or (answer.retry_after or 0) > _SHORT_WAIT:
            return answer
        time.sleep(answer.retry_after or 2.0)
    return session.client.status(url)


_SHORT_WAIT = 30.0
_SHORT_WAITS = 4
_ASK_AGAIN = "A new export run asks for everything again"


def is_overdue(session: Session, attempt: Attempt) -> bool:
    """Whether the deadline of the export has passed."""
    request = require_request(attempt.facts)
    return session.now() > deadline_of(attempt.facts, request, session.policy)


def cancel_export(session: Session, export_id: str, reason: str, cause: Cause = "") -> ExportError | None:
    """Closes the export, then DELETEs the job; returns why the server did not confirm, if it did not.

    In this order a run that ingests meanwhile sees the end before the job is gone. Raises `ConfigError` when
    there is nothing to cancel, or when a receipt was quicker.
    """
    facts = session.ledger.read(export_id)
    require_request(facts)
    close(session, export_id, "cancelled", reason, cause=cause)
    if session.ledger.read(export_id).receipt is not None:
        raise ConfigError(f"{facts.label} was published meanwhile", "There is nothing to cancel any more")
    return give_back(session, facts)


def match(stored: Sequence[ManifestFile], live: Sequence[ManifestFile]) -> dict[FileKey, ManifestFile]:
    """Which live file is which stored one: by list, type, URL without query and count, else by position.

    They have the index of the stored one, by which facts know a file: the server may have another order now.
    Raises `VerificationFailed` when a file vanished, appeared, or changed its type or count. Position counts
    only between files whose URL neither side knows: it must not hand out one file's bytes for another's.
    """
    if len(stored) != len(live):
        how = f"{len(stored)} files at first, {len(live)} now"
        raise _changed(how, "when the server is done changing it")
    by_key: dict[tuple[object, ...], list[ManifestFile]] = defaultdict(list)
    for file in live:
        by_key[_identity(file)].append(file)
    found: dict[FileKey, ManifestFile] = {}
    for file in stored:
        if by_key[_identity(file)]:
            there = by_key[_identity(file)].pop(0)
            found[file.kind, file.index] = (
                there if there.index == file.index else replace(there, index=file.index)
            )
    left = {(file.kind, file.index): file for files in by_key.values() for file in files}
    for file in stored:
        if (file.kind, file.index) not in found:
            found[file.kind, file.index] = _at_position(file, left)
    return found


def _at_position(file: ManifestFile, left: dict[FileKey, ManifestFile]) -> ManifestFile:
    other = left.get((file.kind, file.index))
    was = f"{file.label} was there with {file.count} lines, and is"
    if other is None:
        raise _changed(f"{was} not to be found now")
    if (file.type, file.count) != (other.type, other.count):
        raise _changed(f"{was} {other.label} with {other.count} now")
    return other


def _changed(how: str, when: str = "") -> VerificationFailed:
    advice = f"Nothing is published; start a new export run {when}".rstrip()
    return VerificationFailed(f"the manifest has changed: {how}", advice)


def _identity(file: ManifestFile) -> tuple[object, ...]:
    return (file.kind, file.type, without_query(file.url), file.count)
