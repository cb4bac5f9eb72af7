"""Publishing: everything is checked against the manifest, and only then every table is committed.

One step per export does it. A crash in the middle is finished by the next attempt: tables that were committed
since the last receipt are left as they are (design, Tables).
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.exports import partial as partial_rules
from pipeline.exports.acceptance import in_words, objections
from pipeline.exports.attempt import Attempt, require_claim
from pipeline.exports.batches import Batches
from pipeline.exports.closing import close
from pipeline.exports.deletions import write_deletes
from pipeline.exports.facts import LandedBatch, Publication, StagedBatch, StagedPartFact, TableCounts
from pipeline.exports.foreign_files import foreign_files
from pipeline.exports.lineage import write_exports_row, write_lineage
from pipeline.exports.members import write_members
from pipeline.exports.quarantine import UNTYPED
from pipeline.exports.request import require_request
from pipeline.exports.session import Session
from pipeline.exports.sidecars import read_sidecars
from pipeline.exports.staging import SIDECARS, tables_of, usable_stagings

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.bulkdata.manifest import Manifest


@dataclass
class _Share:
    """What all batches hold for one table."""

    parts: list[StagedPartFact] = field(default_factory=list)
    lines: int = 0
    """Rows, and lines in quarantine."""
    files: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class _Ready:
    """One table's share, checked and of one schema."""

    table: str
    resource_type: str
    schema: pa.Schema
    parts: tuple[StagedPartFact, ...]
    files: int
    quarantined: int


def publish(session: Session, attempt: Attempt, manifest: Manifest, expected: Sequence[str]) -> Publication:
    """Commits every table of the export, then its lineage, then the line in `_exports` that makes it whole.

    `expected`: resource types that get an (empty) table although the manifest has no file of theirs.
    Raises `VerificationFailed` before anything is changed; `StillRunning` when another run took over.
    """
    landed = session.ledger.packed_landed(attempt.export_id)
    _check_files(manifest, landed, foreign_files(session, manifest).keys())
    staged = _all_staged(session, attempt, landed)
    _require_acceptable(session, attempt, staged)
    shares, quarantine = _shares(staged)
    ready = [
        _prepare(session, attempt, table, resource_type, shares.get(table, _Share()))
        for table, resource_type in _tables(manifest, expected, shares.keys()).items()
    ]
    sidecars = read_sidecars(session, landed)  # what cannot be understood fails before anything is visible
    partial = _compared(session, attempt, shares)
    _require_whole(session, attempt, [*partial_rules.missing_errors(sidecars.spoiling), *partial])
    require_claim(session, attempt)
    tables = {each.table: _commit(session, attempt, each) for each in ready}
    publication = Publication(
        at=session.now(),
        attempt=attempt.number,
        owner=session.owner,
        tables=tables,
        quarantined_untyped=shares[UNTYPED].quarantined if UNTYPED in shares else 0,
        quarantine=tuple(quarantine),
        partial=tuple(partial),
    )
    write_deletes(session, attempt, manifest.transaction_time, landed)
    write_members(session, attempt)
    write_lineage(session, attempt, manifest, landed, staged)
    write_exports_row(session, attempt, manifest, publication)
    session.ledger.write(attempt.export_id, f"published/{attempt.number:04d}.json", publication)
    return publication


def _all_staged(session: Session, attempt: Attempt, landed: Batches[LandedBatch]) -> Batches[StagedBatch]:
    """The conversion of every landed output batch, each once: one batch may hold lines of several tables.

    Checks lines = rows + quarantined file by file.
    """
    usable = usable_stagings(session, attempt)
    keys = []
    missing = []
    for batch in landed:
        if batch.type in SIDECARS:
            continue
        keys.append((batch.type, batch.number))
        if keys[-1] in usable:
            _check_counts(batch, usable[keys[-1]])
        else:
            missing.append(batch.type)
    if missing:
        raise VerificationFailed(
            f"{missing[0]}: {len(missing)} batches are not converted", "Run the stage again"
        )
    return usable.picked(keys)


def _shares(staged: Sequence[StagedBatch]) -> tuple[dict[str, _Share], list[str]]:
    """Table -> its share, also of lines in quarantine; and the paths of all quarantine files."""
    shares: defaultdict[str, _Share] = defaultdict(_Share)
    quarantine = []
    columns: dict[str, str] = {}
    for batch in staged:
        for part in batch.parts:
            # Hundreds of parts have the same columns, in a text of many kilobytes.
            same = columns.setdefault(part.columns, part.columns)
            shares[part.table or batch.type].parts.append(part.model_copy(update={"columns": same}))
        for file in batch.files:
            rows = batch.tables_of(file)
            for table in {batch.type, *rows, *file.bad}:
                share = shares[table]
                share.files += 1
                share.lines += rows.get(table, 0) + file.bad.get(table, 0)
                share.quarantined += file.bad.get(table, 0)
        quarantine += [part.path for part in batch.quarantine]
    return shares, quarantine


