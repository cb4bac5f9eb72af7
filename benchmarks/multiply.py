"""More NDJSON from some: every copy is the same data about other people, and its references still resolve.

Copy 0 is the source. In copy k each UUID, wherever it stands, becomes another one, always the same; so do the
64 character ids of the sandbox. Its short ids (`1a.3`), too short to be found anywhere, change where they are
an `id` or the end of a relative reference. The copies follow each other, as nights or hospitals would: copies
line by line would put twins side by side, which flatters every compression.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_STEP = 0x9E3779B1
"""Odd, so that no two copies below 2**32 change the same bits."""
_NAMES = re.compile(
    rb"\b(?:(?P<uuid>[0-9a-f]{8})(?=-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b)"
    rb"|(?P<long>[0-9A-F]{8})(?=[0-9A-F]{40}\.[0-9a-f]{7}\.\.))"
    rb'|(?P<short>(?:"id": ?"|[A-Z][A-Za-z]+/)[0-9a-f]{1,7}\.[0-9a-f]{1,5})(?=")'
)


def copy_of(line: bytes, copy: int) -> bytes:
    """The line as it stands in copy number `copy`; the line itself for copy 0."""
    if copy == 0:
        return line
    change = copy * _STEP & 0xFFFFFFFF

    def renamed(found: re.Match[bytes]) -> bytes:
        if found["short"] is not None:
            return b"%s-%x" % (found["short"], copy)
        form = b"%08x" if found["uuid"] is not None else b"%08X"
        return form % (int(found[0], 16) ^ change)

    return _NAMES.sub(renamed, line)


def multiply(source: Path, target: Path, at_least: int) -> int:
    """Write copies of `source` to `target` until it holds `at_least` bytes; returns the number of lines.

    The last copy is whole too. Blank lines are left out. Streams: memory does not grow with either file.
    Raises ValueError when the source has no line.
    """
    written = lines = copy = 0
    with target.open("wb") as out:
        while written < at_least:
            before = written
            for line in _lines(source):
                written += out.write(copy_of(line, copy))
                lines += 1
            if written == before:
                raise ValueError(f"{source.name} has no line")
            copy += 1
    return lines


def _lines(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        for line in file:
            if not line.isspace():
                yield line if line.endswith(b"\n") else line + b"\n"


def sandbox_ndjson(folder: Path, types: Iterable[str], patients: int) -> dict[str, Path]:
    """The sandbox's resources of these types, a file each. Raises ValueError for a type it never makes."""
    from pipeline.sandbox.generator.records import group_patients, resources, types_of
    from pipeline.sandbox.generator.wire import encode
    from pipeline.sandbox.generator.world import World

    wanted = sorted(types)
    if never := set(wanted) - set(types_of("system")):
        raise ValueError(f"the sandbox makes no {', '.join(sorted(never))}: give a folder with --data")
    world = World(1, patients, 1)
    paths = {name: folder / f"{name}.source.ndjson" for name in wanted}
    for name, path in paths.items():
        with path.open("wb") as file:
            for resource in resources(world, name, group_patients(world, None)):
                file.write(encode(resource) + b"\n")
    return paths
