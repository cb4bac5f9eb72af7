"""Rows out of a Parquet file without making Arrow of the others: a fifth of what reading and writing costs.

Page by page the levels and values of the rows that stay are written again as they were encoded; dictionaries
and row groups that lose nothing are copied. Files that are written otherwise than our parts, with pages of
the second version or other encodings, are not for this (`UnfitForThinning`): read and write those.
(Parquet format: data pages, RLE and bit-packed hybrid, SizeStatistics.)

So a dictionary, and the least and greatest value of a column, may still hold what only rows had that are
gone. Such a file says so (`is_thinned`): who must be sure that nothing is left reads and writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import LakeError
from pipeline.lake.spool import discard
from pipeline.tables import codes, native, thrift
from pipeline.tables.thrift import Fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

THINNED_KEY: Final = b"fhir_export.thinned"
_MAGIC: Final = b"PAR1"
_FOOTER: Final[thrift.Inside] = {2: {}, 4: {1: {3: {}}}}
_PAGE: Final[thrift.Inside] = {5: {}, 7: {}}
_DATA, _DICTIONARY = 0, 2
"""Types of pages."""
_PLAIN, _RLE = 0, 3
_INDICES = (2, 8)
"""Encodings of pages whose values are places in a dictionary."""
_BOOLEAN, _TEXT, _FIXED_LENGTH = 0, 6, 7
_WIDTHS: Final = {1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
"""Physical type -> bytes of a value."""
_CODECS: Final = {0: "", 1: "snappy", 6: "zstd"}
_ALIKE: Final = 256 * 1024
"""Bytes of a column up to which it is remembered: those that are absent have the same bytes."""
_LEVEL: Final = 1
_MOST: Final = 1 << 28
"""Entries of a page: more are damage."""


class UnfitForThinning(Exception):
    """The file is written in a way that this does not know."""


@dataclass(frozen=True)
class _Leaf:
    """A column of the file."""

    kind: int
    length: int
    depth: int
    repeats: int


@dataclass(frozen=True)
class _Thinned:
    """A column without some of its rows."""

    body: bytes
    uncompressed: int
    entries: int
    values: int
    told: tuple[int, ...]
    """How often each repetition level is there, and then each definition level."""
    first_data: int
    """Where its first data page begins in the body."""
    pages_left_out: bool
    empty: bool
    """There was no value before: then its type does not matter."""


def thin(source: Path, target: Path, keep: NDArray[np.bool_]) -> int:
    """Writes the rows of a Parquet file at which `keep` is true; returns their number, which is not 0.

    Their columns are those of the source. Raises `UnfitForThinning`, and LakeError when the source is
    damaged; there is no `target` then.
    """
    try:
        with source.open("rb") as file, target.open("xb") as out:
            return _Thinning(file, out, keep).run()
    except (KeyError, TypeError, IndexError, ValueError, OverflowError, StopIteration) as bad:
        # What the footer or a page lacks, or says of itself that cannot be.
        discard(target)
        raise _damaged() from bad
    except BaseException:
        discard(target)
        raise


def is_thinned(part: Any) -> bool:
    """Whether an open `pyarrow.parquet.ParquetFile` may still hold values of rows that are gone."""
    return THINNED_KEY in (part.metadata.metadata or {})


class _Thinning:
    def __init__(self, file: IO[bytes], out: IO[bytes], keep: NDArray[np.bool_]) -> None:
        self._file = file
        self._out = out
        self._keep = keep
        self._footer = _footer_of(file)
        self._leaves = _leaves(self._footer[2][1])
        self._at = 0
        # Of the row group: what its columns have in common.
        self._alike: dict[tuple[Any, ...], _Thinned] = {}
        self._fields: dict[tuple[Any, ...], Fields] = {}

    def run(self) -> int:
        self._write(_MAGIC)
        groups: list[bytes] = []
        begin = 0
        for group in self._footer[4][1]:
            rows = int(group[3][1])
            mask = self._keep[begin : begin + rows]
            begin += rows
            if mask.any():
                groups.append(self._group(group, mask, len(groups)))
        if begin != len(self._keep):
            raise _damaged()
        kept = int(self._keep.sum())
        footer = {
            **self._footer,
            2: (thrift.LIST, _listed(self._footer[2][1])),
            3: (thrift.I64, kept),
            4: (thrift.LIST, thrift.list_of(thrift.STRUCT, groups)),
            5: (thrift.LIST, _marked(self._footer)),
        }
        data = thrift.encode(footer)
        self._write(data + len(data).to_bytes(4, "little") + _MAGIC)
        return kept

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._at += len(data)

    def _group(self, group: Fields, mask: NDArray[np.bool_], ordinal: int) -> bytes:
        begin, uncompressed = self._at, 0
        self._alike, self._fields = {}, {}
        kept = int(mask.sum())
        columns, whole = [], kept == len(mask)
        stays = mask.view(np.uint8)
        for leaf, column in zip(self._leaves, group[1][1], strict=True):
            meta = column[3][1]
            body, first = self._body(meta)
            if whole:
                found: Fields = {**meta, **_places(first, int(meta[9][1]), self._at)}
            else:
                thinned = self._thinned(leaf, meta, body, stays, kept)
                found = {
                    **meta,
                    **self._changed(meta, thinned, leaf),
                    **_places(0, thinned.first_data, self._at),
                }
                body = thinned.body
            # Indices of pages and Bloom filters are not copied.
            left_out = {10, 14, 15} if 11 in meta else {10, 11, 14, 15}
            if not whole and thinned.pages_left_out:
                left_out.add(13)
            found = {number: value for number, value in found.items() if number not in left_out}
            uncompressed += found[6][1]
            columns.append(thrift.encode({2: (thrift.I64, 0), 3: (thrift.STRUCT, thrift.encode(found))}))
            self._write(body)
        return thrift.encode(
            {number: value for number, value in group.items() if number == 4}
            | {
                1: (thrift.LIST, thrift.list_of(thrift.STRUCT, columns)),
                2: (thrift.I64, uncompressed),
                3: (thrift.I64, kept),
                5: (thrift.I64, begin),
                6: (thrift.I64, self._at - begin),
                7: (thrift.I16, ordinal),
            }
        )

    def _body(self, meta: Fields) -> tuple[bytes, int]:
        """A column's bytes, and where they begin in the file."""
        begin = int(meta[11][1] if 11 in meta else meta[9][1])
        size = int(meta[7][1])
        if not 0 <= begin <= meta[9][1] or size < 0:
            raise _damaged()
        self._file.seek(begin)
        body = self._file.read(size)
        if len(body) < size:
            raise _damaged()
        return body, begin

    def _thinned(
        self, leaf: _Leaf, meta: Fields, body: bytes, stays: NDArray[np.uint8], rows: int
    ) -> _Thinned:
        if meta[4][1] not in _CODECS:
            raise UnfitForThinning
        if len(body) > _ALIKE:
            return _thinned_column(leaf, meta, body, stays, rows)
        key = (leaf.depth, leaf.repeats, meta[4][1], meta[5][1], 11 in meta, body)
        if key not in self._alike:
            thinned = _thinned_column(leaf, meta, body, stays, rows)
            if not thinned.empty:
                return thinned
            self._alike[key] = thinned
        return self._alike[key]

    def _changed(self, meta: Fields, thinned: _Thinned, leaf: _Leaf) -> Fields:
        """What of a column's metadata is another now."""
        if not thinned.empty:
            return _changed(meta, thinned, leaf)
        # Those are kept in `_alike` as long as this is.
        key = (id(thinned), meta.get(12), meta.get(16))
        if key not in self._fields:
            self._fields[key] = _changed(meta, thinned, leaf)
        return self._fields[key]


