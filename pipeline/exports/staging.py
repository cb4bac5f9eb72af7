"""Staging: landed batches converted to Parquet parts that no reader sees yet.

One call stages one type, or one shard of it; several may run at once, in other processes too. What earlier
attempts have landed and staged is used, never done again.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.exports.attempt import Attempt
from pipeline.exports.facts import FileRows, LandedBatch, LandedFile, StagedBatch, StagedPartFact
from pipeline.exports.landing import land
from pipeline.exports.manifests import FileKey, live_manifest
from pipeline.exports.session import Session

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.bulkdata.manifest import Manifest, ManifestFile
    from pipeline.tables.convert import Converter

SIDECARS = ("deleted", "error")


@dataclass(frozen=True)
class Staged:
    """What a staging step has to show."""

    batches: tuple[StagedBatch, ...]

    @property
    def rows(self) -> int:
        return sum(batch.rows for batch in self.batches)

    @property
    def quarantined(self) -> int:
        return sum(batch.quarantined for batch in self.batches)

    @property
    def files(self) -> int:
        return sum(len(batch.files) for batch in self.batches)


def tables_of(manifest: Manifest) -> dict[str, str]:
    """Table name -> resource type, for every type in the manifest, in its order.

    Raises `VerificationFailed` for a file without a type, or of a type that R4 does not have.
    """
    from pipeline.tables.definitions import is_resource_type, table_name

    found: dict[str, str] = {}
    for file in manifest.files:
        if file.kind != "output":
            continue
        if file.type is None:
            raise VerificationFailed(
                f"output file {file.index} of the manifest declares no type",
                "Leave out organizeOutputBy; such files are not supported by this version",
            )
        if not is_resource_type(file.type):
            raise VerificationFailed(
                f"output file {file.index} of the manifest declares a type that FHIR R4 does not have",
                "This pipeline reads R4 (4.0.1); check the server's FHIR version",
            )
        found.setdefault(table_name(file.type), file.type)
    return found


def stage_type(
    session: Session, attempt: Attempt, manifest: Manifest, table: str, shard: int = 0, shards: int = 1
) -> Staged:
    """Lands and converts the files of one table (file i of the type in shard i % shards).

    Raises `DownloadRefused`, `VerificationFailed`, `AuthError`, `Unreachable`, `StillRunning`, `LakeError`.
    """
    from pipeline.tables.definitions import table_name

    files = [f for f in manifest.files if f.kind == "output" and f.type and table_name(f.type) == table]
    mine = files[shard::shards]
    if not mine:
        return Staged(())
    work = _Work(session, attempt, table, mine[0].type or "", _known_schema(session, table))
    ours = {(file.kind, file.index) for file in mine}
    landed = session.ledger.landed(attempt.export_id, table)
    usable = usable_stagings(session, attempt, table)
    done = []
    for batch in landed:
        if (batch.files[0].kind, batch.files[0].index) not in ours:
            continue  # another shard's; one that was landed under other shards belongs to its first file's
        if batch.number in usable:
            done.append(usable[batch.number])
        else:
            with session.lake.local_copy(batch.raw) as raw, session.lake.spool() as spool:
                done.append(work.convert(batch, raw, spool))
    with session.lake.spool() as spool:
        rest = _not_landed(mine, landed)
        live = live_manifest(session, attempt)
        for batch, raw in land(session, attempt, live, table, rest, spool):
            done.append(work.convert(batch, raw, spool))
    return Staged(tuple(done))


def land_sidecars(session: Session, attempt: Attempt, manifest: Manifest) -> list[LandedBatch]:
    """Lands the small `deleted` and `error` files; returns all their batches."""
    live = live_manifest(session, attempt)
    for kind in SIDECARS:
        files = [file for file in manifest.files if file.kind == kind]
        landed = session.ledger.landed(attempt.export_id, kind)
        with session.lake.spool() as spool:
            for _ in land(session, attempt, live, kind, _not_landed(files, landed), spool):
                pass
    return [batch for kind in SIDECARS for batch in session.ledger.landed(attempt.export_id, kind)]


def usable_stagings(session: Session, attempt: Attempt, table: str) -> dict[int, StagedBatch]:
    """Batches of a table that are converted, by number, the newest of each, with all their parts there.

    Those of the last receipt's attempt and before are live in the table, and never added again (design).
    """
    settled = attempt.facts.settled_attempt
    prefix = f"{session.table(table)}/export_id={attempt.export_id}"
    sizes = session.lake.sizes(prefix)
    usable: dict[int, StagedBatch] = {}
    for batch in session.ledger.staged(attempt.export_id, table):
        names = [(part.path.rsplit("/", 1)[-1], part.bytes) for part in batch.parts]
        if batch.attempt > settled and all(sizes.get(name) == size for name, size in names):
            usable[batch.number] = batch
    return usable


def _not_landed(files: Sequence[ManifestFile], landed: Iterable[LandedBatch]) -> list[FileKey]:
    there = {(file.kind, file.index) for batch in landed for file in batch.files}
    return [(file.kind, file.index) for file in files if (file.kind, file.index) not in there]


def _known_schema(session: Session, table: str) -> pa.Schema | None:
    from pipeline.tables.delta import table_schema

    return table_schema(session.table_uri(table), session.lake.storage_options)


@dataclass
class _Work:
    session: Session
    attempt: Attempt
    table: str
    resource_type: str
    known: pa.Schema | None

    def convert(self, batch: LandedBatch, raw: Path, spool: Path) -> StagedBatch:
        from pipeline.tables.convert import Converter
        from pipeline.tables.schema import union

        session, export_id = self.session, self.attempt.export_id
        with Converter(self.resource_type, self.known, export_id, spool) as converter:
            files = tuple(self._convert_file(converter, file, raw) for file in batch.files)
            local = converter.finish()
        parts = []
        for part in local:
            name = f"export_id={export_id}/part-{self.attempt.number:04d}-{uuid.uuid4().hex}.parquet"
            session.lake.put_file(part.path, f"{session.table(self.table)}/{name}")
            part.path.unlink()
            parts.append(_part_fact(name, part.rows, part.bytes, part.schema))
            self.known = union(self.known, part.schema, self.resource_type) if self.known else part.schema
        staged = StagedBatch(
            at=session.now(),
            type=self.table,
            number=batch.number,
            attempt=self.attempt.number,
            parts=tuple(parts),
            files=files,
        )
        name = f"staged/{self.attempt.number:04d}/{self.table}-{batch.number:06d}.json"
        session.ledger.write(export_id, name, staged)
        session.log(f"{self.table}: {len(files)} files, {staged.rows} rows staged")
        return staged

    def _convert_file(self, converter: Converter, file: LandedFile, raw: Path) -> FileRows:
        from pipeline.bulkdata.decoding import decoded_blocks, physical_lines

        digest = hashlib.sha256()
        blocks = _hashed(decoded_blocks(raw, file.encoding, file.offset, file.length), digest)
        rows = converter.add(physical_lines(blocks), file.name)
        if digest.hexdigest() != file.sha256:
            raise VerificationFailed(
                f"{self.table}: the raw bytes of {file.name} are not those that were downloaded",
                "Nothing is published; restore the raw file, or start a new export run",
            )
        if rows != file.lines:
            raise VerificationFailed(
                f"{self.table}: {file.name} has {file.lines} lines and gave {rows} rows",
                "Nothing is published; report this, the raw file is kept",
            )
        return FileRows(name=file.name, lines=file.lines, rows=rows, quarantined=0)


def _hashed(blocks: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def _part_fact(name: str, rows: int, size: int, schema: pa.Schema) -> StagedPartFact:
    from pipeline.tables.schema import to_json

    return StagedPartFact(path=name, rows=rows, bytes=size, columns=to_json(schema))
