"""The numbers behind the checks of published tables: what landed, where its lines went, what tables hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.exports.attempt import Attempt
from pipeline.exports.facts import LandedBatch, Publication, StagedBatch
from pipeline.exports.session import Session
from pipeline.exports.staging import SIDECARS, usable_stagings

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest


@dataclass(frozen=True)
class ExportEvidence:
    """The whole export: every line that landed is a row of some table, or in quarantine."""

    lines: int = 0
    """Of all output files, as counted while they were downloaded."""
    rows: int = 0
    """Of all tables, as committed."""
    quarantined: int = 0

    @property
    def adds_up(self) -> bool:
        return self.lines == self.rows + self.quarantined


@dataclass(frozen=True)
class TableEvidence:
    """What there is to say for one published table, in numbers."""

    files_in_manifest: int = 0
    files_published: int = 0
    """Of those."""
    lines: int = 0
    """Of the files that declare its type, as counted while they were downloaded."""
    went_elsewhere: dict[str, int] = field(default_factory=dict)
    """Lines of these files that were of another type, by table."""
    came_from_elsewhere: int = 0
    """Lines of its type in files that declare another one, or none."""
    rows: int = 0
    """As committed."""
    quarantined: int = 0
    count_mismatches: int = 0
    repeated_ids: int = 0
    export: ExportEvidence = ExportEvidence()

    @property
    def adds_up(self) -> bool:
        """Whether lines = rows + quarantined, for the table and for the export."""
        its_own = self.lines - sum(self.went_elsewhere.values()) + self.came_from_elsewhere
        return its_own == self.rows + self.quarantined and self.export.adds_up


def find_evidence(
    session: Session, attempt: Attempt, manifest: Manifest, publication: Publication
) -> dict[str, TableEvidence]:
    """The numbers by table, read from the landed files, their conversion and the committed parts."""
    landed = [batch for batch in session.ledger.landed(attempt.export_id) if batch.type not in SIDECARS]
    usable = usable_stagings(session, attempt)
    staged = [usable[batch.type, batch.number] for batch in landed if (batch.type, batch.number) in usable]
    export = ExportEvidence(
        lines=sum(file.lines for batch in landed for file in batch.files),
        rows=sum(counts.rows for counts in publication.tables.values()),
        quarantined=publication.quarantined,
    )
    moves = _moves(staged)
    found = {}
    for table, counts in publication.tables.items():
        files = [file for batch in landed if batch.type == table for file in batch.files]
        found[table] = TableEvidence(
            files_in_manifest=sum(file.type == counts.resource_type for file in manifest.of_kind("output")),
            files_published=sum(len(batch.files) for batch in staged if batch.type == table),
            lines=sum(file.lines for file in files),
            went_elsewhere={to: number for (source, to), number in moves.items() if source == table},
            came_from_elsewhere=sum(number for (_, to), number in moves.items() if to == table),
            rows=counts.rows,
            quarantined=counts.quarantined,
            count_mismatches=_count_mismatches(landed, table),
            repeated_ids=_repeated_ids(session, attempt, table),
            export=export,
        )
    return found


def _moves(staged: Sequence[StagedBatch]) -> Counter[tuple[str, str]]:
    """Lines that went to another table than their file declares, by (from, to); bad ones included."""
    moves: Counter[tuple[str, str]] = Counter()
    for batch in staged:
        for file in batch.files:
            for counts in (batch.tables_of(file), file.bad):
                for table, number in counts.items():
                    if table != batch.type:
                        moves[batch.type, table] += number
    return moves


def _count_mismatches(landed: Sequence[LandedBatch], table: str) -> int:
    return sum(
        file.count not in (None, file.lines + file.erased)
        for batch in landed
        if batch.type == table
        for file in batch.files
    )


def _repeated_ids(session: Session, attempt: Attempt, table: str) -> int:
    from pipeline.tables.delta import live_parts
    from pipeline.tables.parts import repeated_ids

    parts = live_parts(session.table_uri(table), attempt.export_id, session.lake.storage_options)
    with ExitStack() as stack:
        folder = session.table(table)
        return repeated_ids(
            [stack.enter_context(session.lake.local_copy(f"{folder}/{p.path}")) for p in parts]
        )
