"""Thrift's compact protocol, as far as a Parquet footer needs it.

Lazily: what lies inside a structure or a list stays the bytes that it is written as until somebody asks. A
structure is a dict {field id: (wire type, value)}; values are ints, bytes, bool or float, and the encoded
bytes of inner lists and structures. Source: thrift-compact-protocol.md of Apache Thrift.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pipeline.errors import LakeError

TRUE: Final = 1
FALSE: Final = 2
BYTE: Final = 3
I16: Final = 4
I32: Final = 5
I64: Final = 6
DOUBLE: Final = 7
BINARY: Final = 8
LIST: Final = 9
STRUCT: Final = 12

DEEPEST: Final = 64
"""Levels of structures and lists; a Parquet footer has less than ten."""

Fields = dict[int, tuple[int, Any]]

_WIDTHS: Final = {TRUE: 1, FALSE: 1, BYTE: 1, DOUBLE: 8}


Inside = Mapping[int, "Inside"]
"""Fields whose structures, or lists of structures, are decoded too, and what of their fields in turn."""


def decode(data: bytes, inside: Inside = MappingProxyType({})) -> Fields:
    """The structure that `data` begins with. Raises LakeError when it is none.

    What `inside` names is decoded in the same pass: a structure is Fields, a list a Python list of them.
    """
    try:
        return _Reader(data).structure(inside)
    except (IndexError, struct.error):
        raise _damaged() from None


def decode_at(data: bytes, begin: int, inside: Inside = MappingProxyType({})) -> tuple[Fields, int]:
    """The structure that begins there, and where it ends. Raises LakeError when there is none."""
    reader = _Reader(data, begin)
    try:
        return reader.structure(inside), reader.at
    except (IndexError, struct.error):
        raise _damaged() from None


def items(data: bytes) -> list[Any]:
    """The items of an encoded list. Raises LakeError when it is none."""
    reader = _Reader(data)
    try:
        kind, size = reader.list_head()
        return [reader.value(kind) for _ in range(size)]
    except (IndexError, struct.error):
        raise _damaged() from None


def encode(fields: Fields) -> bytes:
    """The way back from `decode`."""
    out = bytearray()
    before = 0
    for number, (kind, value) in sorted(fields.items()):
        wire = (TRUE if value else FALSE) if kind == TRUE else kind
        if 0 < number - before < 16:
            out.append((number - before) << 4 | wire)
        else:
            out.append(wire)
            write_varint(out, number << 1)
        before = number
        if kind != TRUE:
            _write(out, kind, value)
    out.append(0)
    return bytes(out)


def list_of(kind: int, values: list[Any]) -> bytes:
    """The way back from `items`."""
    out = bytearray([(min(len(values), 15) << 4) | kind])
    if len(values) >= 15:
        write_varint(out, len(values))
    for value in values:
        _write(out, kind, value)
    return bytes(out)


def write_varint(out: bytearray, value: int) -> None:
    """Appends an unsigned variable-length integer."""
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _damaged() -> LakeError:
    return LakeError("A Parquet footer is damaged", "Convert the export again from its raw files")


class _Reader:
    def __init__(self, data: bytes, begin: int = 0) -> None:
        self._data = data
        self._at = begin

    @property
    def at(self) -> int:
        return self._at

    def structure(self, inside: Inside) -> Fields:
        fields: Fields = {}
        number = 0
        while (head := self.byte()) != 0:
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else _unzigzag(self.varint())
            if kind in (TRUE, FALSE):
                fields[number] = (TRUE, kind == TRUE)
            elif number in inside and kind == STRUCT:
                fields[number] = (STRUCT, self.structure(inside[number]))
            elif number in inside and kind == LIST:
                _, size = self.list_head()
                fields[number] = (LIST, [self.structure(inside[number]) for _ in range(size)])
            else:
                fields[number] = (kind, self.value(kind))
        return fields

    def value(self, kind: int) -> Any:
        if kind in (I16, I32, I64):
            return _unzigzag(self.varint())
        if kind == BINARY:
            return self._bytes(self.varint())
        if kind == DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind in (TRUE, FALSE, BYTE):
            return self.byte()
        begin = self._at
        self._at = _behind(self._data, begin, kind)
        return self._data[begin : self._at]

    def list_head(self) -> tuple[int, int]:
        head = self.byte()
        size = head >> 4
        return head & 15, self.varint() if size == 15 else size

    def byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise _damaged()

    def _bytes(self, size: int) -> bytes:
        value = self._data[self._at : self._at + size]
        self._at += size
        if len(value) < size:
            raise _damaged()
        return value


def _behind(data: bytes, at: int, kind: int, depth: int = 0) -> int:
    """Where a value ends. One function without calls for each byte: most of a footer is not looked at."""
    if depth == DEEPEST:
        raise _damaged()
    if kind == STRUCT:
        return _behind_fields(data, at, depth + 1)
    if kind == LIST:
        head = data[at]
        at += 1
        inner, size = head & 15, head >> 4
        if size == 15:
            size, at = _length(data, at)
        # Each item is a byte at least.
        if size > len(data) - at:
            raise _damaged()
        for _ in range(size):
            at = _behind(data, at, inner, depth + 1)
        return at
    if I16 <= kind <= I64:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == BINARY:
        size, at = _length(data, at)
        return at + size
    if kind not in _WIDTHS:
        raise _damaged()
    return at + _WIDTHS[kind]


def _behind_fields(data: bytes, at: int, depth: int) -> int:
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return at
        if head < 16:
            while data[at] > 127:
                at += 1
            at += 1
        kind = head & 15
        if I16 <= kind <= I64:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind > FALSE:
            at = _behind(data, at, kind, depth)
        elif not kind:
            raise _damaged()


def _length(data: bytes, at: int) -> tuple[int, int]:
    reader = _Reader(data, at)
    return reader.varint(), reader.at


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind in (I16, I32, I64):
        write_varint(out, value << 1 if value >= 0 else (-value << 1) - 1)
    elif kind == BINARY:
        write_varint(out, len(value))
        out += value
    elif kind in (STRUCT, LIST):
        out += value
    elif kind == DOUBLE:
        out += struct.pack("<d", value)
    else:
        out.append(value)
