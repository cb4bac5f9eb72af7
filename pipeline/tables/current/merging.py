"""Exports into a current table: what is decided by `fold` is written with as few chunks as possible.

`<root>/<table>` holds what is alive, `<root>/<table of the deleted>` what is gone; the latter is committed
first. Killed or overtaken in between, the two are `torn`, which a number in both tells: they are to be made
anew then, as what stood before the tombstones may be gone from both, or stand in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.lake.lake import Lake
from pipeline.lake.spool import discard
from pipeline.tables.current.chunks import ANY, NEVER, Chunk, ChunkTable, new_chunk
from pipeline.tables.current.evidence import read_evidence, read_places
from pipeline.tables.current.fold import UNKNOWN, State, Versions
from pipeline.tables.current.taking import CHUNK_ROWS, ChunkFiles, taken
from pipeline.tables.current.tombstones import read_tombstones, tombstone_schema, tombstones
from pipeline.tables.current.vocabulary import UNCODED, Vocabulary, shares_of
from pipeline.tables.current.whose import Whose, read_whose
from pipeline.tables.delta import Conflict
from pipeline.tables.parts import open_part
from pipeline.tables.thinning import UnfitForThinning, thin

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

PASS_IDS = 4_000_000
"""Ids that are decided at a time: about 150 bytes each. More of them take several passes over the columns
that decide, never more memory."""
_SAMPLES = 64
"""Of so many shares of the ids one is counted."""
SMALL_CHUNKS = 8
"""So many chunks below half the size are let be; then they are joined."""
_EXPORT, _LATEST, _LATEST_ID = "export:", "latest", "latest-id"
_TOMBSTONES = "tombstones"
"""Counts the merges that changed the tombstones; the current table has the one that it goes with."""
_RULES = "rules"


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
    return table.number(f"{_EXPORT}{export_id}")


def torn(current: ChunkTable, deleted: ChunkTable) -> bool:
    """Whether tombstones came without the rows of the same merge: it was killed between the commits, or
    overtaken there by one that left the tombstones alone."""
    return deleted.number(_TOMBSTONES) != current.number(_TOMBSTONES)


def latest_of(table: ChunkTable) -> tuple[int, int]:
    """The order of the latest export that the table holds: an earlier one cannot be folded in alone."""
    return table.number(_LATEST), table.number(_LATEST_ID)


def rules_of(table: ChunkTable) -> int:
    """By which rules the table was made, as `merge` was told, or `NEVER`."""
    return table.number(_RULES)


def merge(
    lake: Lake,
    places: Places,
    schema: pa.Schema,
    shares: Sequence[Share],
    *,
    anew: bool = False,
    without: Sequence[str] = (),
    rules: int = NEVER,
    seen: tuple[int | None, int | None] = (ANY, ANY),
    chunk_rows: int = CHUNK_ROWS,
) -> Merged:
    """Folds exports into the tables, in one commit each.

    `shares` are later than what the tables hold, or with `anew` all that count: the tables are made again
    from nothing then, and readers see the old ones until it is done. `schema` covers the parts; `without`
    are exports that the table may hold and that count no more; `rules` are written down. `seen` are the
    versions of the current table and of the tombstones by which that was found: they must not have changed.
    Raises `Conflict` when they have, when somebody else changes a table meanwhile, or the tables are `torn`
    and not made anew; LakeError, VerificationFailed.
    """
    ordered = sorted(shares, key=lambda share: share.order)
    options = lake.storage_options
    standing = ChunkTable.covering(lake.table_uri(places.current), schema, options, seen[0])
    buried = ChunkTable.covering(lake.table_uri(places.deleted), tombstone_schema(), options, seen[1])
    if not anew and torn(standing, buried):
        raise Conflict("tombstones have come without rows")
    work = _Merging(lake, standing, buried, places, ordered, anew=anew)
    work.decide()
    numbers = _numbers(ordered, without) | {_RULES: rules}
    with lake.spool() as spool:
        return work.write(spool, schema, numbers, chunk_rows)


def choose(lake: Lake, shares: Sequence[Share], schema: pa.Schema, out: Path) -> int:
    """What stands when just these exports are folded, as Parquet files in the local folder `out`; the rows.

    Raises LakeError, VerificationFailed; files that were begun are removed then.
    """
    ordered = sorted(shares, key=lambda share: share.order)
    work = _Merging(lake, ChunkTable(None), ChunkTable(None), Places("", ""), ordered, anew=True)
    work.decide()
    with ChunkFiles(out, schema) as files:
        work.copy(files)
        files.keep()
    return sum(part.rows for part in files.finished)


def _numbers(shares: Sequence[Share], without: Sequence[str]) -> dict[str, int]:
    numbers = {f"{_EXPORT}{export_id}": NEVER for export_id in without}
    numbers |= {f"{_EXPORT}{share.export_id}": share.number for share in shares}
    latest = shares[-1].order if shares else (NEVER, NEVER)
    return numbers | {_LATEST: latest[0], _LATEST_ID: latest[1]}


@dataclass
class _Source:
    """A part whose rows compete; `chosen`: those that stand when all is decided."""

    path: str
    chunk: Chunk | None
    rows: int
    chosen: NDArray[np.bool_]
    whose: Whose | None = None


class _Merging:
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
            _Source(f"{places.current}/{each.path}", each, each.rows, np.ones(each.rows, np.bool_))
            for each in chunks
        ]
        self.graves = [] if anew else [f"{places.deleted}/{each.path}" for each in buried.chunks]
        self.grave_rows = [] if anew else [np.ones(each.rows, np.bool_) for each in buried.chunks]
        self.parts = [
            [_Source(path, None, rows, np.zeros(rows, np.bool_)) for path, rows in self._counted(share)]
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

    def _each(self) -> Iterator[tuple[list[_Source], Share]]:
        return zip(self.parts, self.shares, strict=True)

    @property
    def _everything(self) -> list[_Source]:
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
                state.gone_without_a_word(self._of(state, each.left), export)
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

    def _whose(self, source: _Source) -> Whose:
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

    def _ids(self, path: str) -> pa.StringArray:
        import pyarrow as pa

        with self._opened(path) as part:
            column = part.read(columns=["id"], use_threads=False).column("id")
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
        parts: Sequence[tuple[_Source, int]],
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
            lacked = state.lacked(there)
            if share.members:
                lacked = lacked[~np.isin(lacked, self._of_others(state, share.members))]
            state.gone_without_a_word(lacked, export, UNKNOWN if share.until is None else share.until)
        elif share.renewed:
            theirs = self._of(state, share.renewed)
            state.gone_without_a_word(theirs[~there[theirs]], export)
        if read:
            together = np.concatenate([here for _, here, _ in read])
            versions = Versions.together([each for *_, each in read])
            if len(np.unique(together)) < len(together):
                order = self._line_order([(part, each.row) for part, _, each in read])
                together, versions = together[order], versions.take(order)
            state.fold(together, versions, export)
        state.fold(codes[timed], Versions.gone_at(instants[timed]), export)

    def _line_order(self, read: Sequence[tuple[_Source, NDArray[np.int64]]]) -> NDArray[np.int64]:
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

    # --- writing -------------------------------------------------------------------------------------

    def write(self, spool: Path, schema: pa.Schema, numbers: Mapping[str, int], chunk_rows: int) -> Merged:
        """What is alive, and the tombstones; these are committed first, and right behind them the others."""
        newest = self.shares[-1].export_id if self.shares else "none"
        parts = [part for parts in self.parts for part in parts]
        touched = [source for source in self.chunks if not source.chosen.all()]
        large = [source for source in touched if source.chosen.sum() >= chunk_rows // 2]
        small = [source for source in self.chunks if source.chosen.all() and source.rows < chunk_rows // 2]
        fresh = sum(int(part.chosen.sum()) for part in parts)
        out = [source.chunk for source in touched if source.chunk] if not self.anew else self.standing.chunks
        added = []
        joined = [source for source in touched if source not in large]
        for source in large:
            if (thinned := self._thinned(source, spool, newest)) is None:
                joined.append(source)
            else:
                added.append(thinned)
        if len(small) >= SMALL_CHUNKS:
            joined += small
            out = [*out, *(source.chunk for source in small if source.chunk)]
        joined.sort(key=lambda source: source.path)
        with ChunkFiles(spool, schema, chunk_rows) as files:
            self.copy(files, joined)
            added += [self._put(part.path, part.rows, self.places.current, newest) for part in files.finished]
        deleted, goes_with = self._write_tombstones(spool, newest)
        self.standing.replace(out, added, {**numbers, _TOMBSTONES: goes_with}, f"merged up to {newest}")
        after = ChunkTable.at(self.lake.table_uri(self.places.current), self.lake.storage_options)
        before = self.standing.rows
        return Merged(
            rows=after.rows,
            deleted=deleted,
            added=fresh,
            removed=before + fresh - after.rows,
            chunks_out=len(out),
            chunks_in=len(added),
            version=after.version,
        )

    def _thinned(self, source: _Source, spool: Path, newest: str) -> Chunk | None:
        """A chunk without the rows that stand no more; None where it must be read and written for that."""
        target = spool / "thinned.parquet"
        try:
            with self.lake.local_copy(source.path) as path:
                rows = thin(path, target, source.chosen)
            return self._put(target, rows, self.places.current, newest)
        except UnfitForThinning:
            return None
        finally:
            discard(target)

    def copy(self, files: ChunkFiles, chunks: Sequence[_Source] = ()) -> None:
        """The rows that stand: of those chunks, and of all parts."""
        for source in [*chunks, *(part for parts in self.parts for part in parts)]:
            if source.chosen.any():
                with self.lake.local_copy(source.path) as path:
                    for table in taken(path, source.chosen):
                        files.add(table)
        files.cut()

    def _put(self, local: Path, rows: int, folder: str, newest: str) -> Chunk:
        name, path = new_chunk(newest)
        size = local.stat().st_size
        self.lake.put_file(local, f"{folder}/{path}")
        return Chunk(name, path, rows, size)

    def _write_tombstones(self, spool: Path, newest: str) -> tuple[int, int]:
        """How many there are now, and the number that the current table goes with."""
        fresh: int = sum(table.num_rows for table in self.fresh_graves)
        kept = sum(int(rows.sum()) for rows in self.grave_rows)
        number = self.buried.number(_TOMBSTONES)
        if not fresh and kept == self.buried.rows:
            return kept, number
        with ChunkFiles(spool, tombstone_schema()) as files:
            for path, rows in zip(self.graves, self.grave_rows, strict=True):
                if rows.any():
                    with self.lake.local_copy(path) as local:
                        for table in taken(local, rows):
                            files.add(table)
            for table in self.fresh_graves:
                files.add(table)
            files.cut()
            added = [self._put(part.path, part.rows, self.places.deleted, newest) for part in files.finished]
        self.buried.replace(self.buried.chunks, added, {_TOMBSTONES: number + 1}, f"merged up to {newest}")
        return fresh + kept, number + 1


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