def _thinned_column(leaf: _Leaf, meta: Fields, body: bytes, stays: NDArray[np.uint8], rows: int) -> _Thinned:
    out: list[bytes] = []
    codec = int(meta[4][1])
    told = np.zeros(leaf.repeats + leaf.depth + 2, np.int64)
    page = np.zeros(codes.PAGE_COLUMNS, np.int64)
    page[codes.PAGE_DEPTH], page[codes.PAGE_REPEATS] = leaf.depth, leaf.repeats
    page[codes.PAGE_ROW] = -1
    entries = values = uncompressed = found = held = 0
    dictionary = b""
    left_out = False
    for head, head_bytes, data in _pages(body, int(meta[5][1])):
        if head[1][1] == _DICTIONARY:
            dictionary = head_bytes + data
            uncompressed += len(head_bytes) + int(head[2][1])
            continue
        if head[1][1] != _DATA:
            raise UnfitForThinning
        page[codes.PAGE_ENTRIES] = head[5][1][1][1]
        if not 0 <= page[codes.PAGE_ENTRIES] <= _MOST:
            raise _damaged()
        page[codes.PAGE_MODE], page[codes.PAGE_WIDTH] = _mode(leaf, head[5][1])
        plain = _decompressed(data, codec, int(head[2][1]))
        written = _thinned_page(plain, page, stays, told)
        entries += int(page[codes.PAGE_ENTRIES])
        values += int(page[codes.PAGE_TELLS])
        found += int(page[codes.PAGE_ROWS])
        held += int(page[codes.PAGE_HELD])
        if not page[codes.PAGE_ENTRIES]:
            left_out = True
            continue
        packed = _compressed(written, codec)
        inner = {number: value for number, value in head[5][1].items() if number != 5}
        inner[1] = (thrift.I32, int(page[codes.PAGE_ENTRIES]))
        fresh = thrift.encode(
            {
                1: (thrift.I32, _DATA),
                2: (thrift.I32, len(written)),
                3: (thrift.I32, len(packed)),
                5: (thrift.STRUCT, thrift.encode(inner)),
            }
        )
        out += [fresh, packed]
        uncompressed += len(fresh) + len(written)
    if found != rows or page[codes.PAGE_ROW] != len(stays) - 1:
        raise _damaged()
    return _Thinned(
        b"".join([dictionary, *out]),
        uncompressed,
        entries,
        values,
        tuple(told.tolist()),
        len(dictionary),
        left_out,
        held == 0,
    )


