"""Ids as small numbers, for folding millions of them in columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

UNCODED = -1
_TAIL = 8
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Vocabulary:
    """The ids that matter, each with a code from 0 on, in the order in which they came."""

    def __init__(self) -> None:
        import pyarrow as pa

        self.ids: pa.StringArray = pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: pa.StringArray) -> None:
        """Those that are new; nulls are none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        fresh = pc.unique(ids.drop_null())
        if len(self.ids):
            fresh = fresh.filter(pc.invert(pc.is_in(fresh, value_set=self.ids)))
        self.ids = pa.concat_arrays([self.ids, fresh]) if len(fresh) else self.ids

    def knows(self, ids: pa.StringArray) -> NDArray[np.bool_]:
        """Which of them matter."""
        import pyarrow.compute as pc

        return np.asarray(pc.is_in(ids, value_set=self.ids, skip_nulls=True))

    def codes(self, ids: pa.StringArray) -> NDArray[np.int32]:
        """The code of each, `UNCODED` for null and for those that do not matter."""
        import pyarrow.compute as pc

        if not len(self.ids):
            return np.full(len(ids), UNCODED, np.int32)
        return np.asarray(pc.index_in(ids, value_set=self.ids, skip_nulls=True).fill_null(UNCODED))


def shares_of(ids: pa.StringArray, share: int, shares: int) -> NDArray[np.bool_]:
    """Which ids belong to one of `shares` equal shares: so many passes need that part of the memory.

    Told by the last eight bytes of the id; nulls belong to none.
    """
    there = np.asarray(ids.is_valid())
    if shares == 1:
        return there
    offsets = np.frombuffer(ids.buffers()[1], np.int32, len(ids) + 1, ids.offset * 4).astype(np.int64)
    text = ids.buffers()[2]
    data = np.frombuffer(text, np.uint8) if text is not None and text.size else np.zeros(1, np.uint8)
    begins, ends = offsets[:-1], offsets[1:]
    hashed = np.zeros(len(ids), np.uint64)
    for back in range(1, _TAIL + 1):
        at = ends - back
        byte = np.where(at >= begins, data[np.clip(at, 0, len(data) - 1)], 0)
        hashed = (hashed ^ byte.astype(np.uint64)) * _MIX
    chosen: NDArray[np.bool_] = (hashed >> np.uint64(33)) % np.uint64(shares) == share
    return there & chosen


def gathered(several: Iterable[pa.StringArray]) -> Vocabulary:
    """Of all of them."""
    found = Vocabulary()
    for ids in several:
        found.add(ids)
    return found
