"""An erasure from beginning to end: what is found, taken out, removed and proved."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.errors import ConfigError, LakeError, StillRunning
from pipeline.exports.erasing import leftovers
from pipeline.exports.erasing import raw as raw_files
from pipeline.exports.erasing.compartment import Patient
from pipeline.exports.erasing.leftovers import ON_THEIR_WAY
from pipeline.exports.erasing.mentions import Needle, batches_of
from pipeline.exports.erasing.proof import Proof, prove
from pipeline.exports.erasing.raw import RawBatch
from pipeline.exports.erasing.tables import (
    ATTACHMENTS,
    DELETED,
    NAMING,
    Line,
    Owned,
    TableRows,
    contents_that_go,
    erase_from_chunks,
    erase_from_exports,
    find_followers,
    find_lines,
    find_named,
    find_resources,
    flat_tables_of,
    is_of_resources,
    lines_that_go,
    open_tables,
    tables_of,
)
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.exports.staging import SIDECARS
from pipeline.exports.state import Busy, Damaged, is_open
from pipeline.lake.lake import SPOOL, UNFINISHED
from pipeline.lake.spool import remove_unlocked

MAX_TRIES = 5


@dataclass
class Found:
    """All that goes, as it was when it was looked for."""

    owned: Owned
    tables: list[TableRows]
    current: list[TableRows]
    raw: list[RawBatch]
    stray: list[str]
    quarantine: dict[str, int]
    lines: set[Line]
    """Raw lines that go."""
    contents: list[str]
    """Of attachments, by sha256."""


@dataclass
class Erased:
    """What an erasure came to; in a dry run, what it would come to."""

    source: str
    dry_run: bool
    rows: Counter[str] = field(default_factory=Counter)
    """By place: `tables/observation`, `current/patient_current`, ..."""
    raw_lines: int = 0
    raw_files: int = 0
    raw_exports: int = 0
    quarantine: int = 0
    """Records."""
    attachments: int = 0
    """Contents that no other row links."""
    removed: int = 0
    """Files that nothing refers to."""
    mentions: Counter[str] = field(default_factory=Counter)
    """Rows and lines that name the patient and stay, by place."""
    left: Counter[str] = field(default_factory=Counter)
    """Found again afterwards, by place: nothing, if all went well."""
    read: int = 0
    """Files that were read to find out."""
    unread: list[str] = field(default_factory=list)
    in_use: int = 0
    """Files in spools of processes that live: they were not read."""

    def add(self, step: Step, exports: set[str]) -> None:
        """What one step has taken out, or would."""
        if step.place == "raw":
            self.raw_lines += step.count
            self.raw_files += 1
            exports.add(step.export_id)
            self.raw_exports = len(exports)
        elif step.place == "quarantine":
            self.quarantine += step.count
        elif step.place == "attachments":
            self.attachments += step.count
        elif step.place == "stray":
            self.removed += step.count
        else:
            self.rows[step.place] += step.count

    def take(self, proof: Proof) -> None:
        """What was found again."""
        self.mentions, self.left = +proof.mentions, +proof.owned
        self.read, self.unread, self.in_use = proof.files, proof.unread, proof.in_use

    @property
    def proved(self) -> bool:
        return not self.dry_run and not self.left.total() and not self.unread

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.source,
            "dry_run": self.dry_run,
            "rows": {name: count for name, count in sorted(self.rows.items()) if count},
            "raw": {"lines": self.raw_lines, "files": self.raw_files, "exports": self.raw_exports},
            "quarantine": self.quarantine,
            "attachments": self.attachments,
            "files_removed": self.removed,
            "mentions_left": {name: count for name, count in sorted(self.mentions.items()) if count},
            "found_again": None if self.dry_run else self.left.total(),
            "found_again_in": {name: count for name, count in sorted(self.left.items()) if count},
            "files_read": self.read,
            "unread": self.unread,
            "in_use": self.in_use,
            "proved": self.proved,
        }


def erase(session: Session, patient_id: str, *, dry_run: bool = True) -> Erased:
    """Takes a patient out of everything of the source; in a dry run it is only counted.

    Killed in between, it is called again. Raises `StillRunning` while a run is at work on an export of the
    source, `ConfigError` for an id that is none or while an export waits to be ingested, `LakeError`.
    """
    patient = Patient(_bare(patient_id))
    needle = Needle(patient.id)
    _require_quiet(session, dry_run=dry_run)
    done = Erased(session.source.name, dry_run)
    found = _find(session, patient, needle)
    if dry_run:
        exports: set[str] = set()
        for step in _steps(session, needle, found):
            done.add(step, exports)
        done.mentions = +found.owned.mentions
        return done
    known = found.owned.ids
    for _ in range(MAX_TRIES):
        found = _change_all(session, patient, needle, found, done)
        _overtake_merges(session)
        done.removed += _remove_dead(session, needle)
        if session.lake.folder is not None:
            remove_unlocked(session.lake.folder / SPOOL)
        for resource_type, ids in known.items():
            found.owned.ids[resource_type] |= ids
        done.take(prove(session, found.owned, needle))
        if not done.left:
            break
        found = _find(session, patient, needle)  # a merge or a flattening was in between
    return done


def _bare(patient_id: str) -> str:
    identifier = patient_id.removeprefix("Patient/")
    if not identifier or not all(each.isalnum() or each in "-._~_" for each in identifier):
        raise ConfigError("that is not the id of a Patient", "Name it as the server does, without spaces")
    return identifier


def _require_quiet(session: Session, *, dry_run: bool) -> None:
    """No run is at work, and no export has bytes that are still to be published."""
    for export_id in session.ledger.export_ids():
        facts = session.ledger.read(export_id)
        step = session.next_step(facts)
        if isinstance(step, Damaged):
            raise LakeError(
                f"{facts.label} has damaged facts: {', '.join(facts.damaged)}", "Restore them first"
            )
        if dry_run:
            continue
        owner = step.owner if isinstance(step, Busy) else _at_work(session, facts)
        if owner is not None:
            raise StillRunning(
                f"run {owner.run_id} works on {facts.label}", "Wait for its end, or stop it; then erase"
            )
        waits = facts.receipt is None and (is_open(facts, step) or "held" in facts.closings)
        if waits and facts.claims:
            raise ConfigError(
                f"{facts.label} has bytes that are still to be published",
                f"Let it be ingested, or `fhir-export withdraw {facts.label}`; then erase",
            )


def _at_work(session: Session, facts: Facts) -> Any:
    claim = facts.last_claim
    if claim is None or claim.number <= facts.settled_attempt or claim.number in facts.attempt_errors:
        return None
    return None if session.is_dead(claim.owner) else claim.owner


# --- finding -----------------------------------------------------------------------------------------


def _find(session: Session, patient: Patient, needle: Needle) -> Found:
    owned = Owned(patient)
    tables, current = open_tables(session, "tables"), open_tables(session, "current")
    raw = raw_files.raw_batches(session)
    resources = [each for each in (*tables, *current) if is_of_resources(each)]
    for table in resources:
        find_resources(session, owned, needle, table)
    for batch in raw:
        raw_files.find_lines_of(session, owned, needle, batch)
    for table in resources:
        find_followers(session, owned, table)
    for batch in raw:
        raw_files.find_following_lines(session, owned, batch)
    for batch in raw:
        raw_files.find_sidecar_lines(session, owned, needle, batch)
    for table in (*tables_of(tables, NAMING), *(each for each in current if each.name.endswith(DELETED))):
        find_named(session, owned, table)
    origins: defaultdict[str, set[Line]] = defaultdict(set)
    for table in resources:
        origins[str(table.resource_type)] |= lines_that_go(session, table)
    for resource_type, lines in origins.items():
        for table in flat_tables_of((*tables, *current), resource_type):
            find_lines(session, table, lines)
    contents = [
        each for table in tables_of(tables, [ATTACHMENTS]) for each in contents_that_go(session, table)
    ]
    lines = {line for batch in raw for line in batch.lines_that_go()}
    quarantine = leftovers.quarantined(session, needle, lines)
    stray = leftovers.stray_raw(session, needle)
    return Found(owned, tables, current, raw, stray, quarantine, lines, contents)


# --- changing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One change, and what it adds to the report when it is done."""

    place: str
    count: int
    do: Callable[[], object]
    export_id: str = ""


