"""An erasure from beginning to end: what is found, taken out, removed and proved."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from pipeline.errors import ConfigError, LakeError
from pipeline.exports.attachments.links import LINKS
from pipeline.exports.erasing import leftovers
from pipeline.exports.erasing import raw as raw_files
from pipeline.exports.erasing.compartment import Patient
from pipeline.exports.erasing.contents import Contents, unlinked_contents
from pipeline.exports.erasing.flat import find_ids, find_rows, flat_tables_in
from pipeline.exports.erasing.leftovers import ON_THEIR_WAY
from pipeline.exports.erasing.mentions import Needle, batches_of
from pipeline.exports.erasing.proof import prove
from pipeline.exports.erasing.quiet import require_quiet, require_there
from pipeline.exports.erasing.raw import RawBatch
from pipeline.exports.erasing.report import Erased, Step
from pipeline.exports.erasing.tables import (
    DELETED,
    NAMING,
    Line,
    Owned,
    TableRows,
    erase_from_chunks,
    erase_from_exports,
    find_followers,
    find_named,
    find_resources,
    is_of_resources,
    lines_that_go,
    open_tables,
    readable,
    tables_of,
)
from pipeline.exports.session import Session
from pipeline.exports.staging import SIDECARS
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
    contents: Contents
    """Of attachments."""


def erase(session: Session, patient_id: str, *, dry_run: bool = True) -> Erased:
    """Takes a patient out of everything of the source; in a dry run it is only counted.

    Killed in between, it is called again. Raises `StillRunning` while a run is at work on an export of the
    source or on its attachments, `ConfigError` for an id that is none, a lake without the source, or while an
    export waits to be ingested, `LakeError`.
    """
    patient = Patient(_bare(patient_id))
    needle = Needle(patient.id)
    require_there(session)
    require_quiet(session, dry_run=dry_run)
    done = Erased(session.source.name, dry_run)
    known = Owned(patient).ids
    found = _find(session, patient, needle, known)
    if dry_run:
        exports: set[str] = set()
        for step in _steps(session, found):
            done.add(step, exports)
        done.mentions = +found.owned.mentions
        return done
    for _ in range(MAX_TRIES):
        found = _change_all(session, patient, needle, found, known, done)
        _overtake(session)
        done.removed += _remove_dead(session, needle)
        if session.lake.folder is not None:
            remove_unlocked(session.lake.folder / SPOOL)
        done.take(prove(session, found.owned, needle))
        if not done.left or done.in_use:
            break
        found = _find(session, patient, needle, known)  # a merge or a flattening was in between
        if not any(step.count for step in _steps(session, found)):
            break
    return done


def _bare(patient_id: str) -> str:
    identifier = patient_id.removeprefix("Patient/")
    if not identifier or not all(each.isalnum() or each in "-._~_" for each in identifier):
        raise ConfigError("that is not the id of a Patient", "Name it as the server does, without spaces")
    return identifier


# --- finding -----------------------------------------------------------------------------------------


def _find(session: Session, patient: Patient, needle: Needle, known: defaultdict[str, set[str]]) -> Found:
    """`known`: the ids of what is the patient's, by type; those that are found now are added."""
    owned = Owned(patient, known)
    tables, current = open_tables(session, "tables"), open_tables(session, "current")
    raw = raw_files.raw_batches(session)
    resources = [each for each in (*tables, *current) if is_of_resources(each)]
    for table in resources:
        find_resources(session, owned, needle, table)
    for batch in raw:
        raw_files.find_lines_of(session, owned, needle, batch)
    flat = flat_tables_in((*tables, *current))
    for resource_type, table in flat:
        find_ids(session, owned, resource_type, table)
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
    for resource_type, table in flat:
        find_rows(session, owned, resource_type, table, origins[resource_type])
    contents = unlinked_contents(session, tables)
    lines = {line for batch in raw for line in batch.lines_that_go()}
    quarantine = leftovers.quarantined(session, lines)
    stray = leftovers.stray_raw(session, needle)
    return Found(owned, tables, current, raw, stray, quarantine, lines, contents)


# --- changing ----------------------------------------------------------------------------------------


def _change_all(
    session: Session,
    patient: Patient,
    needle: Needle,
    found: Found,
    known: defaultdict[str, set[str]],
    done: Erased,
) -> Found:
    """Until all is done: somebody may have committed in between."""
    from pipeline.tables.delta import Conflict

    conflict = ""
    exports: set[str] = set()
    for tries in range(MAX_TRIES):
        if tries:
            time.sleep(min(5.0, 0.2 * 2**tries))
            found = _find(session, patient, needle, known)
        try:
            for step in _steps(session, found):
                step.do()
                done.add(step, exports)
        except Conflict as lost:
            conflict = str(lost)
            continue
        return found
    raise LakeError(f"the tables keep changing ({conflict})", "Stop what writes to them, and erase again")


def _overtake(session: Session) -> None:
    """Whoever has read exports before they were changed is refused by its commit, and begins again."""
    from pipeline.tables.overtaking import overtake

    _overtake_merges(session)
    tables = open_tables(session, "tables")
    made_of_exports = [*tables_of(tables, [LINKS]), *(table for _, table in flat_tables_in(tables))]
    for table in made_of_exports:
        overtake(session.lake.table_uri(table.folder), session.lake.storage_options)


def _overtake_merges(session: Session) -> None:
    """Another commit to each current table."""
    from pipeline.tables.delta import Conflict

    for table in open_tables(session, "current"):
        with suppress(Conflict):  # somebody's own commit: the proof tells what it has brought
            erase_from_chunks(session, table)


def _steps(session: Session, found: Found) -> Iterator[Step]:
    """What is known by means of something else first: killed in between, the next one still finds it."""
    for table in sorted(found.current, key=_first_what_follows):
        yield Step(f"current/{table.name}", table.count, partial(erase_from_chunks, session, table))
    for table in sorted(found.tables, key=_first_what_follows):
        if table.rows:
            yield Step(f"tables/{table.name}", table.count, partial(erase_from_exports, session, table))
    contents = found.contents
    work = partial(leftovers.remove_all, session, [*contents.notes, *contents.unlinked])
    yield Step("attachments", len(contents.unlinked), work)
    for path, count in found.quarantine.items():
        work = partial(leftovers.rewrite_quarantine, session, path, found.lines)
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
        with readable(session, path) as local:
            return any(needle.in_rows(batch).any() for _, batch in batches_of(local))
    except LakeError:
        return True  # nobody can read it
