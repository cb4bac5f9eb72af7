"""One conversion as the tests see it: bytes in, what became of each line out, held against the oracles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from definition_oracle import judge, row_mistakes
from exact_json import NotJson, differences, parse

from pipeline.tables.convert import Converter, FileCounts, Refused
from pipeline.tables.ndjson import to_ndjson

EXPORT = "20260101T020000Z"
BOM = b"\xef\xbb\xbf"

Origin = tuple[str, int]
"""Source file and physical line."""


@dataclass(frozen=True)
class Conversion:
    """What came out of a Converter."""

    refused: dict[Origin, tuple[Refused, bytes]]
    rows: dict[Origin, dict[str, Any]]
    """The Parquet rows as Python values."""
    back: dict[Origin, bytes]
    """The lines of `to_ndjson`."""
    counts: Mapping[str, FileCounts]
    schema: pa.Schema
    part_rows: list[int]


def convert(
    resource_type: str,
    files: Mapping[str, Iterable[bytes]],
    *,
    known: pa.Schema | None = None,
    **options: Any,
) -> Conversion:
    """Convert source files (each as its blocks); every line may come out once, or this fails."""
    refused: dict[Origin, tuple[Refused, bytes]] = {}

    def refuse(bad: Refused, line: bytes) -> None:
        origin = (bad.source_file, bad.line)
        assert origin not in refused, f"{origin} refused twice"
        refused[origin] = (bad, line)

    with TemporaryDirectory() as folder:
        with Converter(resource_type, known, EXPORT, Path(folder), refuse=refuse, **options) as converter:
            for name, blocks in files.items():
                converter.add(blocks, name)
            parts = converter.finish()
        paths = [part.path for part in parts]
        assert sorted(Path(folder).iterdir()) == sorted(paths)
        rows: dict[Origin, dict[str, Any]] = {}
        order: list[Origin] = []
        for part in parts:
            table = pq.read_table(part.path)
            assert table.num_rows == part.rows > 0
            assert table.schema.equals(converter.schema) and table.schema.equals(part.schema)
            for row in table.to_pylist():
                origin = (row["_source_file"], row["_source_line"])
                assert origin not in rows, f"{origin} came twice"
                assert row["_export_id"] == EXPORT
                rows[origin] = row
                order.append(origin)
        back = dict(zip(order, to_ndjson(paths), strict=True))
        assert converter.rows == len(rows)
    return Conversion(
        refused, rows, back, dict(converter.files), converter.schema, [part.rows for part in parts]
    )


def physical_lines(data: bytes) -> dict[int, bytes]:
    """Line number -> bytes without line end, blank lines left out; a BOM at the very start is none of it."""
    lines = data.removeprefix(BOM).split(b"\n")
    return {number: line for number, line in enumerate(lines, start=1) if line.strip(b" \t\r")}


def check(resource_type: str, sources: Mapping[str, bytes], found: Conversion, *, rows: bool = True) -> None:
    """In = out + refused: each line that is JSON and fits R4 comes back equal, each other one is refused
    once with the path of a misfit. With `rows` the Parquet rows are checked member by member too."""
    for name, data in sources.items():
        lines = physical_lines(data)
        refused = rows_ = 0
        for number, line in lines.items():
            origin = (name, number)
            try:
                value = parse(line)
            except NotJson as bad:
                assert origin in found.refused, f"{origin} is no JSON ({bad}) and was taken: {line[:300]!r}"
                check_refusal(found, origin, line, paths=None)
                refused += 1
                continue
            verdict = judge(value, resource_type)
            if verdict.misfits:
                assert origin in found.refused, (
                    f"{origin} misfits at {verdict.misfits}, was taken: {line[:300]!r}"
                )
                check_refusal(found, origin, line, verdict.misfits)
                refused += 1
                continue
            assert origin not in found.refused, f"{origin} {found.refused[origin][0]}: {line[:2000]!r}"
            assert origin in found.back, f"{origin} was lost: {line[:300]!r}"
            wrong = differences(verdict.back, parse(found.back[origin]))
            assert not wrong, f"{origin} {wrong[:5]} {line[:2000]!r}"
            if rows:
                wrong = row_mistakes(value, found.rows[origin], resource_type, line.decode())
                assert not wrong, f"{origin} {wrong[:5]} {line[:2000]!r}"
            rows_ += 1
        assert found.counts.get(name, FileCounts()) == FileCounts(len(lines), rows_, refused)
    assert len(found.rows) + len(found.refused) == sum(counts.lines for counts in found.counts.values())


def check_refusal(found: Conversion, origin: Origin, line: bytes, paths: set[str] | None) -> None:
    """A refused line is handed over whole, hashed, explained in words of ours, and has a path."""
    bad, handed = found.refused[origin]
    assert handed.strip() == line.strip()
    assert bad.sha256 == hashlib.sha256(handed).hexdigest()
    assert 3 <= len(bad.reason) <= 120
    assert bad.reason.isascii()
    if paths is not None:
        assert bad.path in paths, f"{bad} and not {paths}"
