"""Parquet row groups whose absent columns cost next to nothing.

A table of floor and seen columns is mostly columns that one export does not fill, and pyarrow pays for each
of them per row: half of all writing. But an absent column says nothing except where its nearest present
ancestor is null or empty, and all absent columns below the same ancestor, at the same depth, have the same
bytes. So pyarrow writes the present columns and one absent column of each such group; the others are entries
in the footer with a copy of that column's bytes. (Parquet format: nested encoding; a column without values
has no encoding of its own, so its type does not matter.) For readers it is a Parquet file like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final

from pipeline.tables import thrift
from pipeline.tables.thrift import Fields

if TYPE_CHECKING:
    import pyarrow as pa

MAGIC: Final = b"PAR1"
Path = tuple[str, ...]

_UNIQUE: Final = frozenset({"id", "reference", "div", "data", "fullUrl", "_source_line", "contained"})
"""Columns whose values hardly repeat: a dictionary would be made in vain."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One Parquet column of a schema."""

    path: Path
    """As in the footer: `name`, `list`, `element`, `given`, ..."""
    depth: int
    """Greatest definition level."""
    repeats: int
    """Greatest repetition level."""
    anchor: Path
    """The nearest ancestor that the rows hold; its own path where they hold the column itself."""

    @property
    def present(self) -> bool:
        return self.anchor == self.path

    @property
    def group(self) -> tuple[Path, int, int]:
        """Absent leaves of one group have the same bytes."""
        return self.anchor, self.depth, self.repeats


def leaves(schema: pa.Schema, held: pa.Schema) -> list[Leaf]:
    """The leaves of `schema` in footer order, for rows of the form `held`, which `schema` covers."""
    found: list[Leaf] = []
    types = {field.name: field.type for field in held}
    for field in schema:
        _walk(field.type, types.get(field.name), (field.name,), 1, 0, (), found)
    return found


def _walk(
    kind: pa.DataType,
    held: pa.DataType | None,
    path: Path,
    depth: int,
    repeats: int,
    anchor: Path,
    found: list[Leaf],
) -> None:
    import pyarrow as pa

    if held is not None:
        anchor = path
    if pa.types.is_struct(kind):
        inner = {} if held is None else {field.name: field.type for field in held.fields}
        for field in kind.fields:
            _walk(field.type, inner.get(field.name), (*path, field.name), depth + 1, repeats, anchor, found)
    elif pa.types.is_list(kind):
        item = None if held is None else held.value_type
        below = (*path, "list", "element")
        _walk(kind.value_type, item, below, depth + 2, repeats + 1, anchor, found)
    else:
        found.append(Leaf(path, depth, repeats, anchor))


def pruned(schema: pa.Schema, keep: frozenset[Path]) -> pa.Schema:
    """The schema with only the leaves in `keep`, and what lies around them."""
    import pyarrow as pa

    kinds = [(field.name, _prune(field.type, (field.name,), keep)) for field in schema]
    return pa.schema([pa.field(name, kind) for name, kind in kinds if kind is not None])


def _prune(kind: pa.DataType, path: Path, keep: frozenset[Path]) -> pa.DataType | None:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        inner = [(field.name, _prune(field.type, (*path, field.name), keep)) for field in kind.fields]
        fields = [pa.field(name, each) for name, each in inner if each is not None]
        return pa.struct(fields) if fields else None
    if pa.types.is_list(kind):
        item = _prune(kind.value_type, (*path, "list", "element"), keep)
        return None if item is None else pa.list_(pa.field("element", item))
    return kind if path in keep else None


class Form:
    """What is written for rows that hold some columns of a schema: those, and one for each absent group."""

    def __init__(self, schema: pa.Schema, held: pa.Schema) -> None:
        self.leaves = leaves(schema, held)
        stands_for: dict[tuple[Path, int, int], Path] = {}
        for leaf in self.leaves:
            if not leaf.present:
                stands_for.setdefault(leaf.group, leaf.path)
        written = [leaf for leaf in self.leaves if leaf.present or stands_for[leaf.group] == leaf.path]
        self._position = {leaf.path: i for i, leaf in enumerate(written)}
        self.sources = [
            self._position[leaf.path if leaf.present else stands_for[leaf.group]] for leaf in self.leaves
        ]
        """For each leaf of the schema, the written column whose bytes it has."""
        self.schema = pruned(schema, frozenset(self._position))
        """What pyarrow writes; covers `held`."""
        self.encoded = [
            ".".join(leaf.path) for leaf in written if leaf.present and leaf.path[-1] not in _UNIQUE
        ]
        """Columns that are worth a dictionary."""


