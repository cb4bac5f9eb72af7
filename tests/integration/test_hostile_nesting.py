"""Lines nested 10,000 deep, from a server's download to the tables: they cost themselves only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from file_server import EXPORT, configured, file_server, ingest, patient, session_of
from independent_reader import rows

from pipeline.errors import VerificationFailed
from pipeline.exports.facts import Receipt

HEAD = b'{"resourceType":"Patient","id":"deep",'
LEVELS = 10_000
DEEP = [
    HEAD + place + opening * LEVELS + b"1" + closing * LEVELS + b"}"
    for place in (b'"unknown":', b'"extension":')
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"))
] + [HEAD + b'"unknown":' + b"[" * LEVELS, b"[" * LEVELS + b"]" * LEVELS]


def night(folder: Path, allowed: int) -> Receipt:
    """A declared type and none, good lines around the deep ones."""
    data = b"".join(patient(number) + line + b"\n" for number, line in enumerate(DEEP)) + patient(99)
    with file_server([data, data]) as server:
        server.entries[1]["type"] = None
        config = configured(folder, server, max_quarantined=allowed)
        return ingest(session_of(config))


def test_lines_nested_ten_thousand_deep_are_quarantined_and_all_others_published(tmp_path: Path) -> None:
    """tables.md rule 9, for files that declare their type and for one that is split line by line."""
    receipt = night(tmp_path, 1000)
    assert receipt.tables["patient"].rows == 2 * (len(DEEP) + 1)
    assert receipt.quarantined == 2 * len(DEEP)
    found = [
        json.loads(line)
        for path in receipt.quarantine
        for line in (tmp_path / "lake" / path).read_text().splitlines()
    ]
    hashes = sorted(hashlib.sha256(line).hexdigest() for line in DEEP)
    for file in ("output-000000", "output-000001"):
        assert sorted(each["sha256"] for each in found if each["file"] == file) == hashes
    assert any("nested deeper" in each["reason"] for each in found)
    parts = [str(part) for part in (tmp_path / "lake").glob(f"**/patient/export_id={EXPORT}/*.parquet")]
    assert sorted(row["id"] for row in rows(parts)) == sorted(
        2 * [f"p{number}" for number in (*range(len(DEEP)), 99)]
    )


def test_an_export_with_more_of_them_than_allowed_is_held(tmp_path: Path) -> None:
    """Nothing of it is published, and it says why."""
    with pytest.raises(VerificationFailed, match="lines are bad"):
        night(tmp_path, len(DEEP) - 1)
