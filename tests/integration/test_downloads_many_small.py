"""Thousands of small files: a few Parquet parts, every resource there once (issue 5, item 4)."""

from __future__ import annotations

from pathlib import Path

import duckdb
from deltalake import DeltaTable
from file_server import configured, file_server, ingest, patient, session_of

FILES = 2000


def test_2000_files_become_a_few_parts_with_every_resource_once(tmp_path: Path) -> None:
    """Read back by DuckDB over the files that delta-rs lists; the slow road is `benchmarks/many_files.py`."""
    with file_server([patient(number) for number in range(FILES)]) as server:
        receipt = ingest(session_of(configured(tmp_path, server)))
    assert (receipt.files, receipt.rows, receipt.quarantined) == (FILES, FILES, 0)
    parts = DeltaTable(str(tmp_path / "lake" / "many" / "tables" / "patient")).file_uris()
    assert len(parts) < 20
    ids = [row[0] for row in duckdb.sql(f"select id from read_parquet({parts})").fetchall()]
    assert sorted(ids) == sorted(f"p{number}" for number in range(FILES))
    raw = [path for path in (tmp_path / "lake" / "many" / "raw").rglob("*") if path.is_file()]
    assert len(raw) < 20
    lineage = DeltaTable(str(tmp_path / "lake" / "many" / "tables" / "_lineage")).file_uris()
    assert duckdb.sql(
        f"select count(*), count(distinct source_file), sum(rows) from read_parquet({lineage})"
    ).fetchall() == [(FILES, FILES, FILES)]
