"""Files of a source that nothing refers to: what kills, full disks and repeated attempts leave behind.

What is referenced is told by facts and Delta logs alone, and every doubt counts as a reference. Files are
listed first and references read afterwards: what becomes referenced in between is seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pipeline.errors import ExportError
from pipeline.exports.attachments.links import LINKS
from pipeline.exports.attachments.unlinked import linked_blobs, links_log
from pipeline.exports.identity import is_export_id
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import Owner
from pipeline.exports.session import Session
from pipeline.exports.state import Busy, Closed, Tidy, is_open
from pipeline.lake.lake import UNFINISHED, Stored

Kind = Literal["raw", "rejected", "part", "quarantine", "unfinished", "attachment"]

REJECTED = "rejected"
"""Below an export's raw folder: the bytes of files that failed verification."""

_PART = re.compile(r"^tables/(?P<table>[^/]+)/(?P<path>export_id=(?P<export_id>[^/]+)/[^/]+\.parquet)$")
_OF_EXPORT = re.compile(r"^(?P<kind>raw|quarantine)/(?P<export_id>[^/]+)/(?P<rest>.+)$")
_BLOB = re.compile(r"^attachments/(?P<sha256>[0-9a-f]{64})$")
_COMMIT = re.compile(r"^tables/(?P<table>[^/]+)/_delta_log/\d{20}\.json$")


@dataclass(frozen=True)
class Orphan:
    """A file that may go."""

    kind: Kind
    path: str
    """From the lake's root."""
    bytes: int
    export_id: str | None
    """The export run that it was written for; None where its name does not tell."""


@dataclass(frozen=True)
class Found:
    """What may go, and what is not looked at, in words: each doubt with its reason."""

    orphans: tuple[Orphan, ...]
    left_alone: tuple[str, ...]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    """Of the exports that orphans were written for, as they were when this was found out."""
    links: tuple[str, ...] = ()
    """The log of the attachments' links, as it was then."""


@dataclass(frozen=True)
class _References:
    """What the facts of one export run name."""

    facts: Facts
    raw: frozenset[str]
    parts: frozenset[str]
    """`<table>/<path below it>`."""
    quarantine: frozenset[str]
    rejected: bool
    """Whether the bytes of its rejected files are still of use to somebody."""


def find_orphans(session: Session, before: datetime) -> Found:
    """The files of the source that were written before that moment and that nothing refers to.

    Readers of older versions of a table keep what was taken out of it after `before`. Raises `LakeError`
    when the lake cannot be listed.
    """
    listed = session.lake.stored(session.source.name)
    links = links_log(session)
    search = _Search(session, listed, before)
    orphans = tuple(search.orphans())
    of_orphans = {each.export_id for each in orphans}
    facts = {export_id: kept.facts for export_id, kept in search.kept.items() if export_id in of_orphans}
    return Found(orphans, tuple(search.left_alone), facts, links)


