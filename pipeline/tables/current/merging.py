"""Exports into a current table: what is decided is written with as few chunks as possible.

`<root>/<table>` holds what is alive, `<root>/<table of the deleted>` what is gone; the latter is committed
first. Killed or overtaken in between, the two are `torn`, which a number in both tells: they are to be made
anew then, as what stood before the tombstones may be gone from both, or stand in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.lake.lake import Lake
from pipeline.lake.spool import discard
from pipeline.tables.current.chunks import ANY, NEVER, Chunk, ChunkTable, new_chunk
from pipeline.tables.current.deciding import Deciding, Source
from pipeline.tables.current.shares import RULES, TOMBSTONES, Merged, Places, Share, numbers_of, torn
from pipeline.tables.current.taking import CHUNK_ROWS, ChunkFiles, taken
from pipeline.tables.current.tombstones import tombstone_schema
from pipeline.tables.delta import Conflict
from pipeline.tables.thinning import UnfitForThinning, thin

if TYPE_CHECKING:
    import pyarrow as pa

SMALL_CHUNKS = 8
"""So many chunks below half the size are let be; then they are joined."""


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
    numbers = numbers_of(ordered, without) | {RULES: rules}
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


class _Merging(Deciding):
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
        self.standing.replace(out, added, {**numbers, TOMBSTONES: goes_with}, f"merged up to {newest}")
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

    def _thinned(self, source: Source, spool: Path, newest: str) -> Chunk | None:
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

    def copy(self, files: ChunkFiles, chunks: Sequence[Source] = ()) -> None:
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
        number = self.buried.number(TOMBSTONES)
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
        self.buried.replace(self.buried.chunks, added, {TOMBSTONES: number + 1}, f"merged up to {newest}")
        return fresh + kept, number + 1
