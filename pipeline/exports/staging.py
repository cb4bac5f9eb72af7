"""Staging: landed batches converted to Parquet parts that no reader sees yet.

One call stages the files of one declared type, or one shard of them, or those without a type; several may run
at once, in other processes too. What earlier attempts have landed and staged is used, never done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.exports.attempt import Attempt
from pipeline.exports.batches import Batches
from pipeline.exports.conversion import Conversion
from pipeline.exports.facts import LandedBatch, StagedBatch
from pipeline.exports.foreign_files import foreign_files
from pipeline.exports.landing import land
from pipeline.exports.manifests import FileKey, live_manifest
from pipeline.exports.quarantine import UNTYPED, quarantine_folder
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest, ManifestFile

SIDECARS = ("deleted", "error")


@dataclass
class Staged:
    """What a staging step has to show."""

    rows: int = 0
    quarantined: int = 0
    files: int = 0

    def add(self, batch: StagedBatch) -> None:
        self.rows += batch.rows
        self.quarantined += batch.quarantined
        self.files += len(batch.files)


@dataclass(frozen=True)
class Usable(Mapping[tuple[str, int], StagedBatch]):
    """Conversions that can be published, by group and number; held small."""

    batches: Batches[StagedBatch]
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, int]) -> StagedBatch:
        return self.batches[self.positions[key]]

    def __contains__(self, key: object) -> bool:
        return key in self.positions

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def picked(self, keys: Iterable[tuple[str, int]]) -> Batches[StagedBatch]:
        """Those of these keys, in that order."""
        return self.batches.picked(self.positions[key] for key in keys)


def group_of(file: ManifestFile) -> str:
    """What an output file lands and is staged under: the table of its declared type, or `untyped`.

    A type that R4 does not have is none: what the lines are is seen when they are split.
    """
    from pipeline.tables.definitions import is_resource_type, table_name

    return table_name(file.type) if file.type and is_resource_type(file.type) else UNTYPED


def groups_of(manifest: Manifest) -> list[str]:
    """Every group of output files in the manifest, in its order: what there is to stage."""
    return list(dict.fromkeys(group_of(file) for file in manifest.of_kind("output")))


def tables_of(manifest: Manifest) -> dict[str, str]:
    """Table name -> resource type, for every R4 type that the manifest declares, in its order."""
    from pipeline.tables.definitions import type_of_table

    found = {group: type_of_table(group) for group in groups_of(manifest)}
    return {group: resource_type for group, resource_type in found.items() if resource_type is not None}


def stage_type(
    session: Session, attempt: Attempt, manifest: Manifest, group: str, shard: int = 0, shards: int = 1
) -> Staged:
    """Lands and converts the files of one group (file i of the group in shard i % shards).

    Raises `DownloadRefused`, `VerificationFailed`, `AuthError`, `Unreachable`, `StillRunning`, `LakeError`.
    """
    files = [file for file in manifest.of_kind("output") if group_of(file) == group]
    mine = files[shard::shards]
    if not mine:
        return Staged()
    conversion = Conversion(session, attempt)
    ours = {(file.kind, file.index) for file in mine}
    landed = session.ledger.packed_landed(attempt.export_id, group)
    usable = usable_stagings(session, attempt, group)
    done = Staged()
    for batch in landed:
        if (batch.files[0].kind, batch.files[0].index) not in ours:
            continue  # another shard's; one that was landed under other shards belongs to its first file's
        if (group, batch.number) in usable:
            done.add(usable[group, batch.number])
        else:
            with session.lake.local_copy(batch.raw) as raw, session.lake.spool() as spool:
                done.add(conversion.convert(batch, raw, spool))
    with session.lake.spool() as spool:
        rest = _not_landed(mine, landed)
        live = live_manifest(session, attempt)
        for batch, raw in land(session, attempt, live, group, rest, spool):
            done.add(conversion.convert(batch, raw, spool))
    return done


def land_sidecars(session: Session, attempt: Attempt, manifest: Manifest) -> list[LandedBatch]:
    """Lands the small `deleted` and `error` files; returns all their batches.

    `error` files that must not be asked for are left out, where the profile can do without them.
    """
    live = live_manifest(session, attempt)
    foreign = foreign_files(session, manifest)
    for reason in foreign.values():
        session.log(f"an error file of the manifest is left out: {reason}")
    for kind in SIDECARS:
        files = [
            file for file in manifest.files if file.kind == kind and (file.kind, file.index) not in foreign
        ]
        landed = session.ledger.packed_landed(attempt.export_id, kind)
        with session.lake.spool() as spool:
            for _ in land(session, attempt, live, kind, _not_landed(files, landed), spool):
                pass
    return [batch for kind in SIDECARS for batch in session.ledger.landed(attempt.export_id, kind)]


def usable_stagings(session: Session, attempt: Attempt, group: str | None = None) -> Usable:
    """Batches that are converted, by group and number, the newest of each, with all their files there.

    Those of the last receipt's attempt and before are live in the tables, and never added again (design).
    """
    settled = attempt.facts.settled_attempt
    there = _Sizes(session, attempt.export_id)
    staged = session.ledger.packed_staged(attempt.export_id, group)
    positions = {
        (batch.type, batch.number): position
        for position, batch in enumerate(staged)
        if batch.attempt > settled and there.all_of(batch)
    }
    return Usable(staged, positions)


class _Sizes:
    """The sizes of an export's files in the lake; each folder is listed once."""

    def __init__(self, session: Session, export_id: str) -> None:
        self._session = session
        self._export_id = export_id
        self._folders: dict[str, Mapping[str, int]] = {}

    def all_of(self, batch: StagedBatch) -> bool:
        """Whether every part and every quarantine file of a batch is there, whole."""
        quarantine = quarantine_folder(self._session.source.name, self._export_id)
        return all(
            self._size(self._session.table(part.table or batch.type), part.path) == part.bytes
            for part in batch.parts
        ) and all(
            self._size(quarantine, part.path.removeprefix(f"{quarantine}/")) == part.bytes
            for part in batch.quarantine
        )

    def _size(self, folder: str, path: str) -> int | None:
        below, _, name = path.rpartition("/")
        where = f"{folder}/{below}"
        if where not in self._folders:
            self._folders[where] = self._session.lake.sizes(where)
        return self._folders[where].get(name)


def _not_landed(files: Sequence[ManifestFile], landed: Iterable[LandedBatch]) -> list[FileKey]:
    there = {(file.kind, file.index) for batch in landed for file in batch.files}
    return [(file.kind, file.index) for file in files if (file.kind, file.index) not in there]
