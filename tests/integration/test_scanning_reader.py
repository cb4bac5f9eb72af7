"""The reader of test_reader_during_fifty_kills notices what is planted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import scanning_reader
from deltalake import DeltaTable, write_deltalake
from scanning_reader import problems, read_scans

FIRST, SECOND = "20260101T020000Z", "20260102T020000Z"
WHOLE = {each: {"patient": 4, "encounter": 2} for each in (FIRST, SECOND)}


def plant(tables: Path, table: str, export_id: str, ids: list[str]) -> None:
    """Rows of an export, committed."""
    rows = pa.table({"id": ids, "export_id": [export_id] * len(ids)})
    write_deltalake(tables / table, rows, mode="append", partition_by=["export_id"])


def whole(tables: Path, export_id: str) -> None:
    plant(tables, "patient", export_id, list("abcd"))
    plant(tables, "encounter", export_id, list("ef"))
    plant(tables, "_exports", export_id, ["line"])


def cut(tables: Path) -> None:
    """The file of a table that is named last is not there any more."""
    path = Path(DeltaTable(tables / "patient").file_uris()[0].removeprefix("file://"))
    path.unlink()


def scans_of(tables: Path, out: Path) -> list[scanning_reader.Scan]:
    """By the reader's own process."""
    script = str(scanning_reader.__file__)
    subprocess.run(
        [sys.executable, script, str(tables), str(out)], stdin=subprocess.DEVNULL, check=True, timeout=120
    )
    return read_scans(out)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda _: None, ""),
    "a second one that is whole": (lambda t: whole(t, SECOND), ""),
    "tables without a line": (lambda t: plant(t, "patient", SECOND, list("abcd")), ""),
    "half of a table": (
        lambda t: plant(t, "patient", SECOND, list("ab")),
        f"patient has 2 rows and 2 ids of {SECOND}, not 4",
    ),
    "a line before its tables": (
        lambda t: plant(t, "_exports", SECOND, ["line"]),
        f"_exports has {SECOND}, and encounter 0 of its 2 rows",
    ),
    "an export twice": (
        lambda t: plant(t, "patient", FIRST, list("abcd")),
        f"patient has 8 rows and 4 ids of {FIRST}, not 4",
    ),
    "another row in the place of one": (
        lambda t: plant(t, "patient", SECOND, list("abcc")),
        f"patient has 4 rows and 3 ids of {SECOND}, not 4",
    ),
    "a line twice": (
        lambda t: plant(t, "_exports", FIRST, ["line"]),
        f"_exports has 2 lines of {FIRST}",
    ),
    "an export that nobody made": (
        lambda t: plant(t, "patient", "20260103T020000Z", ["a"]),
        "patient has 1 rows and 1 ids of 20260103T020000Z, not 0",
    ),
    "a file that is gone": (cut, "patient: "),
}


@pytest.mark.parametrize("what", CASES)
def test_what_no_reader_may_see_is_noticed(what: str, tmp_path: Path) -> None:
    act, expected = CASES[what]
    whole(tmp_path / "tables", FIRST)
    act(tmp_path / "tables")
    told = problems(scans_of(tmp_path / "tables", tmp_path / "out"), WHOLE)
    assert any(each.startswith(expected) for each in told) if expected else told == [], told


def test_an_export_that_is_listed_no_more_is_noticed(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    whole(tables, FIRST)
    before = scans_of(tables, tmp_path / "before")
    DeltaTable(tables / "_exports").delete(f"export_id = '{FIRST}'")
    after = scans_of(tables, tmp_path / "after")
    assert problems([*before, *after], WHOLE) == [f"{FIRST} is in _exports no more"]


def test_a_lake_without_tables_is_scanned(tmp_path: Path) -> None:
    (scanned, *_) = scans_of(tmp_path / "tables", tmp_path / "out")
    assert (scanned["listed"], scanned["tables"], scanned["broken"]) == ({}, {}, [])
