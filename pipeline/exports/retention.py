"""Retention: what nothing refers to is removed, and raw bytes are dropped when their time is over.

Each file is removed for itself, and only what nothing names: killed in the middle, the rest is found again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.errors import LakeError
from pipeline.exports.attachments.unlinked import links_log
from pipeline.exports.clocks import GREATEST
from pipeline.exports.orphans import Found, Orphan, find_orphans
from pipeline.exports.session import Session
from pipeline.exports.state import Closed
from pipeline.exports.tidying import drop_raw

CLOCK_MARGIN = timedelta(seconds=GREATEST)
"""The lake's clock and ours may differ so much: beyond that no sign-in works."""


@dataclass(frozen=True)
class OldRaw:
    """The raw bytes of a published export whose time is over."""

    export_id: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Cleaned:
    """What was removed from a source's part of the lake; in a dry run, what would be."""

    source: str
    dry_run: bool
    orphans: tuple[Orphan, ...]
    old_raw: tuple[OldRaw, ...]
    left_alone: tuple[str, ...]
    """What was not looked at, and why."""

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Files and bytes by kind; `raw of old exports` is what `retention.raw_days` ends."""
        found: dict[str, tuple[int, int]] = {}
        for each in self.orphans:
            files, size = found.get(each.kind, (0, 0))
            found[each.kind] = (files + 1, size + each.bytes)
        if self.old_raw:
            found["raw of old exports"] = (
                sum(each.files for each in self.old_raw),
                sum(each.bytes for each in self.old_raw),
            )
        return found

    def as_json(self) -> dict[str, object]:
        """For scripts."""
        return {
            "source": self.source,
            "dry_run": self.dry_run,
            "kinds": {kind: {"files": n, "bytes": size} for kind, (n, size) in self.kinds().items()},
            "paths": [each.path for each in self.orphans],
            "raw_of": [each.export_id for each in self.old_raw],
            "left_alone": list(self.left_alone),
        }


def clean(session: Session, *, dry_run: bool = False) -> Cleaned:
    """Removes what the configuration's `retention` lets go. Raises `LakeError`: the rest goes next time."""
    retention, now = session.config.retention, session.now()
    before = now - timedelta(days=retention.orphans_days) - CLOCK_MARGIN
    if not dry_run:
        remove_abandoned_spools(session)
    found = find_orphans(session, before)
    orphans = found.orphans if dry_run else remove_orphans(session, found)
    old_raw: tuple[OldRaw, ...] = ()
    if retention.raw_days is not None:
        limit = now - timedelta(days=retention.raw_days)
        old_raw = tuple(_old_raw(session, limit, drop=not dry_run))
    return Cleaned(session.source.name, dry_run, tuple(orphans), old_raw, found.left_alone)


def remove_abandoned_spools(session: Session) -> None:
    """Whoever asks for a spool removes those of killed processes, by their locks and ages."""
    with session.lake.spool():
        pass


def remove_orphans(session: Session, found: Found) -> tuple[Orphan, ...]:
    """Removes them, but for those of exports where something has happened since; returns what is gone."""
    gone: list[Orphan] = []
    still: dict[str, bool] = {}
    for orphan in found.orphans:
        export_id = orphan.export_id
        if export_id is not None:
            if export_id not in still:  # somebody may have begun to ingest it again by hand
                still[export_id] = session.ledger.read(export_id) == found.facts[export_id]
            if not still[export_id]:
                continue
        if orphan.kind == "attachment" and links_log(session) != found.links:
            continue  # somebody links attachments at this moment, perhaps to this one
        session.lake.remove(orphan.path)
        gone.append(orphan)
    return tuple(gone)


def _old_raw(session: Session, limit: datetime, *, drop: bool) -> Iterable[OldRaw]:
    for export_id in session.ledger.export_ids():
        try:
            if not _raw_may_go(session, export_id, limit):
                continue
        except LakeError as doubt:
            session.log(f"the raw bytes of {export_id} stay: {doubt}")
            continue
        sizes = session.lake.sizes(f"{session.source.name}/raw/{export_id}")
        if drop:
            drop_raw(session, export_id)
        if sizes:
            yield OldRaw(export_id, len(sizes), sum(sizes.values()))


def _raw_may_go(session: Session, export_id: str, limit: datetime) -> bool:
    """Published, the job on the server given back, and older than the limit (design, Facts)."""
    facts = session.ledger.read(export_id)
    if facts.receipt is None or facts.raw_dropped or facts.receipt.at >= limit:
        return False
    return session.next_step(facts) == Closed("published")