def _check_counts(batch: LandedBatch, conversion: StagedBatch) -> None:
    became = {file.name: file for file in conversion.files}
    for file in batch.files:
        found = became.get(file.name)
        if found is None or found.rows + found.quarantined != file.lines:
            what = f"{found.rows} rows and {found.quarantined} in quarantine" if found else "nothing"
            raise VerificationFailed(f"{batch.type}: {file.lines} lines of {file.name} became {what}")


def _require_acceptable(session: Session, attempt: Attempt, staged: Sequence[StagedBatch]) -> None:
    """Raises `VerificationFailed` when there are too many bad lines, and holds the export at once.

    Its bytes are here: another attempt would read the same ones.
    """
    found = objections(staged, session.source.max_quarantined)
    if not found:
        return
    require_claim(session, attempt)
    cause = in_words(found)
    advice = (
        f"{found[0].path} in the lake names the lines. To do without them raise max_quarantined, then "
        f"`fhir-export retry {attempt.facts.label}`: nothing is downloaded anew"
    )
    close(session, attempt.export_id, "held", cause, advice)
    raise VerificationFailed(cause, advice)


def _compared(session: Session, attempt: Attempt, shares: Mapping[str, _Share]) -> list[str]:
    """What is missing beside the newest export that it can be measured by, in words."""
    below, facts = session.profile.partial_below, attempt.facts
    if below is None or not partial_rules.is_full(facts):
        return []
    request = require_request(facts)
    wanted = next(each.fingerprint for each in facts.intents if each.number == request.intent)
    lines = Counter({table: share.lines for table, share in shares.items()})
    for export_id in reversed(session.ledger.export_ids()):
        if export_id >= attempt.export_id:
            continue
        earlier = session.ledger.read(export_id)
        if earlier.receipt and partial_rules.is_measure(earlier, wanted):
            before = partial_rules.lines_of(earlier.receipt)
            return partial_rules.in_words(partial_rules.shrunken(before, lines, below), export_id)
    return []


def _require_whole(session: Session, attempt: Attempt, missing: Sequence[str]) -> None:
    """Raises `VerificationFailed` when part is missing and such an export is to be held, and holds it."""
    if not missing or session.source.on_partial == "publish" or attempt.facts.taken_as_it_is:
        return
    require_claim(session, attempt)
    cause = f"part of the data is missing: {'; '.join(missing)}"
    label = attempt.facts.label
    advice = (
        f"Ask the server's operator. If it is right so, `fhir-export retry {label} --accept-partial` "
        f"publishes it as it is, nothing is downloaded anew; else `fhir-export withdraw {label}` and start "
        "a new export run"
    )
    close(session, attempt.export_id, "held", cause, advice)
    raise VerificationFailed(cause, advice)


def _tables(manifest: Manifest, expected: Sequence[str], shares: Set[str]) -> dict[str, str]:
    """Table -> resource type: of the configuration, the manifest, and lines that came in other files."""
    from pipeline.tables.definitions import table_name, type_of_table

    strayed = sorted(shares - {UNTYPED})
    found = {table: type_of_table(table) for table in strayed}
    return (
        {table_name(each): each for each in expected}
        | tables_of(manifest)
        | {table: resource_type for table, resource_type in found.items() if resource_type is not None}
    )


def _check_files(manifest: Manifest, landed: Sequence[LandedBatch], foreign: Set[tuple[str, int]]) -> None:
    """Each file of the manifest has landed exactly once, and nothing else has; `foreign` ones need not."""
    there: dict[str, set[int]] = {}
    found = 0
    for batch in landed:
        for file in batch.files:
            there.setdefault(file.kind, set()).add(file.index)
            found += 1
    wanted = 0
    missing = []
    for each in manifest.files:
        landed_already = each.index in there.get(each.kind, ())
        if not landed_already and (each.kind, each.index) in foreign:
            continue
        wanted += 1
        if not landed_already:
            missing.append((each.kind, each.index))
    if missing:
        kind, index = min(missing)
        raise VerificationFailed(
            f"{len(missing)} of {wanted} files of the manifest have not landed, {kind} {index} for one"
        )
    if found != wanted:
        raise VerificationFailed(f"{found} files have landed, the manifest has {wanted}", "Report this")


def _prepare(session: Session, attempt: Attempt, table: str, resource_type: str, share: _Share) -> _Ready:
    """Brings all parts of a table, whichever files its lines came in, to one schema."""
    from pipeline.tables.delta import table_schema
    from pipeline.tables.schema import floor_schema, from_json, union

    schema = table_schema(session.table_uri(table), session.lake.storage_options)
    schema = schema if schema is not None else floor_schema(resource_type)
    for part in share.parts:
        schema = union(schema, from_json(part.columns), resource_type)
    parts = tuple(_at_width(session, attempt, table, part, schema) for part in share.parts)
    return _Ready(table, resource_type, schema, parts, share.files, share.quarantined)


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
    return StagedPartFact(table=table, path=name, rows=wide.rows, bytes=wide.bytes, columns=to_json(schema))


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
        quarantined=ready.quarantined,
        files=ready.files,
        bytes=sum(part.bytes for part in ready.parts),
        parts=commit.parts,
        version=commit.version,
    )
