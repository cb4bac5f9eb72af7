"""Facts of batches held small: each file is an entry in them, and an export may have a million files.

Parsed, a file takes about 1.5 kB of memory in each kind of batch; here it takes about 100 bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

from pipeline.exports.facts import LandedBatch, StagedBatch

B = TypeVar("B", LandedBatch, StagedBatch)


@dataclass(frozen=True)
class Batches(Sequence[B], Generic[B]):
    """Batches of one kind, in order, each parsed anew whenever it is looked at: go through them few times."""

    model: type[B]
    packed: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, model: type[B], batches: Iterable[B]) -> Batches[B]:
        """Takes them one by one, so that only one of them is held whole."""
        return cls(model, tuple(zlib.compress(batch.model_dump_json().encode(), 1) for batch in batches))

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator[B]:
        return map(self._parsed, self.packed)

    @overload
    def __getitem__(self, at: int) -> B: ...

    @overload
    def __getitem__(self, at: slice) -> Batches[B]: ...

    def __getitem__(self, at: int | slice) -> B | Batches[B]:
        if isinstance(at, slice):
            return Batches(self.model, self.packed[at])
        return self._parsed(self.packed[at])

    def picked(self, positions: Iterable[int]) -> Batches[B]:
        """Some of them, in that order."""
        return Batches(self.model, tuple(self.packed[each] for each in positions))

    def _parsed(self, packed: bytes) -> B:
        return self.model.model_validate_json(zlib.decompress(packed))