class SparseWriter:
    """A Parquet file of one schema, row group by row group; the rows may hold any part of the columns.

    `options` are those of `pyarrow.parquet.write_table`. The file is complete after `close`.
    """

    def __init__(self, file: IO[bytes], schema: pa.Schema, options: Mapping[str, Any]) -> None:
        self._file = file
        self._options = dict(options)
        self._frame = _frame(_Spelled(schema), tuple(sorted(options.items())))
        self._metadata = schema.metadata or {}
        self._groups: list[bytes] = []
        self.rows = 0
        file.write(MAGIC)
        self._at = len(MAGIC)

    def form(self, held: pa.Schema) -> Form:
        """How rows that hold these columns are written. `write` takes tables of its `schema`."""
        return self._frame.form(held)

    def write(self, table: pa.Table, form: Form) -> None:
        """One row group."""
        chunks, body = self._written(table, form)
        columns: list[bytes] = []
        begin, size = self._at, 0
        for leaf, head, source in zip(form.leaves, self._frame.heads, form.sources, strict=True):
            chunk = chunks[source]
            own = leaf.path == chunk.path
            columns.append(chunk.moved(self._at) if own else chunk.copied(head, self._at))
            self._file.write(body[chunk.begin : chunk.end])
            self._at += chunk.end - chunk.begin
            size += chunk.uncompressed
        group: Fields = {
            1: (thrift.LIST, thrift.list_of(thrift.STRUCT, columns)),
            2: (thrift.I64, size),
            3: (thrift.I64, table.num_rows),
            5: (thrift.I64, begin),
            6: (thrift.I64, self._at - begin),
            7: (thrift.I16, len(self._groups)),
        }
        self._groups.append(thrift.encode(group))
        self.rows += table.num_rows

    def close(self) -> None:
        """Writes the footer."""
        footer = self._frame.footer(self._metadata)
        footer[3] = (thrift.I64, self.rows)
        footer[4] = (thrift.LIST, thrift.list_of(thrift.STRUCT, self._groups))
        data = thrift.encode(footer)
        self._file.write(data + len(data).to_bytes(4, "little") + MAGIC)

    def _written(self, table: pa.Table, form: Form) -> tuple[list[_Chunk], memoryview]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            row_group_size=max(1, table.num_rows),
            store_schema=False,
            use_dictionary=form.encoded,
            **self._options,
        )
        body = memoryview(sink.getvalue())
        # Row groups, their columns, and the metadata of these: one walk over the footer.
        (group,) = _footer(body, {4: {1: {3: {}}}})[4][1]
        return [_Chunk(column[3][1]) for column in group[1][1]], body


@dataclass(frozen=True, eq=False)
class _Spelled:
    """A schema that can be looked up: equal when it reads the same."""

    schema: pa.Schema

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Spelled) and self.schema.equals(other.schema)

    def __hash__(self) -> int:
        return hash((len(self.schema), tuple(self.schema.names)))


