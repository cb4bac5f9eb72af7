"""The plan of one table for the kernel: which JSON key under which structure leads to which column.

Grows from the definitions while data is read: a structure's members are added when it is first met, so a plan
is as large as what was seen and never as large as what R4 allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.tables import codes
from pipeline.tables.schema import Tree
from pipeline.tables.shape import ELEMENT, Member, Structure, members

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KINDS: Final = {
    "text": codes.TEXT,
    "boolean": codes.BOOLEAN,
    "integer": codes.INTEGER,
    "decimal": codes.DECIMAL,
    "json": codes.RAW,
    "struct": codes.STRUCT,
}
_DATES: Final = frozenset({"date", "dateTime", "instant"})


@dataclass
class Node:
    """One place in a resource, as the table sees it."""

    index: int
    member: Member | None
    """None for the resource itself."""
    structure: Structure | None
    children: list[Node] = field(default_factory=list)
    """The members of a structure in table order; of a list, its items' node alone."""


class Plan:
    """Nodes of one resource type and the kernel's tables about them. Not shared between threads."""

    def __init__(self, resource_type: str) -> None:
        self.expected = np.frombuffer(resource_type.encode(), np.uint8)
        self.table: NDArray[np.int32] = np.full((256, codes.NODE_COLUMNS), -1, np.int32)
        self.keys: NDArray[np.uint8] = np.zeros(4096, np.uint8)
        self._keys_used = 0
        self.slots: NDArray[np.int32] = np.full(1024, -1, np.int32)
        self.slot_hash: NDArray[np.uint64] = np.zeros(1024, np.uint64)
        self.last: NDArray[np.int64] = np.full(256, -1, np.int64)
        self.counts: NDArray[np.int64] = np.zeros(64, np.int64)
        self.spaces = 1
        self.seen: NDArray[np.bool_] = np.zeros(256, np.bool_)
        self.nodes: list[Node] = []
        self.root = self._node(None, Structure(resource_type), codes.STRUCT, 0, -1)
        self.expand(0)

    def expand(self, index: int) -> None:
        """Adds the members of a structure that the data shows for the first time."""
        node = self.nodes[index]
        if node.structure is None:
            raise ValueError(f"node {index} is no structure")
        space = int(self.table[index, codes.SPACE])
        for member in members(node.structure).values():
            node.children.append(self._member(member, space, index))
        self.table[index, codes.EXPANDED] = 1

    def _member(self, member: Member, space: int, parent: int) -> Node:
        kind = _KINDS[member.kind]
        if member.fhir_type in _DATES and member.kind == "text":
            kind = codes.DATE
        if parent == 0 and member.name == "resourceType":
            kind = codes.TYPE
        if not member.many:
            node = self._node(member, member.structure, kind, space, parent)
        else:
            node = self._node(member, None, codes.LIST, space, parent)
            item = self._node(member, member.structure, kind, self._new_space(), -1)
            node.children.append(item)
            self.table[node.index, codes.ITEM] = item.index
            # FHIR aligns an array of primitives with its extensions by null.
            nulls = member.structure is None or member.fhir_type == ELEMENT
            self.table[node.index, codes.NULLS] = int(nulls)
        self._name(node.index, member.name.encode())
        return node

    def _node(
        self, member: Member | None, structure: Structure | None, kind: int, space: int, parent: int
    ) -> Node:
        node = Node(len(self.nodes), member, structure)
        self.nodes.append(node)
        if node.index == len(self.table):
            self.table = _grown(self.table, -1)
            self.last = _grown(self.last, -1)
            self.seen = _grown(self.seen, False)
        row = self.table[node.index]
        row[codes.KIND], row[codes.SPACE], row[codes.PARENT] = kind, space, parent
        row[codes.EXPANDED] = 0
        return node

    def _new_space(self) -> int:
        if self.spaces == len(self.counts):
            self.counts = _grown(self.counts, 0)
        self.spaces += 1
        return self.spaces - 1

    def _name(self, index: int, key: bytes) -> None:
        while self._keys_used + len(key) + codes.PADDING > len(self.keys):
            self.keys = _grown(self.keys, 0)
        at = self._keys_used
        self.keys[at : at + len(key)] = np.frombuffer(key, np.uint8)
        self._keys_used += len(key)
        self.table[index, codes.KEY] = at
        self.table[index, codes.KEY_LENGTH] = len(key)
        if 2 * len(self.nodes) > len(self.slots):
            self.slots = np.full(2 * len(self.slots), -1, np.int32)
            self.slot_hash = np.zeros(len(self.slots), np.uint64)
            for other in self.nodes:
                if self.table[other.index, codes.KEY] >= 0:
                    self._place(other.index)
        else:
            self._place(index)

    def _place(self, index: int) -> None:
        at, length = int(self.table[index, codes.KEY]), int(self.table[index, codes.KEY_LENGTH])
        parent = int(self.table[index, codes.PARENT])
        value = key_hash(self.keys[at : at + length].tobytes(), parent)
        slot = value & (len(self.slots) - 1)
        while self.slots[slot] >= 0:
            slot = (slot + 1) & (len(self.slots) - 1)
        self.slots[slot] = index
        self.slot_hash[slot] = value

    def tree(self) -> Tree:
        """What was seen so far, by name."""
        return self.seen_below(self.root)

    def seen_below(self, node: Node) -> Tree:
        """The same below a structure."""
        found: Tree = {}
        for child in node.children:
            if child.member is not None and self.seen[child.index]:
                inner = child.children[0] if child.member.many else child
                found[child.member.name] = self.seen_below(inner) if inner.structure is not None else None
        return found


def _grown(array: NDArray[Any], empty: Any) -> NDArray[Any]:
    larger = np.full((2 * len(array), *array.shape[1:]), empty, array.dtype)
    larger[: len(array)] = array
    return larger


def key_hash(key: bytes, node: int) -> int:
    """What `_key_hash` gives for a key under a node; `Plan` fills its table with it."""
    every = (1 << 64) - 1
    h = ((node + 1) * 0x9E3779B97F4A7C15 + 0xCBF29CE484222325) & every
    for byte in key:
        h = ((h ^ byte) * 0x100000001B3) & every
    return h ^ (h >> 29)
