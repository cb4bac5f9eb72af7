"""Looks at each line of an NDJSON file as it streams by: is it one whole JSON object, and of which type?

Only `resourceType` is decoded; what the line says never leaves this module. What is no NDJSON at all (a login
page, a JSON document, protocol fact 34) stops the download at once; single bad lines are counted, and judged
by `verify`.
"""

from __future__ import annotations

import re

import msgspec

from pipeline.bulkdata.decoding import BOM
from pipeline.bulkdata.outcome import looks_like_markup
from pipeline.errors import VerificationFailed

UNTYPED = "(none)"
"""Stands in `types_seen` for objects without `resourceType`."""
ODD = "(other)"
"""Stands in `types_seen` for what cannot be a resource type's name."""

LONGEST_LINE = 256 << 20
"""Bytes; a line without end must not eat the memory."""

_NAMED_LINES = 20
_RESOURCE_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_MOST_TYPES = 200


class _Head(msgspec.Struct):
    resourceType: str | msgspec.UnsetType = msgspec.UNSET  # noqa: N815 - FHIR's spelling


class LineInspector:
    """Push decoded blocks into `feed`, then call `close`; afterwards the counts are final.

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
        self._longest = longest_line
        self._number = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._begun = False
        self._sniffed = False
        self._decode = msgspec.json.Decoder(_Head).decode

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
            _refuse_documents(b"".join(self._pending))

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
        if not self._begun:
            _refuse_documents(line)
        self.lines += 1
        name = self._type_of(line)
        if name is None:
            self._bad(line)
        else:
            self.types_seen[name] = self.types_seen.get(name, 0) + 1
        self._begun = True

    def _type_of(self, line: bytes) -> str | None:
        try:
            if not line.isascii():
                line.decode("utf-8")
            name = self._decode(line).resourceType
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if isinstance(name, msgspec.UnsetType):
            return UNTYPED
        if name in self.types_seen:
            return name
        return name if _RESOURCE_TYPE.fullmatch(name) and len(self.types_seen) < _MOST_TYPES else ODD

    def _bad(self, line: bytes) -> None:
        if not self._begun and not line.endswith(b"}"):
            raise VerificationFailed(
                "the content is not NDJSON: its first line is no complete JSON object",
                "The server may have sent one JSON document over several lines, or half a file.",
            )
        self.malformed += 1
        if len(self.malformed_lines) < _NAMED_LINES:
            self.malformed_lines.append(self._number)


def _refuse_documents(head: bytes) -> None:
    start = head.removeprefix(BOM).lstrip()
    if not start or start.startswith(b"{"):
        return
    if looks_like_markup(start):
        what = "an HTML or XML page (a login page?)"
    elif start.startswith(b"["):
        what = "a JSON array"
    else:
        what = "something that is not JSON"
    raise VerificationFailed(
        f"the content is not NDJSON but {what}",
        "Look at the file's URL at the server, and at downloads.auth.",
    )
