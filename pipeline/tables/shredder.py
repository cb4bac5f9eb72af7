"""One lane's way from a block of NDJSON to an Arrow table and the lines that it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from pipeline.tables import codes, definitions, native
from pipeline.tables.blocks import Block
from pipeline.tables.columns import Columns
from pipeline.tables.plan import Plan
from pipeline.tables.schema import UNMAPPED, lineage_fields, typed_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Refused:
    """A line that is no resource of the table's type: safe to print, no content."""

    source_file: str
    line: int
    """Physical line, from 1."""
    path: str
    """JSON path such as `name[0].given`; empty for the line as a whole."""
    reason: str
    sha256: str
    """Hex, of the line's bytes without white space around them."""
    stray: str | None
    """The resource type, where the line claims to be another one of R4."""


@dataclass(frozen=True)
class BadLines:
    """Bad lines as the kernel tells of them: a block may hold millions, so they stay numbers."""

    heads: NDArray[np.int64]
    """A row each: line, start, end, code, position, found, depth."""
    frames: NDArray[np.int64]
    """Behind each other, `depth` pairs for each line: the way to the mistake."""

    @classmethod
    def of(cls, bads: NDArray[np.int64]) -> BadLines:
        """A copy, without what is empty."""
        frames = [row[8 : 8 + 2 * int(row[6])] for row in bads]
        return cls(bads[:, :7].copy(), np.concatenate([np.empty(0, np.int64), *frames]))

    @classmethod
    def together(cls, found: Sequence[BadLines]) -> BadLines:
        if len(found) == 1:
            return found[0]
        return cls(
            np.concatenate([each.heads for each in found]), np.concatenate([each.frames for each in found])
        )


@dataclass(frozen=True)
class Shredded:
    """What a block gave. `table` has the columns that occur, typed, and the lineage columns."""

    table: pa.Table
    bad: BadLines
    lines: dict[str, int]
    """Lines that are not blank, by source file; files without one are left out."""
    source_bytes: int


