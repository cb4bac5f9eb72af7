"""Looks at each line of an NDJSON file as it streams by: is it one whole JSON object, and of which type?

Only `resourceType` is decoded; what the line says never leaves this module. A login page (protocol fact 34)
stops the download at once. A first line that is no JSON object may be a bad line, or the beginning of a JSON
document: the lines behind it tell. Bad lines are counted here, and go to the quarantine when they are
converted.
"""

from __future__ import annotations

import msgspec

from pipeline.bulkdata.decoding import BOM
from pipeline.bulkdata.known_types import known_types
from pipeline.bulkdata.outcome import looks_like_markup
from pipeline.errors import VerificationFailed

UNTYPED = "(none)"
"""Stands in `types_seen` for objects without `resourceType`."""
ODD = "(other)"
"""Stands in `types_seen` for what is no resource type's name: it may be a patient's."""

LONGEST_LINE = 256 << 20
"""Bytes; a line without end must not eat the memory."""

_PATIENCE = 10_000
"""Lines after which a file that began oddly, and has shown no resource since, is taken for a document."""
_NAMED_LINES = 20


class _Head(msgspec.Struct):
    resourceType: str | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - FHIR's spelling


_head = msgspec.json.Decoder(_Head).decode


def type_of_line(line: bytes) -> str:
    """What a line says as its `resourceType`, whatever that is; empty where it is no object that says so."""
    try:
        name = _head(line).resourceType
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return "" if isinstance(name, msgspec.UnsetType) else name


class LineInspector:
    """Push decoded blocks into `feed`, then call `close`; afterwards the counts are final.

    Both raise VerificationFailed for what is no NDJSON, and for a line longer than `longest_line` bytes.
    `lines` are those that are not blank; `malformed` those of them that are not one complete JSON object in
    UTF-8, with the numbers of the first 20 in `malformed_lines` (physical lines, from 1).
    """

    def __init__(self, longest_line: int = LONGEST_LINE) -> None:
        self.lines = 0
        self.blank = 0
        self.malformed = 0
        self.malformed_lines: list[int] = []
        self.types_seen: dict[str, int] = {}
        self.cut = False
        """Whether the last line is incomplete and has no line end: the file was cut short."""
        self._known = known_types()
        self._longest = longest_line
        self._number = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._doubt: VerificationFailed | None = None
        """What the file is taken for, unless a resource comes."""
        self._sniffed = False

    def feed(self, block: bytes) -> None:
        first, *others = block.split(b"\n")
        self._hold(first)
        if not others:
            return
        last = others.pop()
        self._line(self._held())
        for line in others:
            self._line(line)
        self._hold(last)

    def close(self) -> None:
        last = self._held()
        if last:
            before = self.malformed
            self._line(last)
            self.cut = self.malformed > before
        if self._doubt is not None:
            raise self._doubt

    def _hold(self, part: bytes) -> None:
        self._pending_size += len(part)
        if self._pending_size > self._longest:
            raise VerificationFailed(
                f"line {self._number + 1} is longer than {self._longest} bytes", "This is hardly NDJSON."
            )
        if part:
            self._pending.append(part)
        if not self._sniffed and self._pending_size >= 64:
            self._sniffed = True
            _refuse_markup(b"".join(self._pending))

    def _held(self) -> bytes:
        whole = b"".join(self._pending)
        self._pending, self._pending_size = [], 0
        return whole

    def _line(self, line: bytes) -> None:
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(BOM)
        line = line.strip()
        if not line:
            self.blank += 1
            return
        self.lines += 1
        if self.lines == 1:
            _refuse_markup(line)
        name = self._type_of(line)
        if name is None:
            self._bad(line)
        else:
            self.types_seen[name] = self.types_seen.get(name, 0) + 1
            if name not in (UNTYPED, ODD):
                self._doubt = None
        if self._doubt is not None and self.lines >= _PATIENCE:
            raise self._doubt

    def _type_of(self, line: bytes) -> str | None:
        try:
            if not line.isascii():
                line.decode("utf-8")
            name = _head(line).resourceType
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if isinstance(name, msgspec.UnsetType):
            return UNTYPED
        return name if name in self._known else ODD

    def _bad(self, line: bytes) -> None:
        if self.lines == 1:
            self._doubt = _document_that_begins(line)
        self.malformed += 1
        if len(self.malformed_lines) < _NAMED_LINES:
            self.malformed_lines.append(self._number)


def _refuse_markup(head: bytes) -> None:
    if looks_like_markup(head):
        raise _no_ndjson("not NDJSON but an HTML or XML page (a login page?)")


def _document_that_begins(line: bytes) -> VerificationFailed | None:
    """What a file with this bad first line is, when no resource follows; None: just NDJSON with bad lines."""
    if line.startswith(b"{"):
        if line.endswith(b"}"):
            return None
        return VerificationFailed(
            "the content is not NDJSON: its first line is no complete JSON object",
            "The server may have sent one JSON document over several lines, or half a file.",
        )
    if line.startswith(b"["):
        return _no_ndjson("not NDJSON but a JSON array")
    if _is_json(line):
        return _no_ndjson("not NDJSON but JSON values without any object")
    return _no_ndjson("not NDJSON but something that is not JSON")


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _no_ndjson(what: str) -> VerificationFailed:
    return VerificationFailed(
        f"the content is {what}", "Look at the file's URL at the server, and at downloads.auth."
    )
