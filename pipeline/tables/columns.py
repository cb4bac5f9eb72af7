"""From the kernel's tape to Arrow arrays: one arena holds every buffer of a block, arrays are views of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.tables import codes, native
from pipeline.tables.plan import Node, Plan
from pipeline.tables.schema import arrow_type, derived_type
from pipeline.tables.shape import Member

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_ALIGN = 64
_WITH_TEXT = frozenset({codes.TEXT, codes.DATE, codes.DECIMAL, codes.RAW, codes.TYPE})


class Columns:
    """The columns that one block's tape holds values for. `data` must stay as it is until `table` is done."""

    def __init__(self, plan: Plan, data: NDArray[np.uint8], tape: NDArray[np.int32], entries: int) -> None:
        import pyarrow as pa

        self._plan = plan
        size = len(plan.nodes)
        self._events = np.zeros(size, np.int64)
        sizes = np.zeros(size, np.int64)
        native.call(codes.MEASURE, entries, tape, plan.table, self._events, sizes)
        plan.seen[:size] |= self._events > 0
        self._layout = np.full((size, codes.LAYOUT_COLUMNS), -1, np.int64)
        total = self._lay_out(sizes)
        # Zeros from the system: what nobody writes costs nothing.
        arena = np.zeros(total, np.uint8)
        filled, written = np.zeros((2, size), np.int64)
        native.call(
            codes.FILL,
            entries,
            data,
            tape,
            plan.table,
            self._layout,
            arena,
            arena.view(np.int32),
            arena.view(np.int64),
            filled,
            written,
        )
        self._buffer = pa.py_buffer(arena)

    def _lay_out(self, sizes: NDArray[np.int64]) -> int:
        table, counts = self._plan.table, self._plan.counts
        top = 0

        def place(size: int) -> int:
            nonlocal top
            at = top
            top += (size + _ALIGN - 1) // _ALIGN * _ALIGN
            return at

        for index in map(int, np.flatnonzero(self._events)):
            kind = int(table[index, codes.KIND])
            rows = int(counts[table[index, codes.SPACE]])
            layout = self._layout[index]
            layout[codes.LENGTH] = rows
            layout[codes.UNDATED] = 0
            layout[codes.VALIDITY] = place(rows // 8 + 1)
            if kind in _WITH_TEXT or kind == codes.LIST:
                layout[codes.OFFSETS] = place(4 * (rows + 1)) // 4
            elif kind == codes.INTEGER:
                layout[codes.OFFSETS] = place(4 * rows) // 4
            if kind in _WITH_TEXT:
                layout[codes.VALUES] = place(int(sizes[index]))
            elif kind == codes.BOOLEAN:
                layout[codes.VALUES] = place(rows // 8 + 1)
            if kind == codes.DATE:
                layout[codes.STARTS] = place(16 * rows) // 8
                layout[codes.DATED] = place(rows // 8 + 1)
        return top + _ALIGN

    def fields(self) -> list[tuple[str, pa.Array]]:
        """(name, column) of the columns that occur, in table order, derived ones behind their origin."""
        return self._members(self._plan.root)

    def _members(self, node: Node) -> list[tuple[str, pa.Array]]:
        found = []
        for child in node.children:
            if child.member is not None and self._events[child.index]:
                array, derived = self._column(child)
                found.append((child.member.name, array))
                found += zip(child.member.derived, derived, strict=True)
        return found

    def _column(self, node: Node) -> tuple[pa.Array, list[pa.Array]]:
        """The array of a node, and those derived from it."""
        import pyarrow as pa

        if self._plan.table[node.index, codes.KIND] != codes.LIST:
            return self._values(node)
        inner, inner_derived = self._items(node.children[0])
        offsets = self._part(4 * self._at(node, codes.OFFSETS), 4 * (self._length(node) + 1))

        def listed(values: pa.Array) -> pa.Array:
            kind = pa.list_(pa.field("element", values.type))
            return pa.Array.from_buffers(
                kind,
                self._length(node),
                [self._validity(node), offsets],
                self._nulls(node),
                children=[values],
            )

        return listed(inner), [listed(each) for each in inner_derived]

    def _items(self, item: Node) -> tuple[pa.Array, list[pa.Array]]:
        """The values of a list; all null where no item holds one."""
        import pyarrow as pa

        if self._events[item.index]:
            return self._values(item)
        member = _member(item)
        rows = int(self._plan.counts[self._plan.table[item.index, codes.SPACE]])
        values = pa.nulls(rows, arrow_type(member, self._plan.seen_below(item)).value_type)
        return values, [pa.nulls(rows, derived_type(member).value_type) for _ in member.derived]

    def _values(self, node: Node) -> tuple[pa.Array, list[pa.Array]]:
        import pyarrow as pa

        kind = int(self._plan.table[node.index, codes.KIND])
        rows, validity, nulls = self._length(node), self._validity(node), self._nulls(node)
        if kind == codes.STRUCT:
            return self._structure(node), []
        if kind == codes.INTEGER:
            values = self._part(4 * self._at(node, codes.OFFSETS), 4 * rows)
            return pa.Array.from_buffers(pa.int32(), rows, [validity, values], nulls), []
        if kind == codes.BOOLEAN:
            values = self._part(self._at(node, codes.VALUES), rows // 8 + 1)
            return pa.Array.from_buffers(pa.bool_(), rows, [validity, values], nulls), []
        begin = self._at(node, codes.OFFSETS)
        offsets = self._part(4 * begin, 4 * (rows + 1))
        values = self._buffer.slice(self._at(node, codes.VALUES))
        text = pa.Array.from_buffers(pa.string(), rows, [validity, offsets, values], nulls)
        if kind == codes.DECIMAL:
            return text, [_numbers(text)]
        return text, self._instants(node) if kind == codes.DATE else []

    def _structure(self, node: Node) -> pa.Array:
        import pyarrow as pa

        rows = self._length(node)
        found = self._members(node)
        if not found:
            # Parquet has no empty structures: a member seen elsewhere stands in, else the first one.
            seen = (child for child in node.children if self._plan.seen[child.index])
            stand_in = next(seen, node.children[0])
            below = stand_in.children[0] if _member(stand_in).many else stand_in
            kind = arrow_type(_member(stand_in), self._plan.seen_below(below))
            found = [(_member(stand_in).name, pa.nulls(rows, kind))]
        kind = pa.struct([pa.field(name, array.type) for name, array in found])
        return pa.Array.from_buffers(
            kind, rows, [self._validity(node)], self._nulls(node), children=[array for _, array in found]
        )

    def _instants(self, node: Node) -> list[pa.Array]:
        import pyarrow as pa

        rows = self._length(node)
        nulls = self._nulls(node) + self._at(node, codes.UNDATED)
        validity = self._part(self._at(node, codes.DATED), rows // 8 + 1) if nulls else None
        begin = 8 * self._at(node, codes.STARTS)
        kind = pa.timestamp("us", "UTC")
        return [
            pa.Array.from_buffers(kind, rows, [validity, self._part(at, 8 * rows)], nulls)
            for at in (begin, begin + 8 * rows)
        ]

    def _length(self, node: Node) -> int:
        return self._at(node, codes.LENGTH)

    def _nulls(self, node: Node) -> int:
        return self._length(node) - int(self._events[node.index])

    def _validity(self, node: Node) -> pa.Buffer | None:
        if not self._nulls(node):
            return None
        return self._part(self._at(node, codes.VALIDITY), self._length(node) // 8 + 1)

    def _at(self, node: Node, column: int) -> int:
        return int(self._layout[node.index, column])

    def _part(self, begin: int, size: int) -> pa.Buffer:
        return self._buffer.slice(begin, size)


def _numbers(text: pa.Array) -> pa.Array:
    """Decimals as doubles; null where one is beyond what a double can hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = text.cast(pa.float64())
    finite = pc.is_finite(numbers)
    return pc.if_else(finite, numbers, None) if finite.false_count else numbers


def _member(node: Node) -> Member:
    if node.member is None:
        raise ValueError("the resource itself is no member")
    return node.member
