"""Publishing: everything is checked against the manifest, and only then every table is committed.

One step per export does it. A crash in the middle is finished by the next attempt: tables that were committed
since the last receipt are left as they are (design, Tables).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.exports.attempt import Attempt, require_claim
from pipeline.exports.facts import LandedBatch, Publication, StagedBatch, StagedPartFact, TableCounts
from pipeline.exports.lineage import write_exports_row, write_lineage
from pipeline.exports.session import Session
from pipeline.exports.sidecars import read_sidecars
from pipeline.exports.staging import tables_of, usable_stagings

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.bulkdata.manifest import Manifest


@dataclass(frozen=True)
class _Ready:
    """One table's share, checked and of one schema."""

    table: str
    resource_type: str
    schema: pa.Schema
    parts: tuple[StagedPartFact, ...]
    staged: tuple[StagedBatch, ...]


def publish(session: Session, attempt: Attempt, manifest: Manifest, expected: Sequence[str]) -> Publication:
    """Commits every table of the export, then its lineage, then the line in `_exports` that makes it whole.

    `expected`: resource types that get an (empty) table although the manifest has no file of theirs.
    Raises `VerificationFailed` before anything is changed; `StillRunning` when another run took over.
    """
    landed = session.ledger.landed(attempt.export_id)
    _check_files(manifest, landed)
    ready = [
        _prepare(session, attempt, table, resource_type, landed)
        for table, resource_type in _tables(manifest, expected).items()
    ]
    read_sidecars(session, landed)  # what cannot be understood must fail before anything is visible
    require_claim(session, attempt)
    tables = {each.table: _commit(session, attempt, each) for each in ready}
    staged = [batch for each in ready for batch in each.staged]
    write_lineage(session, attempt, manifest, landed, staged)
    write_exports_row(session, attempt, manifest, tables)
    publication = Publication(at=session.now(), attempt=attempt.number, owner=session.owner, tables=tables)
    session.ledger.write(attempt.export_id, f"published/{attempt.number:04d}.json", publication)
    return publication


@dataclass(frozen=True)
class TableEvidence:
    """What there is to say for one published table, in numbers."""

    files_in_manifest: int
    files_published: int
    lines: int
    rows: int
    quarantined: int
    count_mismatches: int
    repeated_ids: int


def find_evidence(
    session: Session, attempt: Attempt, manifest: Manifest, publication: Publication
) -> dict[str, TableEvidence]:
    """The numbers behind the checks, by table, read from the landed files and the committed parts."""
    landed = session.ledger.landed(attempt.export_id)
    found = {}
    for table, counts in publication.tables.items():
        files = [file for batch in landed if batch.type == table for file in batch.files]
        found[table] = TableEvidence(
            files_in_manifest=sum(file.type == counts.resource_type for file in manifest.of_kind("output")),
            files_published=counts.files,
            lines=sum(file.lines for file in files),
            rows=counts.rows,
            quarantined=counts.quarantined,
            count_mismatches=sum(file.count not in (None, file.lines) for file in files),
            repeated_ids=_repeated_ids(session, attempt, table),
        )
    return found


def _repeated_ids(session: Session, attempt: Attempt, table: str) -> int:
    from pipeline.tables.delta import live_parts
    from pipeline.tables.parts import repeated_ids

    parts = live_parts(session.table_uri(table), attempt.export_id, session.lake.storage_options)
    with ExitStack() as stack:
        folder = session.table(table)
        return repeated_ids(
            [stack.enter_context(session.lake.local_copy(f"{folder}/{p.path}")) for p in parts]
        )


def _tables(manifest: Manifest, expected: Sequence[str]) -> dict[str, str]:
    from pipeline.tables.definitions import table_name

    return {table_name(each): each for each in expected} | tables_of(manifest)


