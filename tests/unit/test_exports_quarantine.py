"""The quarantine and the lines on their way to another table: on the disk, whole, and by name only."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.exports.facts import QuarantinePart
from pipeline.exports.quarantine import Quarantine
from pipeline.exports.strays import StrayLines
from pipeline.lake.lake import Lake, open_lake
from pipeline.tables.convert import Refused

FOLDER = "hosp/quarantine/20260131T020000Z/0001"


def refused(line: int, file: str = "output-000000") -> Refused:
    digest = hashlib.sha256(str(line).encode()).hexdigest()
    return Refused(file, line, "name[0].given", "a number in place of text", digest, None)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return open_lake(str(tmp_path / "lake"), tmp_path)


def spool_in(folder: Path) -> Path:
    folder.mkdir()
    return folder


def lines_of(lake: Lake, part: QuarantinePart) -> list[int]:
    data = lake.read(part.path)
    assert data is not None and len(data) == part.bytes
    found = [json.loads(line)["line"] for line in data.splitlines()]
    assert len(found) == part.lines
    return found


def test_a_record_says_where_and_why_and_nothing_else(lake: Lake, tmp_path: Path) -> None:
    quarantine = Quarantine(lake, FOLDER, spool_in(tmp_path / "spool"))
    quarantine.put("patient", refused(7))
    (part,) = quarantine.close()
    assert part.path == f"{FOLDER}/patient-00000.ndjson"
    data = lake.read(part.path)
    assert data is not None
    assert json.loads(data) == {
        "file": "output-000000",
        "line": 7,
        "path": "name[0].given",
        "reason": "a number in place of text",
        "sha256": hashlib.sha256(b"7").hexdigest(),
    }
    assert list((tmp_path / "spool").iterdir()) == []


def test_no_bad_line_leaves_nothing(lake: Lake, tmp_path: Path) -> None:
    assert Quarantine(lake, FOLDER, spool_in(tmp_path / "spool")).close() == ()
    assert lake.sizes("hosp") == {}


def test_full_parts_are_closed_and_every_line_is_in_one(lake: Lake, tmp_path: Path) -> None:
    quarantine = Quarantine(lake, FOLDER, spool_in(tmp_path / "spool"), part_bytes=1000)
    for line in range(50):
        quarantine.put("patient" if line % 5 else "device", refused(line))
    parts = quarantine.close()
    assert len(parts) > 5
    assert max(part.bytes for part in parts) < 1300
    by_table = {
        name: [n for p in parts if p.table == name for n in lines_of(lake, p)]
        for name in ("patient", "device")
    }
    assert by_table == {"patient": [n for n in range(50) if n % 5], "device": [*range(0, 50, 5)]}


def test_steps_that_write_for_the_same_table_at_once_take_different_names(lake: Lake, tmp_path: Path) -> None:
    """Devices may come in the files of any type, and every staging step is a process of its own."""

    def step(number: int) -> tuple[QuarantinePart, ...]:
        quarantine = Quarantine(lake, FOLDER, spool_in(tmp_path / f"spool-{number}"), part_bytes=500)
        for line in range(20):
            quarantine.put("device", refused(line, f"output-{number:06d}"))
        return quarantine.close()

    with ThreadPoolExecutor(6) as pool:
        parts = [part for found in pool.map(step, range(6)) for part in found]
    assert len({part.path for part in parts}) == len(parts)
    assert sorted(n for part in parts for n in lines_of(lake, part)) == sorted([*range(20)] * 6)


def test_bad_lines_wait_on_the_disk_not_in_memory(lake: Lake, tmp_path: Path) -> None:
    quarantine = Quarantine(lake, FOLDER, spool_in(tmp_path / "spool"), part_bytes=1 << 18)
    one = refused(1)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            quarantine.put("patient", one)
        parts = quarantine.close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(part.bytes for part in parts) > 3 << 20
    assert peak < 1 << 20


def test_strays_come_back_with_their_origin_by_type_in_order(tmp_path: Path) -> None:
    strays = StrayLines(tmp_path)
    expected: dict[str, list[tuple[bytes, str, int]]] = {}
    for number in range(1, 2000):
        resource_type = ("Device", "Encounter", "")[number % 3]
        line, name = b"\n" * (number % 7) + b"\xff" * (number % 300), f"output-{number // 500:06d}"
        strays.put(resource_type, line, name, number)
        expected.setdefault(resource_type, []).append((line, name, number))
    assert strays.types() == ["", "Device", "Encounter"]
    for resource_type in strays.types():
        assert [tuple(each) for each in strays.take(resource_type)] == expected[resource_type]
    assert list(tmp_path.iterdir()) == []