class Shredder:
    """Blocks of one resource type to Arrow tables. Not shared between threads."""

    def __init__(self, resource_type: str, export_id: str) -> None:
        self.resource_type = resource_type
        self._export_id = export_id
        self.plan = Plan(resource_type)
        self._stamp = 0
        self._room = 0
        self._stacks = (
            np.empty(codes.DEEPEST + 1, np.int64),
            np.empty(codes.DEEPEST + 1, np.uint8),
            np.empty(codes.FRAMES, np.int32),
            np.empty(codes.FRAMES, np.int32),
            np.empty(codes.FRAMES, np.int64),
            np.empty(codes.FRAMES, np.int32),
            np.empty(codes.FRAMES, np.int64),
        )
        self._notes = np.empty(1 << 14, np.int32)
        self._unmapped_seen = False

    @property
    def columns_seen(self) -> int:
        """How many different members were seen so far; when it has grown, so has `schema`."""
        return int(self.plan.seen.sum()) + self._unmapped_seen

    def schema(self) -> pa.Schema:
        """The schema of everything seen so far."""
        tree = self.plan.tree()
        if self._unmapped_seen:
            tree[UNMAPPED] = None
        return typed_schema(tree, self.resource_type)

    def shred(self, block: Block) -> Shredded:
        """The rows of a block and its bad lines; each line is in one of them."""
        import pyarrow as pa

        state, bad = self._run(block)
        rows = int(state[codes.ROWS])
        columns = Columns(self.plan, block.data, self._tape, int(state[codes.TAPE]))
        named = columns.fields()
        notes = self._notes[: int(state[codes.NOTES])]
        if len(notes):
            self._unmapped_seen = True
            named.append((UNMAPPED, self._unmapped(block, notes, rows)))
        row_lines = self._lines[:rows]
        named += self._lineage(block, row_lines)
        table = pa.Table.from_arrays([array for _, array in named], names=[name for name, _ in named])
        return Shredded(table, bad, self._line_counts(block, row_lines, bad), block.size)

    def refused(self, block: Block, bad: BadLines) -> Iterator[tuple[Refused, bytes]]:
        """The bad lines of a block, one by one: what they are is worked out only here."""
        at = 0
        for head in bad.heads:
            size = 2 * int(head[6])
            yield self._refused(block, head, bad.frames[at : at + size])
            at += size

    def _run(self, block: Block) -> tuple[NDArray[np.int64], BadLines]:
        self._make_room(block.size)
        state = np.zeros(codes.STATES, np.int64)
        state[codes.STAMP] = self._stamp
        bads = np.empty((1024, codes.BAD_COLUMNS), np.int64)
        found: list[BadLines] = []
        plan = self.plan
        plan.counts[:] = 0
        while True:
            outcome = native.call(
                codes.SHRED,
                block.size,
                block.data,
                plan.expected,
                plan.table,
                plan.keys,
                plan.slots,
                plan.slot_hash,
                plan.last,
                plan.counts,
                self._tape,
                self._lines,
                bads,
                self._notes,
                codes.CLASSES,
                self._scratch,
                self._hashes,
                *self._stacks,
                state,
            )
            if outcome == codes.DONE:
                break
            if outcome == codes.EXPAND:
                plan.expand(int(state[codes.NODE]))
            elif int(state[codes.BADS]) == len(bads):
                found.append(BadLines.of(bads))
                state[codes.BADS] = 0
            else:
                self._notes = np.concatenate([self._notes, np.empty_like(self._notes)])
        self._stamp = int(state[codes.STAMP])
        found.append(BadLines.of(bads[: int(state[codes.BADS])]))
        return state, BadLines.together(found)

    def _make_room(self, size: int) -> None:
        """Work space for a block: reserved, and only touched as far as it is used."""
        if size <= self._room:
            return
        self._room = size
        self._tape = np.empty(4 * (size // 2 + 64), np.int32)
        self._lines = np.empty(size // 2 + 64, np.int32)
        self._scratch = np.empty(size + 64, np.uint8)
        self._hashes = np.empty(size // 3 + 64, np.uint64)

    # --- lineage ---

    def _lineage(self, block: Block, row_lines: NDArray[np.int32]) -> list[tuple[str, pa.Array]]:
        segments = block.segments
        firsts = np.array([segment.first for segment in segments], np.int64)
        bases = np.array([segment.number - segment.first for segment in segments], np.int64)
        which = np.searchsorted(firsts, row_lines, side="right") - 1
        names = _texts([segment.source_file.encode(errors="backslashreplace") for segment in segments])
        columns = [
            _texts([self._export_id.encode()]).take(_int64(np.zeros(len(row_lines), np.int64))),
            names.take(_int64(which)),
            _int64(bases[which] + row_lines),
        ]
        return [(field.name, column) for field, column in zip(lineage_fields(), columns, strict=True)]

    def _line_counts(self, block: Block, row_lines: NDArray[np.int32], bad: BadLines) -> dict[str, int]:
        firsts = [segment.first for segment in block.segments]
        counted = np.zeros(len(firsts), np.int64)
        for lines in (row_lines, bad.heads[:, 0]):
            counted += np.bincount(np.searchsorted(firsts, lines, side="right") - 1, minlength=len(firsts))
        found: dict[str, int] = {}
        for segment, count in zip(block.segments, counted, strict=True):
            if count:
                found[segment.source_file] = found.get(segment.source_file, 0) + int(count)
        return found

    # --- members that R4 does not define ---

    def _unmapped(self, block: Block, notes: NDArray[np.int32], rows: int) -> pa.Array:
        """JSON objects {pointer: value}; the values are the source's bytes."""
        texts: list[list[bytes] | None] = [None] * rows
        at = 0
        values = notes.tolist()
        while at < len(values):
            row, key_start, key_end, start, end, depth = values[at : at + 6]
            at += 6
            steps = self._steps([(values[i], values[i + 1]) for i in range(at, at + 2 * depth, 2)])
            at += 2 * depth
            name = json.loads(b'"' + block.data[key_start:key_end].tobytes() + b'"')
            pointer = "".join(f"/{escape(str(step))}" for step in [*steps, name])
            entry = msgspec.json.encode(pointer) + b":" + block.data[start:end].tobytes()
            there = texts[row]
            if there is None:
                texts[row] = [entry]
            else:
                there.append(entry)
        return _texts([None if each is None else b"{" + b",".join(each) + b"}" for each in texts])

    def _steps(self, frames: list[tuple[int, int]]) -> list[str | int]:
        """Member names and positions on the way into a resource, from the kernel's stack."""
        steps: list[str | int] = []
        in_list = False
        for index, position in frames[1:]:
            member = self.plan.nodes[index].member
            if member is not None and not in_list:
                steps.append(member.name)
            in_list = position >= 0 or int(self.plan.table[index, codes.KIND]) == codes.LIST
            if in_list:
                steps.append(max(position, 0))
        return steps

    # --- bad lines ---

    def _refused(
        self, block: Block, head: NDArray[np.int64], stack: NDArray[np.int64]
    ) -> tuple[Refused, bytes]:
        line, start, end, code, position, found, depth = map(int, head)
        raw = block.data[start:end].tobytes().strip()
        frames = [(int(stack[2 * i]), int(stack[2 * i + 1])) for i in range(depth)]
        path = self._path(frames, found)
        source_file, number = block.origin(line)
        claimed = _claimed(raw) if code != codes.DUPLICATE else None
        if code == codes.WRONG_TYPE and claimed == self.resource_type:
            # The parser sees the last `resourceType`, the kernel the first.
            code = codes.DUPLICATE
        stray = claimed if claimed != self.resource_type else None
        if stray is not None:
            path, reason = "resourceType", f"resourceType is {stray}, not {self.resource_type}"
        else:
            reason = _reason(code, block.data, position, start)
            if code in (codes.NO_TYPE, codes.WRONG_TYPE):
                path = "resourceType"
        return Refused(source_file, number, path, reason, hashlib.sha256(raw).hexdigest(), stray), raw

    def _path(self, frames: list[tuple[int, int]], found: int) -> str:
        steps = self._steps(frames)
        top = frames[-1][0] if frames else -1
        if found >= 0 and found != top:
            member = self.plan.nodes[found].member
            if member is not None:
                steps.append(member.name)
        path = ""
        for step in steps:
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        return path


def _claimed(raw: bytes) -> str | None:
    """The resource type of R4 that a line claims to be; None for what is no whole object of any."""
    if raw[:1] != b"{":
        return None
    try:
        name = _HEAD.decode(raw).resourceType
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return name if definitions.is_resource_type(name) else None


def _texts(values: list[bytes | None]) -> pa.Array:
    # `pa.array` imports pandas where it is installed: half a second.
    import pyarrow as pa

    present = np.array([value is not None for value in values], np.bool_)
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value or b"") for value in values], out=offsets[1:])
    buffers = [
        pa.py_buffer(np.packbits(present, bitorder="little")),
        pa.py_buffer(offsets),
        pa.py_buffer(b"".join(value for value in values if value is not None)),
    ]
    return pa.Array.from_buffers(pa.string(), len(values), buffers, int((~present).sum()))


def _int64(values: NDArray[np.int64]) -> pa.Array:
    import pyarrow as pa

    whole = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])