def _change_all(session: Session, patient: Patient, needle: Needle, found: Found, done: Erased) -> Found:
    """Until all is done: somebody may have committed in between."""
    from pipeline.tables.delta import Conflict

    conflict = ""
    exports: set[str] = set()
    for tries in range(MAX_TRIES):
        if tries:
            time.sleep(min(5.0, 0.2 * 2**tries))
            found = _find(session, patient, needle)
        try:
            for step in _steps(session, needle, found):
                step.do()
                done.add(step, exports)
        except Conflict as lost:
            conflict = str(lost)
            continue
        return found
    raise LakeError(f"the tables keep changing ({conflict})", "Stop what writes to them, and erase again")


def _overtake_merges(session: Session) -> None:
    """Another commit to each current table: a merge that has read exports before they were changed fails,
    and begins again."""
    from pipeline.tables.delta import Conflict

    for table in open_tables(session, "current"):
        with suppress(Conflict):  # somebody's own commit: the proof tells what it has brought
            erase_from_chunks(session, table)


def _steps(session: Session, needle: Needle, found: Found) -> Iterator[Step]:
    """What is known by means of something else first: killed in between, the next one still finds it."""
    for table in sorted(found.current, key=_first_what_follows):
        yield Step(f"current/{table.name}", table.count, partial(erase_from_chunks, session, table))
    blobs = [f"{session.source.name}/attachments/{each}" for each in found.contents]
    yield Step("attachments", len(blobs), partial(leftovers.remove_all, session, blobs))
    for table in sorted(found.tables, key=_first_what_follows):
        if table.rows:
            yield Step(f"tables/{table.name}", table.count, partial(erase_from_exports, session, table))
    for path, count in found.quarantine.items():
        work = partial(leftovers.rewrite_quarantine, session, path, needle, found.lines)
        yield Step("quarantine", count, work)
    yield Step("stray", len(found.stray), partial(leftovers.remove_all, session, found.stray))
    for raw in sorted(found.raw, key=lambda each: each.batch.type not in SIDECARS):
        if raw.files:
            yield Step("raw", raw.count, partial(raw_files.rewrite_raw, session, raw), raw.export_id)


