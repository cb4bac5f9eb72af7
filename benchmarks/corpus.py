"""The NDJSON that is measured: one plain file a resource type, large enough, from a folder or the sandbox."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.multiply import multiply, sandbox_ndjson

_BLOCK = 1 << 20
SANDBOX_PATIENTS = 1000


@dataclass(frozen=True)
class Source:
    """One plain NDJSON file of one resource type."""

    resource_type: str
    path: Path
    bytes: int
    lines: int

    @property
    def megabytes(self) -> float:
        """10**6 bytes."""
        return self.bytes / 1e6


def gather(data: Path | None, types: Iterable[str], at_least: int, work: Path) -> list[Source]:
    """A source of at least `at_least` bytes for each type; files in `work` are made once and then kept.

    From `data`: all of `<Type>.ndjson`, `<Type>.<anything>.ndjson`, plain or .gz, as one file, multiplied
    when it is too small; one plain file that is large enough is used where it lies. Without `data`: the
    sandbox's resources, multiplied. Raises ValueError when a type has no data.
    """
    origin = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12] if data is not None else "sandbox"
    work = work / origin
    work.mkdir(parents=True, exist_ok=True)
    made: list[Source] = []
    for name in types:
        found = _files(data, name) if data is not None else []
        if data is not None and not found:
            raise ValueError(f"{data} holds no {name}*.ndjson")
        if len(found) == 1 and found[0].suffix == ".ndjson" and found[0].stat().st_size >= at_least:
            made.append(source_of(name, found[0]))
            continue
        target = work / f"{name}.ndjson"
        if not target.exists() or target.stat().st_size < at_least:
            small = _joined(found, work, name) if data is not None else _sandbox(work, name)
            half = target.with_suffix(".part")
            multiply(small, half, at_least)
            half.replace(target)
            small.unlink()
        made.append(source_of(name, target))
    return made


def _sandbox(work: Path, name: str) -> Path:
    return sandbox_ndjson(work, [name], SANDBOX_PATIENTS)[name]


def _files(data: Path, name: str) -> list[Path]:
    return [
        path
        for path in sorted(data.iterdir())
        if path.name.startswith(f"{name}.") and path.name.endswith((".ndjson", ".ndjson.gz"))
    ]


def _joined(found: list[Path], work: Path, name: str) -> Path:
    target = work / f"{name}.source.ndjson"
    with target.open("wb") as out:
        for path in found:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                shutil.copyfileobj(file, out, _BLOCK)
            out.write(b"\n")
    return target


def source_of(name: str, path: Path) -> Source:
    """Counts the lines that are not blank; the file is in the page cache afterwards, for everybody alike."""
    lines = 0
    with path.open("rb") as file:
        for line in file:
            lines += not line.isspace()
    return Source(name, path, path.stat().st_size, lines)


def head(source: Source, lines: int, target: Path) -> Source:
    """The first `lines` lines in a file of their own: what a contender costs before it has work to do."""
    with source.path.open("rb") as file, target.open("wb") as out:
        for _ in range(lines):
            out.write(file.readline())
    return source_of(source.resource_type, target)


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
