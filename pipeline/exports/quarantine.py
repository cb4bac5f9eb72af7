"""The quarantine: bad lines by name, never by content, as NDJSON that is written once.

`<source>/quarantine/<export_id>/<attempt>/<table>-<part>.ndjson`, each line
{file, line, path, reason, sha256}: source file (`output-000012`), physical line from 1, JSON path (empty: the
line as a whole), why it was refused, and the sha256 of the line's bytes without its end. The line itself
stays in the raw file. A quarantine file counts when the counting receipt names it; others there are left over
from attempts that failed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.errors import StillRunning
from pipeline.exports.facts import QuarantinePart
from pipeline.lake.spool import discard

if TYPE_CHECKING:
    from pipeline.lake.lake import Lake
    from pipeline.tables.convert import Refused

UNTYPED = "untyped"
"""Stands where a table's name would, for files and lines without a type. No R4 type is so called."""

PART_BYTES = 8 << 20
"""After so many a part is closed: what is held in memory while it is written to the lake."""
_MOST_TRIES = 1000


def quarantine_folder(source: str, export_id: str) -> str:
    """Where the bad lines of an export lie, from the lake's root."""
    return f"{source}/quarantine/{export_id}"


@dataclass
class _Part:
    """A part on its way, on the local disk."""

    path: Path
    file: IO[bytes]
    lines: int = 0
    bytes: int = 0


class Quarantine:
    """The bad lines of one batch, by table: any number of them, on the disk until a part is full.

    `folder`: of the export and attempt, from the lake's root; steps of the same attempt share it. `spool`: a
    local folder for what is not finished. Nothing counts before the fact that names the parts is written.
    """

    def __init__(self, lake: Lake, folder: str, spool: Path, part_bytes: int = PART_BYTES) -> None:
        self._lake = lake
        self._folder = folder
        self._spool = spool
        self._part_bytes = part_bytes
        self._open: dict[str, _Part] = {}
        self._done: list[QuarantinePart] = []

    def put(self, table: str, refused: Refused) -> None:
        """Takes one bad line. Raises `LakeError`."""
        part = self._open.get(table) or self._begin(table)
        part.lines += 1
        part.bytes += part.file.write(_record(refused))
        if part.bytes >= self._part_bytes:
            self._finish(table)

    def close(self) -> tuple[QuarantinePart, ...]:
        """Writes what is left; all parts, durable in the lake. Raises `LakeError`."""
        for table in sorted(self._open):
            self._finish(table)
        return tuple(self._done)

    def _begin(self, table: str) -> _Part:
        path = self._spool / f"quarantine-{table}.ndjson"
        self._open[table] = _Part(path, path.open("wb"))
        return self._open[table]

    def _finish(self, table: str) -> None:
        part = self._open.pop(table)
        part.file.close()
        path = self._put_new(table, part.path.read_bytes())
        discard(part.path)
        self._done.append(QuarantinePart(table=table, path=path, lines=part.lines, bytes=part.bytes))

    def _put_new(self, table: str, data: bytes) -> str:
        """Another step of the attempt may write for the same table: the next free number is taken."""
        taken = sum(name.startswith(f"{table}-") for name in self._lake.names(self._folder))
        for number in range(taken, taken + _MOST_TRIES):
            path = f"{self._folder}/{table}-{number:05d}.ndjson"
            if self._lake.put_new(path, data):
                return path
        raise StillRunning(f"other steps keep writing to {self._folder}", "Run the ingest again")


def _record(refused: Refused) -> bytes:
    values = {
        "file": refused.source_file,
        "line": refused.line,
        "path": refused.path,
        "reason": refused.reason,
        "sha256": refused.sha256,
    }
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