class _Search:
    def __init__(self, session: Session, listed: Mapping[str, Stored], before: datetime) -> None:
        self.session = session
        self.listed = listed
        self.before = before
        self.kept: dict[str, _References] = {}
        self.left_alone: list[str] = []
        self._untouchable: set[str] = set()
        self._tables: dict[str, set[str] | None] = {}
        self._blobs: set[str] | None = None

    def orphans(self) -> Iterator[Orphan]:
        source = self.session.source.name
        for name, stored in self.listed.items():  # facts before logs: a publish in between is in the log
            if stored.modified < self.before and (found := _PART.match(name) or _OF_EXPORT.match(name)):
                self._references(found["export_id"])
        for name, stored in self.listed.items():
            if stored.modified < self.before and (what := self._unreferenced(name)):
                yield Orphan(what[0], f"{source}/{name}", stored.bytes, what[1])

    def _unreferenced(self, name: str) -> tuple[Kind, str | None] | None:
        """What a file is, when nothing refers to it."""
        if "/_delta_log/" in name:
            return None
        if name.rpartition("/")[2].startswith(UNFINISHED):
            return "unfinished", None
        if part := _PART.match(name):
            kept = self._references(part["export_id"])
            if kept is None or f"{part['table']}/{part['path']}" in kept.parts:
                return None
            shown = self._shown(part["table"])
            if shown is None or part["path"] in shown or self._was_cut(part["table"], shown, kept.facts):
                return None
            return "part", part["export_id"]
        if found := _OF_EXPORT.match(name):
            kept = self._references(found["export_id"])
            return None if kept is None else self._of_export(kept, name, found)
        if (found := _BLOB.match(name)) and not self._is_linked(found["sha256"]):
            return "attachment", None
        return None

    def _is_linked(self, sha256: str) -> bool:
        """Whether a link names that content, or did of late; also where that cannot be told."""
        if self._blobs is None:
            shown = self._shown(LINKS)
            try:
                # Without a log everything stays: somebody may have moved it.
                self._blobs = linked_blobs(self.session, shown) if shown else set()
            except ExportError as doubt:
                self.left_alone.append(f"attachments: {doubt.cause}")
                self._tables[LINKS] = None
                self._blobs = set()
        return not self._shown(LINKS) or sha256 in self._blobs

    def _of_export(
        self, kept: _References, name: str, found: re.Match[str]
    ) -> tuple[Kind, str | None] | None:
        export_id = found["export_id"]
        path = f"{self.session.source.name}/{name}"
        if found["kind"] == "quarantine":
            return None if path in kept.quarantine else ("quarantine", export_id)
        if found["rest"].startswith(f"{REJECTED}/"):
            return None if kept.rejected else ("rejected", export_id)
        return None if path in kept.raw else ("raw", export_id)

    def _references(self, export_id: str) -> _References | None:
        """None where everything of that export stays."""
        if export_id not in self.kept and export_id not in self._untouchable:
            try:
                self.kept[export_id] = self._read(export_id)
            except ExportError as doubt:
                self._untouchable.add(export_id)
                self.left_alone.append(f"export {export_id}: {doubt.cause}")
        return self.kept.get(export_id)

    def _read(self, export_id: str) -> _References:
        """Raises `ExportError` where nothing of the export may be touched."""
        if not is_export_id(export_id):
            raise ExportError("that is not the id of an export run")
        ledger = self.session.ledger
        facts = ledger.read(export_id)
        if facts.damaged:
            raise ExportError(f"facts that cannot be read: {', '.join(facts.damaged)}")
        if not facts.intents:
            raise ExportError("files without the facts of an export run; somebody has moved the facts")
        step = self.session.next_step(facts)
        owner = step.owner if isinstance(step, Busy) else self._at_work(facts)
        if owner is not None:
            raise ExportError(f"run {owner.run_id} is at work on it")
        unsettled = is_open(facts, step) or step == Closed("held")
        publishable = unsettled or isinstance(step, Tidy) or step == Closed("published")
        # What the last receipt's attempt has staged is live, or was replaced before it went live.
        staged = [each for each in ledger.staged(export_id) if each.attempt > facts.settled_attempt]
        staged = staged if publishable else []
        quarantine = {path for receipt in facts.receipts for path in receipt.quarantine}
        quarantine |= {path for publication in facts.publications for path in publication.quarantine}
        return _References(
            facts=facts,
            raw=frozenset(batch.raw for batch in ledger.landed(export_id)),
            parts=frozenset(
                f"{part.table or batch.type}/{part.path}" for batch in staged for part in batch.parts
            ),
            quarantine=frozenset(quarantine | {part.path for batch in staged for part in batch.quarantine}),
            rejected=unsettled or self._ended(facts) >= self.before,
        )

    def _at_work(self, facts: Facts) -> Owner | None:
        """Who ingests it by hand: that is no step of ours for an export that is closed."""
        claim = facts.last_claim
        if claim is None or claim.number <= facts.settled_attempt or claim.number in facts.attempt_errors:
            return None
        return None if self.session.is_dead(claim.owner) else claim.owner

    def _ended(self, facts: Facts) -> datetime:
        ends = [closing.at for closing in facts.closings.values()]
        return max([*ends, *(receipt.at for receipt in facts.receipts)], default=self.before)

    def _was_cut(self, table: str, shown: set[str], facts: Facts) -> bool:
        """Whether a log shows less of an export than its receipt: it was lost, or restored from before."""
        receipt = None if facts.closings.keys() & {"withdrawing", "withdrawn"} else facts.receipt
        counts = receipt.tables.get(table) if receipt else None
        there = sum(path.startswith(f"export_id={facts.export_id}/") for path in shown)
        if counts is None or there >= counts.parts:
            return False
        doubt = f"table {table}: its log lacks parts of {facts.export_id} that the receipt counts"
        if doubt not in self.left_alone:
            self.left_alone.append(doubt)
        return True

    def _shown(self, table: str) -> set[str] | None:
        """What a table's log keeps; None where that cannot be told, so that everything stays."""
        if table not in self._tables:
            try:
                self._tables[table] = self._kept_by_log(table)
            except ExportError as doubt:
                self._tables[table] = None
                self.left_alone.append(f"table {table}: {doubt.cause}")
        return self._tables[table]

    def _kept_by_log(self, table: str) -> set[str]:
        from pipeline.tables.kept import shown_paths, taken_out_by

        log = f"tables/{table}/_delta_log/"
        if not any(name.startswith(log) for name in self.listed):
            return set()  # nothing was ever committed
        kept = shown_paths(self.session.table_uri(table), self.session.lake.storage_options)
        for name, stored in self.listed.items():
            if (found := _COMMIT.match(name)) and found["table"] == table and stored.modified >= self.before:
                kept |= taken_out_by(self.session.lake.read(f"{self.session.source.name}/{name}") or b"")
        return kept