class _Head(msgspec.Struct):
    resourceType: str  # noqa: N815 - FHIR's spelling


_HEAD: Final = msgspec.json.Decoder(_Head)

_REASONS: Final = {
    codes.BAD_JSON: "invalid JSON",
    codes.BAD_ESCAPE: "invalid JSON (a bad escape in a string)",
    codes.CONTROL: "invalid JSON (a control character in a string)",
    codes.BAD_UTF8: "invalid UTF-8",
    codes.LONE_SURROGATE: "a lone surrogate in a string",
    codes.BAD_NUMBER: "invalid JSON (a malformed number)",
    codes.CONSTANT: "NaN and Infinity are no JSON",
    codes.DUPLICATE: "a key occurs twice in one object",
    codes.DEEP: f"nested deeper than {codes.DEEPEST} levels",
    codes.CUT: "the line ends in the middle of a value",
    codes.TRAILING: "more behind the resource's end",
    codes.NULL_ITEM: "null in place of an object",
    codes.WRONG_TYPE: "resourceType is none of R4",
    codes.NO_TYPE: "resourceType is missing",
}
_EXPECTED: Final = {
    codes.NOT_OBJECT: "an object",
    codes.NOT_ARRAY: "an array",
    codes.NOT_STRING: "a string",
    codes.NOT_BOOLEAN: "true or false",
    codes.NOT_NUMBER: "a number",
    codes.NOT_INTEGER: "a 32-bit integer",
    codes.NOT_RESOURCE: "a resource",
}
_WITH_PLACE: Final = frozenset(
    {codes.BAD_JSON, codes.BAD_ESCAPE, codes.CONTROL, codes.BAD_UTF8, codes.BAD_NUMBER, codes.TRAILING}
)


def _reason(code: int, data: NDArray[np.uint8], position: int, start: int) -> str:
    if code in _EXPECTED:
        return f"{_json_kind(data[position])} in place of {_EXPECTED[code]}"
    place = f" in byte {position - start + 1} of the line" if code in _WITH_PLACE else ""
    return _REASONS[code] + place


def _json_kind(first: np.uint8) -> str:
    kinds = {'"': "a string", "{": "an object", "[": "an array", "t": "true or false", "f": "true or false"}
    return kinds.get(chr(first), "null" if chr(first) == "n" else "a number")


def escape(name: str) -> str:
    """A member name as a JSON Pointer token (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def unescape(token: str) -> str:
    """A JSON Pointer token as the member name."""
    return token.replace("~1", "/").replace("~0", "~")
