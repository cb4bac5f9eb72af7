"""What a merge is of: the shares of exports, and the numbers by which a current table says what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.tables.current.chunks import NEVER, ChunkTable

EXPORT, RULES, TOMBSTONES = "export:", "rules", "tombstones"
"""Of an export's commit; by which rules exports count; how many merges changed the tombstones, in both tables
that go together."""
_LATEST, _LATEST_ID = "latest", "latest-id"


@dataclass(frozen=True)
class Share:
    """What one export brought for one type."""

    export_id: str
    number: int
    """Of its commit, 1 or more: another one means that it was ingested again."""
    moment: int
    """Its transactionTime, microseconds since 1970."""
    parts: tuple[str, ...] = ()
    """Parquet parts, from the lake's root."""
    deletions: tuple[tuple[str, int | None], ...] = ()
    """Ids that the server named as deleted, and when (microseconds), where it said so."""
    deletions_until: tuple[tuple[str, int], ...] = ()
    """Ids that were deleted at that moment or before; what the export also lists is there again."""
    speaks_of: Callable[[str], bool] | None = field(default=None, compare=False)
    """Whether what an export brought must be in this one too, unless it is gone: it was asked for the same.
    None: whatever brought it."""
    listed: Callable[[], Sequence[str]] = field(default=tuple, compare=False)
    """Parts, from the lake's root, of earlier exports that were asked for the same: it speaks of what is in
    them too, whatever brought the version that stands."""
    replaces_all: bool = False
    """A full export, and what it lacks counts as gone, ..."""
    until: int | None = None
    """... unless it was written after that moment, microseconds, ..."""
    members: frozenset[str] = frozenset()
    """... or is of none of these patients, but of others; empty: whosever it is."""
    renewed: frozenset[str] = frozenset()
    """Patients of whom it has everything: what it lacks of theirs counts as gone."""
    left: frozenset[str] = frozenset()
    """Patients whose resources count as gone with it, its own too."""
    resource_type: str = ""
    """Of its rows: where they name their patients."""

    @property
    def named(self) -> int:
        """How many ids it names as deleted."""
        return len(self.deletions) + len(self.deletions_until)

    @property
    def order(self) -> tuple[int, int]:
        """Exports count in the order of their transactionTime, and of their ids where that is the same."""
        return self.moment, digits(self.export_id)


@dataclass(frozen=True)
class Merged:
    """What a merge came to."""

    rows: int
    """Alive, afterwards."""
    deleted: int
    """Gone, afterwards."""
    added: int
    """Rows that were put in."""
    removed: int
    """Rows that were taken out: replaced, or gone."""
    chunks_out: int
    chunks_in: int
    version: int | None
    """Of the Delta table."""


@dataclass(frozen=True)
class Places:
    """Where the two tables of a type lie, from the lake's root."""

    current: str
    deleted: str


def digits(export_id: str) -> int:
    """An export's id as a number that sorts alike."""
    return int("0" + "".join(each for each in export_id if each.isdigit())[:18])


def number_of(table: ChunkTable, export_id: str) -> int:
    """Which commit of that export the table holds, or `NEVER`."""
    return table.number(f"{EXPORT}{export_id}")


def torn(current: ChunkTable, deleted: ChunkTable) -> bool:
    """Whether tombstones came without the rows of the same merge: it was killed between the commits, or
    overtaken there by one that left the tombstones alone."""
    return deleted.number(TOMBSTONES) != current.number(TOMBSTONES)


def latest_of(table: ChunkTable) -> tuple[int, int]:
    """The order of the latest export that the table holds: an earlier one cannot be folded in alone."""
    return table.number(_LATEST), table.number(_LATEST_ID)


def rules_of(table: ChunkTable) -> int:
    """By which rules the table was made, as `merge` was told, or `NEVER`."""
    return table.number(RULES)


def numbers_of(shares: Sequence[Share], without: Sequence[str]) -> dict[str, int]:
    """What the tables say when `shares` are merged, in that order, and exports `without` count no more."""
    numbers = {f"{EXPORT}{export_id}": NEVER for export_id in without}
    numbers |= {f"{EXPORT}{share.export_id}": share.number for share in shares}
    latest = shares[-1].order if shares else (NEVER, NEVER)
    return numbers | {_LATEST: latest[0], _LATEST_ID: latest[1]}
