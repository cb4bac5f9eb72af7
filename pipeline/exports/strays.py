"""Lines on their way from a file to the table of another type: on the disk, so that any number fits."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from pipeline.lake.spool import discard

_HEAD = struct.Struct("<IQQ")


class StrayLine(NamedTuple):
    """A line with its origin."""

    line: bytes
    source_file: str
    number: int
    """Physical line of that file, from 1."""


class StrayLines:
    """Lines by resource type, in the order in which they came. `folder`: private, on the local disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[str, IO[bytes]] = {}
        self._files: dict[str, int] = {}

    def put(self, resource_type: str, line: bytes, source_file: str, number: int) -> None:
        """Keeps a line for the table of `resource_type`."""
        out = self._written.get(resource_type)
        if out is None:
            out = self._written[resource_type] = self._path(resource_type).open("wb")
        file = self._files.setdefault(source_file, len(self._files))
        out.write(_HEAD.pack(file, number, len(line)))
        out.write(line)

    def types(self) -> list[str]:
        """Which types there are lines of."""
        return sorted(self._written)

    def take(self, resource_type: str) -> Iterator[StrayLine]:
        """The lines of one type, in order; afterwards they are gone from the disk."""
        self._written.pop(resource_type).close()
        names = list(self._files)
        path = self._path(resource_type)
        with path.open("rb") as file:
            while head := file.read(_HEAD.size):
                index, number, length = _HEAD.unpack(head)
                yield StrayLine(file.read(length), names[index], number)
        discard(path)

    def close(self) -> None:
        """Gives up what was not taken."""
        for out in self._written.values():
            out.close()

    def _path(self, resource_type: str) -> Path:
        return self._folder / f"stray-{resource_type}"