def _check_files(manifest: Manifest, landed: Sequence[LandedBatch]) -> None:
    """Each file of the manifest has landed exactly once, and nothing else has."""
    found = [(file.kind, file.index) for batch in landed for file in batch.files]
    wanted = {(file.kind, file.index) for file in manifest.files}
    missing = sorted(wanted - set(found))
    if missing:
        kind, index = missing[0]
        raise VerificationFailed(
            f"{len(missing)} of {len(wanted)} files of the manifest have not landed, {kind} {index} for one"
        )
    if len(found) != len(wanted):
        raise VerificationFailed(
            f"{len(found)} files have landed, the manifest has {len(wanted)}", "Report this"
        )


def _prepare(
    session: Session, attempt: Attempt, table: str, resource_type: str, landed: Sequence[LandedBatch]
) -> _Ready:
    """Checks lines = rows + quarantined file by file, and brings all parts to one schema."""
    from pipeline.tables.delta import table_schema
    from pipeline.tables.schema import floor_schema, from_json, union

    batches = [batch for batch in landed if batch.type == table]
    usable = usable_stagings(session, attempt, table)
    unstaged = [batch.number for batch in batches if batch.number not in usable]
    if unstaged:
        raise VerificationFailed(f"{table}: {len(unstaged)} batches are not converted", "Run the stage again")
    staged = tuple(usable[batch.number] for batch in batches)
    for batch, conversion in zip(batches, staged, strict=True):
        _check_counts(table, batch, conversion)
    schema = table_schema(session.table_uri(table), session.lake.storage_options)
    schema = schema if schema is not None else floor_schema(resource_type)
    for conversion in staged:
        for part in conversion.parts:
            schema = union(schema, from_json(part.columns), resource_type)
    parts = tuple(_at_width(session, attempt, table, part, schema) for each in staged for part in each.parts)
    return _Ready(table, resource_type, schema, parts, staged)


def _check_counts(table: str, batch: LandedBatch, conversion: StagedBatch) -> None:
    rows = {file.name: file for file in conversion.files}
    for file in batch.files:
        found = rows.get(file.name)
        if found is None or found.rows + found.quarantined != file.lines:
            became = f"{found.rows} rows and {found.quarantined} in quarantine" if found else "nothing"
            raise VerificationFailed(f"{table}: {file.lines} lines of {file.name} became {became}")


def _at_width(
    session: Session, attempt: Attempt, table: str, part: StagedPartFact, schema: pa.Schema
) -> StagedPartFact:
    """The part itself, or a copy with the columns that later parts or the table brought."""
    from pipeline.tables.parts import rewrite_part
    from pipeline.tables.schema import covers, from_json, to_json

    if covers(from_json(part.columns), schema):
        return part
    name = f"export_id={attempt.export_id}/part-{attempt.number:04d}-{uuid.uuid4().hex}.parquet"
    folder = session.table(table)
    with session.lake.spool() as spool, session.lake.local_copy(f"{folder}/{part.path}") as narrow:
        wide = rewrite_part(narrow, spool / "wide.parquet", schema)
        session.lake.put_file(wide.path, f"{folder}/{name}")
    return StagedPartFact(path=name, rows=wide.rows, bytes=wide.bytes, columns=to_json(schema))


def _commit(session: Session, attempt: Attempt, ready: _Ready) -> TableCounts:
    from pipeline.tables.delta import StagedPart, commit_export

    commit = commit_export(
        session.table_uri(ready.table),
        export_id=attempt.export_id,
        attempt=attempt.number,
        replaces_after=attempt.facts.settled_attempt,
        parts=[StagedPart(part.path, part.bytes, part.rows) for part in ready.parts],
        schema=ready.schema,
        storage_options=session.lake.storage_options,
        metadata={"dagster_run_id": session.owner.run_id},
    )
    rows = sum(part.rows for part in ready.parts)
    if commit.rows != rows:
        raise VerificationFailed(
            f"{ready.table}: {rows} rows were committed and the table has {commit.rows} of this export"
        )
    session.log(f"{ready.table}: {rows} rows published as version {commit.version}")
    return TableCounts(
        resource_type=ready.resource_type,
        rows=rows,
        quarantined=sum(batch.quarantined for batch in ready.staged),
        files=sum(len(batch.files) for batch in ready.staged),
        bytes=sum(part.bytes for part in ready.parts),
        parts=commit.parts,
        version=commit.version,
    )