def _first_what_follows(table: TableRows) -> tuple[bool, str]:
    return is_of_resources(table), table.name


def _remove_dead(session: Session, needle: Needle) -> int:
    """Files below the tables that no newest version shows: of tables that an erasure has changed, and any
    other that has the id; what may be on its way to a commit stays. Returns how many went."""
    from pipeline.tables.erased import Files, files_of

    source, before = session.source.name, session.now() - ON_THEIR_WAY
    removed = 0
    for kind in ("tables", "current"):
        for name in session.lake.names(f"{source}/{kind}"):
            folder = f"{source}/{kind}/{name}"
            files = files_of(session.lake.table_uri(folder), session.lake.storage_options) or Files()
            for path, stored in session.lake.stored(folder).items():
                if path in files.shown or path.startswith("_delta_log/"):
                    continue
                certain = path in files.dead
                if not certain and stored.modified >= before:
                    continue
                unfinished = path.rpartition("/")[2].startswith(UNFINISHED)
                goes = unfinished or (certain and files.marked)
                if goes or _has(session, f"{folder}/{path}", needle):
                    session.lake.remove(f"{folder}/{path}")
                    removed += 1
    return removed


def _has(session: Session, path: str, needle: Needle) -> bool:
    try:
        with session.lake.local_copy(path) as local:
            return any(needle.in_rows(batch).any() for _, batch in batches_of(local))
    except LakeError:
        return True  # nobody can read it
