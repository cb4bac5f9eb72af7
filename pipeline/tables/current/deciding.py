"""Which rows of which parts stand, when exports are folded into what a current table holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.lake.lake import Lake
from pipeline.tables.current.chunks import Chunk, ChunkTable
from pipeline.tables.current.evidence import read_evidence, read_places
from pipeline.tables.current.fold import LEFT, UNKNOWN, State, Versions
from pipeline.tables.current.shares import Places, Share
from pipeline.tables.current.tombstones import read_tombstones, tombstones
from pipeline.tables.current.vocabulary import UNCODED, Vocabulary, shares_of
from pipeline.tables.current.whose import Whose, read_whose
from pipeline.tables.parts import open_part

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

PASS_IDS = 1_500_000
"""Ids that are decided at a time: about 250 bytes each. More of them take several passes over the columns
that decide, never more memory. Measured: two passes over 2 million rows cost no more than one (29 CPU s,
nearly all of it reading and writing) and take 0.73 GB instead of 1.0."""
_SAMPLES = 64
"""Of so many shares of the ids one is counted."""


@dataclass
class Source:
    """A part whose rows compete; `chosen`: those that stand when all is decided."""

    path: str
    chunk: Chunk | None
    rows: int
    chosen: NDArray[np.bool_]
    whose: Whose | None = None


class Deciding:
    """Reads what competes; afterwards `chosen` of each source, `grave_rows` and `fresh_graves` tell what
    stands."""

    def __init__(
        self,
        lake: Lake,
        standing: ChunkTable,
        buried: ChunkTable,
        places: Places,
        shares: Sequence[Share],
        *,
        anew: bool,
    ) -> None:
        import pyarrow as pa

        self.lake = lake
        self.places = places
        self.standing = standing
        self.buried = buried
        self.shares = shares
        self.resource_type = max((share.resource_type for share in shares), default="")
        named = frozenset[str]().union(*(each.renewed | each.left | each.members for each in shares))
        self.patients: pa.StringArray = pa.array(sorted(named), pa.string())
        """Whose resources matter one by one."""
        self.anew = anew
        chunks = [] if anew else standing.chunks
        self.chunks = [
            Source(f"{places.current}/{each.path}", each, each.rows, np.ones(each.rows, np.bool_))
            for each in chunks
        ]
        self.graves = [] if anew else [f"{places.deleted}/{each.path}" for each in buried.chunks]
        self.grave_rows = [] if anew else [np.ones(each.rows, np.bool_) for each in buried.chunks]
        self.parts = [
            [Source(path, None, rows, np.zeros(rows, np.bool_)) for path, rows in self._counted(share)]
            for share in shares
        ]
        self.fresh_graves: list[pa.Table] = []

    def _counted(self, share: Share) -> Iterator[tuple[str, int]]:
        for path in share.parts:
            with self._opened(path) as part:
                yield path, part.metadata.num_rows

    @contextmanager
    def _opened(self, path: str) -> Iterator[Any]:
        with self.lake.open(path) as file, open_part(file) as part:
            yield part

    # --- deciding ------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Which rows of which parts stand."""
        passes = self._passes()
        for share in range(passes):
            self._decide(share, passes)

    def _passes(self) -> int:
        """So many that none has more than about `PASS_IDS` ids: mostly exports bring the same ids again."""
        most = sum(part.rows for parts in self.parts for part in parts)
        most += sum(share.named for share in self.shares)
        most += sum(chunk.rows for chunk in self.chunks) if self._needs_all else 0
        ids = most if most <= PASS_IDS else _SAMPLES * len(self._vocabulary(0, _SAMPLES))
        return max(1, -(-ids // PASS_IDS))

    def _each(self) -> Iterator[tuple[list[Source], Share]]:
        return zip(self.parts, self.shares, strict=True)

    @property
    def _everything(self) -> list[Source]:
        """In the order of their numbers."""
        return [*self.chunks, *(part for parts in self.parts for part in parts)]

    @property
    def _needs_all(self) -> bool:
        """Whether ids matter that no share brings."""
        return any(share.replaces_all for share in self.shares)

    def _decide(self, share: int, passes: int) -> None:
        vocabulary = self._vocabulary(share, passes)
        state = State(len(vocabulary))
        everything = self._everything
        index = {id(source): number for number, source in enumerate(everything)}
        graves = len(everything)
        matched: list[tuple[int, NDArray[np.int32], NDArray[np.int64]]] = []
        for source in self.chunks:
            number = index[id(source)]
            codes, versions = self._read(source.path, number, vocabulary)
            state.fold(codes, versions, -1)
            matched.append((number, codes, versions.row))
        for place, path in enumerate(self.graves):
            with self._opened(path) as part:
                codes, versions = _coded(vocabulary, *read_tombstones(part, graves + place))
            state.fold(codes, versions, -1)
            self.grave_rows[place][versions.row] = False
        for export, (parts, each) in enumerate(self._each()):
            self._fold(state, vocabulary, export, each, [(part, index[id(part)]) for part in parts])
            if each.left:
                state.gone_without_a_word(self._of(state, each.left), export, source=LEFT)
        for number, codes, rows in matched:
            stands = state.alive[codes] & (state.versions.source[codes] == number)
            everything[number].chosen[rows[~stands]] = False
        alive = np.flatnonzero(state.alive)
        sources, rows = state.versions.source[alive], state.versions.row[alive]
        for number in range(len(self.chunks), len(everything)):
            everything[number].chosen[rows[sources == number]] = True
        self._bury(state, vocabulary, graves)

    def _vocabulary(self, share: int, passes: int) -> Vocabulary:
        import pyarrow as pa

        vocabulary = Vocabulary()

        def add(ids: pa.StringArray) -> None:
            mine = shares_of(ids, share, passes)
            vocabulary.add(ids if mine.all() else ids.filter(pa.array(mine)))

        for parts, each in self._each():
            for part in parts:
                add(self._ids(part.path))
            named = (*each.deletions, *each.deletions_until)
            add(pa.array([identifier for identifier, _ in named], pa.string()))
        if self._needs_all:
            for source in self.chunks:
                add(self._ids(source.path))
        if len(self.patients) and not self._needs_all:
            for source in self.chunks:
                add(self._ids(source.path).filter(pa.array(self._whose(source).of_any())))
        return vocabulary

    def _whose(self, source: Source) -> Whose:
        """Which of `patients` each of its rows is about."""
        if source.whose is None:
            with self._opened(source.path) as part:
                source.whose = read_whose(part, self.resource_type, self.patients)
        return source.whose

    def _of(self, state: State, patients: frozenset[str]) -> NDArray[np.int32]:
        """The ids that are alive, by a row that is of nobody but them."""
        return self._alive(state, patients, Whose.of)

    def _of_others(self, state: State, patients: frozenset[str]) -> NDArray[np.int32]:
        """The ids that are alive, by a row that is of somebody, and of none of them."""
        return self._alive(state, patients, Whose.of_others)

    def _alive(
        self,
        state: State,
        patients: frozenset[str],
        which: Callable[[Whose, NDArray[np.bool_]], NDArray[np.bool_]],
    ) -> NDArray[np.int32]:
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = np.asarray(pc.is_in(self.patients, value_set=pa.array(sorted(patients), pa.string())))
        alive = np.flatnonzero(state.alive).astype(np.int32)
        by, rows = state.versions.source[alive], state.versions.row[alive]
        found = np.zeros(len(alive), np.bool_)
        everything = self._everything
        for number in np.unique(by):
            mine = by == number
            found[mine] = which(self._whose(everything[number]), wanted)[rows[mine]]
        return alive[found]

    def _spoken_of(
        self, state: State, vocabulary: Vocabulary, share: Share, codes: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Those of the ids, all alive, of which the share says something."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if share.speaks_of is None or not len(codes):
            return codes
        by, rows, brought = state.versions.source[codes], state.versions.row[codes], state.export[codes]
        said = np.zeros(len(codes), np.bool_)
        for export in np.unique(brought[brought >= 0]):
            said[brought == export] = share.speaks_of(self.shares[export].export_id)
        for number in np.unique(by[brought < 0]):
            mine = (brought < 0) & (by == number)
            came = self._texts(self.chunks[number].path, "_export_id").take(rows[mine])
            spoken = [each for each in came.unique().to_pylist() if each and share.speaks_of(each)]
            said[mine] = np.asarray(pc.is_in(came, value_set=pa.array(spoken, pa.string())))
        if not said.all():
            listed = np.zeros(len(vocabulary), np.bool_)
            for path in share.listed():
                found = vocabulary.codes(self._ids(path))
                listed[found[found != UNCODED]] = True
            said |= listed[codes]
        return codes[said]

    def _ids(self, path: str) -> pa.StringArray:
        return self._texts(path, "id")

    def _texts(self, path: str, name: str) -> pa.StringArray:
        import pyarrow as pa

        with self._opened(path) as part:
            column = part.read(columns=[name], use_threads=False).column(name)
            return pa.concat_arrays(
                [pa.array([], pa.string()), *(each.cast(pa.string()) for each in column.chunks)]
            )

    def _read(self, path: str, number: int, vocabulary: Vocabulary) -> tuple[NDArray[np.int32], Versions]:
        with self._opened(path) as part:
            return _coded(vocabulary, *read_evidence(part, number, vocabulary.knows))

    def _fold(
        self,
        state: State,
        vocabulary: Vocabulary,
        export: int,
        share: Share,
        parts: Sequence[tuple[Source, int]],
    ) -> None:
        """One export. A deletion without an instant of its own comes before its rows: what it also lists is
        there."""
        read = [(part, *self._read(part.path, number, vocabulary)) for part, number in parts]
        there = np.zeros(len(vocabulary), np.bool_)
        for _, here, _versions in read:
            there[here] = True
        codes, instants = _deletions(vocabulary, share.deletions)
        timed = instants != UNKNOWN
        state.fold(codes[~timed], Versions.gone_at(instants[~timed]), export)
        until, before = _deletions(vocabulary, share.deletions_until)
        state.fold(until[~there[until]], Versions.gone_at(before[~there[until]]), export)
        if share.replaces_all:
            lacked = self._spoken_of(state, vocabulary, share, state.lacked(there))
            if share.members:
                lacked = lacked[~np.isin(lacked, self._of_others(state, share.members))]
            if share.left:  # of these it is said why
                lacked = lacked[~np.isin(lacked, self._of(state, share.left))]
            state.gone_without_a_word(lacked, export, UNKNOWN if share.until is None else share.until)
        elif share.renewed:
            theirs = self._of(state, share.renewed)
            theirs = self._spoken_of(state, vocabulary, share, theirs[~there[theirs]])
            state.gone_without_a_word(theirs, export)
        if read:
            together = np.concatenate([here for _, here, _ in read])
            versions = Versions.together([each for *_, each in read])
            if len(np.unique(together)) < len(together):
                order = self._line_order([(part, each.row) for part, _, each in read])
                together, versions = together[order], versions.take(order)
            state.fold(together, versions, export)
        state.fold(codes[timed], Versions.gone_at(instants[timed]), export)

    def _line_order(self, read: Sequence[tuple[Source, NDArray[np.int64]]]) -> NDArray[np.int64]:
        """The order of those rows, one part's behind the other's, by source file and line."""
        import pyarrow as pa
        import pyarrow.compute as pc

        files, lines = [], []
        for part, rows in read:
            with self._opened(part.path) as opened:
                file, line = read_places(opened)
            files.append(file.take(pa.array(rows)))
            lines.append(line[rows])
        names = pa.concat_arrays(files).dictionary_encode()
        ranks = np.asarray(pc.rank(names.dictionary)) if len(names.dictionary) else np.zeros(0, np.int64)
        by_file = np.asarray(pc.take(pa.array(ranks.astype(np.int64)), names.indices).fill_null(0))
        return np.lexsort((np.concatenate(lines), by_file))

    def _bury(self, state: State, vocabulary: Vocabulary, graves: int) -> None:
        """Tombstones: those that stand as they are, and new ones."""
        import pyarrow as pa

        gone = state.known & state.versions.gone
        kept = gone & (state.versions.source >= graves)
        for place, rows in enumerate(self.grave_rows):
            rows[state.versions.row[kept & (state.versions.source == graves + place)]] = True
        fresh = np.flatnonzero(gone & ~kept)
        if len(fresh):
            by = np.array([share.export_id for share in self.shares])[state.export[fresh]]
            ids = vocabulary.ids.take(pa.array(fresh))
            self.fresh_graves.append(tombstones(ids, state.versions.take(fresh), by))


def _deletions(
    vocabulary: Vocabulary, deletions: Sequence[tuple[str, int | None]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Codes and instants of those that matter."""
    import pyarrow as pa

    codes = vocabulary.codes(pa.array([identifier for identifier, _ in deletions], pa.string()))
    instants = np.array([UNKNOWN if at is None else at for _, at in deletions], np.int64)
    return codes[codes != UNCODED], instants[codes != UNCODED]


def _coded(
    vocabulary: Vocabulary, ids: pa.StringArray, versions: Versions
) -> tuple[NDArray[np.int32], Versions]:
    """Those that matter, and their codes."""
    codes = vocabulary.codes(ids)
    mine = codes != UNCODED
    return codes[mine], versions.take(mine)