def _pages(body: bytes, entries: int) -> Iterator[tuple[Fields, bytes, bytes]]:
    """Each page: its head, the head's bytes, the bytes behind it."""
    at = 0
    while at < len(body):
        head, begin = thrift.decode_at(body, at, _PAGE)
        try:
            end = begin + int(head[3][1])
            entries -= int(head[5][1][1][1]) if 5 in head else 0
        except (KeyError, TypeError):
            raise UnfitForThinning from None
        if end > len(body) or entries < 0:
            raise _damaged()
        yield head, body[at:begin], body[begin:end]
        at = end
    if entries:
        raise _damaged()


def _mode(leaf: _Leaf, head: Fields) -> tuple[int, int]:
    """How a page's values are written, and the bytes of each."""
    encoding = head[2][1]
    if (leaf.depth and head[3][1] != _RLE) or (leaf.repeats and head[4][1] != _RLE):
        raise UnfitForThinning
    if encoding in _INDICES:
        return codes.PAGE_DICTIONARY, 0
    if encoding == _RLE and leaf.kind == _BOOLEAN:
        return codes.PAGE_BOOLEANS, 0
    if encoding != _PLAIN:
        raise UnfitForThinning
    if leaf.kind == _BOOLEAN:
        return codes.PAGE_BITS, 0
    if leaf.kind == _TEXT:
        return codes.PAGE_TEXTS, 0
    return codes.PAGE_FIXED, leaf.length if leaf.kind == _FIXED_LENGTH else _WIDTHS[leaf.kind]