class _Frame:
    """What all files of one schema have in common."""

    def __init__(self, schema: pa.Schema, options: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = schema.remove_metadata()
        self._forms: list[tuple[pa.Schema, Form]] = []
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_batches([], self._schema), sink, **options)
        self._empty = _footer(memoryview(sink.getvalue()))
        self.heads = self._heads()
        """For each leaf the first fields of its column's metadata: type, encodings, path."""

    def form(self, held: pa.Schema) -> Form:
        for known, form in self._forms:
            if known.equals(held):
                return form
        form = Form(self._schema, held)
        self._forms = [*self._forms[-7:], (held, form)]
        return form

    def footer(self, metadata: Mapping[bytes, bytes]) -> Fields:
        """The footer of a file without rows, with these key-value pairs."""
        pairs = [
            thrift.encode({1: (thrift.BINARY, key), 2: (thrift.BINARY, value)})
            for key, value in metadata.items()
        ]
        footer = dict(self._empty)
        there = thrift.items(footer[5][1]) if 5 in footer else []
        footer[5] = (thrift.LIST, thrift.list_of(thrift.STRUCT, [*there, *pairs]))
        return footer

    def _heads(self) -> list[bytes]:
        elements = [thrift.decode(element) for element in thrift.items(self._empty[2][1])]
        types = [element[1] for element in elements if 5 not in element]
        plain = (thrift.LIST, thrift.list_of(thrift.I32, [0, 3]))
        heads = []
        for leaf, kind in zip(leaves(self._schema, self._schema), types, strict=True):
            path = thrift.list_of(thrift.BINARY, [step.encode() for step in leaf.path])
            heads.append(thrift.encode({1: kind, 2: plain, 3: (thrift.LIST, path)})[:-1])
        return heads


@lru_cache(maxsize=32)
def _frame(spelled: _Spelled, options: tuple[tuple[str, Any], ...]) -> _Frame:
    return _Frame(spelled.schema, dict(options))


class _Chunk:
    """One column of a written row group: where its bytes lie, and its metadata."""

    def __init__(self, meta: Fields) -> None:
        self._meta = meta
        self.path: Path = tuple(step.decode() for step in thrift.items(meta[3][1]))
        self._data_page: int = meta[9][1]
        self.begin: int = meta[11][1] if 11 in meta else self._data_page
        self.end = self.begin + int(meta[7][1])
        self.uncompressed: int = meta[6][1]

    def moved(self, to: int) -> bytes:
        """The column's entry in the footer when its bytes begin at `to`."""
        meta = dict(self._meta)
        meta[9] = (thrift.I64, self._data_page - self.begin + to)
        if 11 in meta:
            meta[11] = (thrift.I64, to)
        return _entry(thrift.encode(meta))

    def copied(self, head: bytes, to: int) -> bytes:
        """The entry of another column of the same group, whose first fields are `head`."""
        middle, tail = self._without_head
        # Data page offset: field 9, two behind field 7; then field 12, three behind it.
        return _entry(head + middle + b"\x26" + _zigzag(to) + tail)

    @cached_property
    def _without_head(self) -> tuple[bytes, bytes]:
        middle = {number: self._meta[number] for number in (4, 5, 6, 7)}
        tail = {number: value for number, value in self._meta.items() if number > 9 and number != 11}
        if 16 in tail:
            # Size statistics: field 1 is for texts only, and these columns may be of any type.
            kind, sizes = tail[16]
            kept = {number: value for number, value in thrift.decode(sizes).items() if number != 1}
            tail[16] = (kind, thrift.encode(kept))
        # Field numbers are written as differences: from 3 on, and from 9 on.
        return _continued(middle, 3)[:-1], _continued(tail, 9)


def _continued(fields: Fields, before: int) -> bytes:
    """The fields as they are written behind field `before`, with the end of the structure."""
    first = min(fields)
    data = bytearray(thrift.encode(fields))
    data[0] = (first - before) << 4 | data[0] & 15
    return bytes(data)


def _entry(meta: bytes) -> bytes:
    # ColumnChunk: file_offset (field 2) = 0, meta_data (field 3).
    return b"\x26\x00\x1c" + meta + b"\x00"


def _zigzag(value: int) -> bytes:
    out = bytearray()
    thrift.write_varint(out, value << 1)
    return bytes(out)


def _footer(body: memoryview, inside: thrift.Inside = MappingProxyType({})) -> Fields:
    size = int.from_bytes(body[-8:-4], "little")
    return thrift.decode(bytes(body[-8 - size : -8]), inside)


def held_by(tables: Iterable[pa.Table]) -> pa.Schema:
    """The columns that any of the tables holds."""
    from pipeline.tables import schema as schemas

    first, *others = [table.schema for table in tables]
    found = schemas.plain(first)
    known = [first]
    for other in others:
        if not any(other.equals(each) for each in known):
            known.append(other)
            found = schemas.union(found, other)
    return found
