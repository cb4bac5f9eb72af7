"""Which version of a resource stands: a fold over the exports, in the order of their transactionTime.

The state of an id is one version, alive or gone. An export brings versions of its own, and each takes the
place of the one that stands only where it `beats` it. As nothing but the standing version is needed, an
export that is the latest can be folded in alone, and gives what folding all of them again would give.

Columns of numbers for millions of versions at once; ids are codes (`Ids`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

UNKNOWN = np.iinfo(np.int64).min
"""An instant that is not known."""
NAMED = -1
"""The source of a deletion that the server named: it has no row."""
ABSENT = -2
"""The source of what a full export lacks."""
LEFT = -3
"""The source of what is of patients who have left the group."""


@dataclass(frozen=True)
class Versions:
    """Versions of resources, one place in each column; the order is that of their lines."""

    updated: NDArray[np.int64]
    """`meta.lastUpdated` in microseconds since 1970, of a deletion its own instant; or `UNKNOWN`."""
    version: NDArray[np.int64]
    """`meta.versionId` where that is an integer, else -1: it is opaque then."""
    whole: NDArray[np.bool_]
    """Not tagged SUBSETTED."""
    gone: NDArray[np.bool_]
    """A deletion."""
    source: NDArray[np.int32]
    """Which part it is a row of, or `NAMED`, `ABSENT` or `LEFT`."""
    row: NDArray[np.int64]
    """Its row there, from 0."""

    def __len__(self) -> int:
        return len(self.updated)

    def take(self, places: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Versions:
        """Those at the places, in that order."""
        return Versions(*(getattr(self, field.name)[places] for field in fields(self)))

    @classmethod
    def together(cls, several: Sequence[Versions]) -> Versions:
        """One behind the other; `several` is not empty."""
        columns = (np.concatenate([getattr(each, field.name) for each in several]) for field in fields(cls))
        return cls(*columns)

    @classmethod
    def gone_at(cls, instants: NDArray[np.int64], source: int = NAMED) -> Versions:
        """Deletions without a row, each at its instant or `UNKNOWN`."""
        size = len(instants)
        return cls(
            updated=instants,
            version=np.full(size, -1, np.int64),
            whole=np.ones(size, np.bool_),
            gone=np.ones(size, np.bool_),
            source=np.full(size, source, np.int32),
            row=np.full(size, -1, np.int64),
        )


def beats(later: Versions, standing: Versions) -> NDArray[np.bool_]:
    """Whether each of `later` takes the place of the one beside it, which came before.

    A whole resource stands before a SUBSETTED one (protocol fact 16). Then the newer `lastUpdated` counts,
    read as an instant; then the greater `versionId`, where both are integers; then the later export, and
    the later line. A deletion competes by its own instant; one without an instant is as late as its export.
    """
    wins = np.ones(len(later), np.bool_)
    # That something is gone still must not hide when it went.
    wins[later.gone & (later.updated == UNKNOWN) & standing.gone] = False
    numbered = (later.version >= 0) & (standing.version >= 0) & (later.version != standing.version)
    wins[numbered] = (later.version > standing.version)[numbered]
    timed = (later.updated != UNKNOWN) & (standing.updated != UNKNOWN) & (later.updated != standing.updated)
    wins[timed] = (later.updated > standing.updated)[timed]
    partly = (later.whole != standing.whole) & ~later.gone & ~standing.gone
    wins[partly] = later.whole[partly]
    return wins


class State:
    """The version that stands for each of `size` ids, at first none."""

    def __init__(self, size: int) -> None:
        self.known = np.zeros(size, np.bool_)
        """Whether there is one, alive or gone."""
        self.export = np.full(size, -1, np.int32)
        """The export that brought it, as a number that the caller gives."""
        self.versions = Versions(
            updated=np.full(size, UNKNOWN, np.int64),
            version=np.full(size, -1, np.int64),
            whole=np.zeros(size, np.bool_),
            gone=np.zeros(size, np.bool_),
            source=np.full(size, NAMED, np.int32),
            row=np.full(size, -1, np.int64),
        )

    @property
    def alive(self) -> NDArray[np.bool_]:
        return self.known & ~self.versions.gone

    def fold(self, codes: NDArray[np.int32], versions: Versions, export: int) -> None:
        """Let `versions` of one export compete, those of the same id in their order."""
        if not len(codes):
            return
        order = np.argsort(codes, kind="stable")
        grouped = codes[order]
        begins = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]])
        sizes = np.diff(np.r_[begins, len(grouped)])
        for place in range(int(sizes.max())):
            with_more = begins[sizes > place]
            self._compete(grouped[with_more], versions.take(order[with_more + place]), export)

    def lacked(self, there: NDArray[np.bool_]) -> NDArray[np.int32]:
        """What is alive, of which a full export has only the ids that are `there`."""
        return np.flatnonzero(self.alive & ~there).astype(np.int32)

    def gone_without_a_word(
        self, codes: NDArray[np.int32], export: int, until: int = UNKNOWN, *, source: int = ABSENT
    ) -> None:
        """What an export shows to be gone, though nobody said when; of one that ends at `until`, what was
        written later is not."""
        self.fold(codes, Versions.gone_at(np.full(len(codes), until, np.int64), source), export)

    def _compete(self, codes: NDArray[np.int32], versions: Versions, export: int) -> None:
        """Each id once."""
        wins = ~self.known[codes] | beats(versions, self.versions.take(codes))
        codes, versions = codes[wins], versions.take(wins)
        self.known[codes] = True
        self.export[codes] = export
        for field in fields(Versions):
            getattr(self.versions, field.name)[codes] = getattr(versions, field.name)