def _thinned_page(
    plain: NDArray[np.uint8], page: NDArray[np.int64], stays: NDArray[np.uint8], told: NDArray[np.int64]
) -> memoryview:
    entries = int(page[codes.PAGE_ENTRIES])
    repeats, depths = np.empty(2 * entries, np.uint8), np.empty(2 * entries, np.uint8)
    # Levels and places in a dictionary take at most 33 bytes for each eight.
    out = np.empty(len(plain) + 3 * 34 * (entries // 8 + 1) + 64, np.uint8)
    numbers = np.empty(2 * entries, np.uint32)
    if native.call(codes.THIN, 0, plain, page, stays, repeats, depths, numbers, out, told) < 0:
        raise _damaged()
    return out[: int(page[codes.PAGE_AT])].data


@cache
def _codec(number: int) -> Any:
    import pyarrow as pa

    return pa.Codec(_CODECS[number], compression_level=_LEVEL if _CODECS[number] == "zstd" else None)


def _decompressed(data: bytes, codec: int, size: int) -> NDArray[np.uint8]:
    if not _CODECS[codec]:
        return np.frombuffer(data, np.uint8)
    try:
        return np.frombuffer(_codec(codec).decompress(data, size), np.uint8)
    except (OSError, ValueError):
        raise _damaged() from None


def _compressed(data: memoryview, codec: int) -> bytes:
    packed = _codec(codec).compress(data, asbytes=True) if _CODECS[codec] else bytes(data)
    return bytes(packed)


# --- the footer ----------------------------------------------------------------------------------------


def _footer_of(file: IO[bytes]) -> Fields:
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != _MAGIC or length + 8 > size:
        raise _damaged()
    file.seek(size - 8 - length)
    footer = thrift.decode(file.read(length), _FOOTER)
    if not {2, 3, 4} <= footer.keys() or any(
        3 not in column for group in footer[4][1] for column in group[1][1]
    ):
        raise _damaged()
    return footer


def _listed(structures: Sequence[Fields]) -> bytes:
    return thrift.list_of(thrift.STRUCT, [thrift.encode(each) for each in structures])


def _marked(footer: Fields) -> bytes:
    """The footer's key-value pairs, and that rows were taken out."""
    mark = thrift.encode({1: (thrift.BINARY, THINNED_KEY), 2: (thrift.BINARY, b"true")})
    pairs = thrift.items(footer[5][1]) if 5 in footer else []
    return thrift.list_of(thrift.STRUCT, [*(each for each in pairs if each != mark), mark])


def _leaves(elements: Sequence[Fields]) -> list[_Leaf]:
    """The columns, in the order of the footer."""
    found: list[_Leaf] = []
    left = iter(elements)

    def walk(depth: int, repeats: int, *, root: bool = False) -> None:
        element = next(left)
        repetition = element[3][1] if 3 in element and not root else 0
        depth += repetition != 0
        repeats += repetition == 2
        if 5 in element:
            for _ in range(element[5][1]):
                walk(depth, repeats)
        else:
            length = element[2][1] if 2 in element else 0
            found.append(_Leaf(element[1][1], length, depth, repeats))

    walk(0, 0, root=True)
    return found


def _places(first: int, data: int, to: int) -> Fields:
    """Where the first data page, and the first page of all, are when the column begins at `to`."""
    return {9: (thrift.I64, data - first + to), 11: (thrift.I64, to)}


def _changed(meta: Fields, thinned: _Thinned, leaf: _Leaf) -> Fields:
    found: Fields = {
        5: (thrift.I64, thinned.entries),
        6: (thrift.I64, thinned.uncompressed),
        7: (thrift.I64, len(thinned.body)),
    }
    if 12 in meta:
        nulls = thinned.entries - thinned.values
        found[12] = (thrift.STRUCT, _statistics(meta[12][1], nulls, empty=not thinned.values))
    if 16 in meta:
        found[16] = (thrift.STRUCT, _sizes(meta[16][1], thinned.told, leaf))
    return found


def _statistics(before: bytes, nulls: int, *, empty: bool) -> bytes:
    """Least and greatest still hold, but the rows that had them may be gone."""
    fields = {number: value for number, value in thrift.decode(before).items() if number != 4}
    if 3 in fields:
        fields[3] = (thrift.I64, nulls)
    if empty:
        fields = {number: value for number, value in fields.items() if number == 3}
    fields |= {number + 2: (thrift.TRUE, False) for number in (5, 6) if number in fields}
    return thrift.encode(fields)


def _sizes(before: bytes, told: Sequence[int], leaf: _Leaf) -> bytes:
    """How often each level is there, where that was told."""
    there = thrift.decode(before)
    both = told[: leaf.repeats + 1], told[leaf.repeats + 1 :]
    return thrift.encode(
        {
            number: (thrift.LIST, thrift.list_of(thrift.I64, list(counts)))
            for number, counts in zip((2, 3), both, strict=True)
            if number in there
        }
    )


def _damaged() -> LakeError:
    return LakeError("A Parquet part is damaged", "Ingest that export again from its raw files")
