"""A reader that scans every table in a loop, as a process of its own: `... TABLES OUT`. No code of ours.

A scan reads `_exports` first, then every table: delta-rs says which files, DuckDB reads them. OUT gets a
line of JSON for each scan. It ends when standard input closes. `problems` judges the scans by what the server
has.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable

Scan = dict[str, Any]
"""`began` and `ended` (seconds of the machine's monotonic clock), `listed` (export -> its lines in
`_exports`), `tables` (table -> export -> [rows, different ids]), `broken` (what no reader should meet)."""

Whole = Mapping[str, Mapping[str, int]]
"""Export -> table -> its rows."""

PAUSE = 0.02
"""Seconds between two scans: the machine has other work."""


def scan(tables: Path) -> Scan:
    """One look at everything; what `_exports` lists must be there afterwards."""
    found: Scan = {"began": time.monotonic(), "tables": {}, "broken": []}
    found["listed"] = {export: rows for export, (rows, _) in _by_export(tables / "_exports", found).items()}
    for table in sorted(tables.glob("*")):
        if table.name != "_exports":
            found["tables"][table.name] = _by_export(table, found)
    found["ended"] = time.monotonic()
    return found


def _by_export(table: Path, found: Scan) -> dict[str, list[int]]:
    if not any((table / "_delta_log").glob("*.json")):
        return {}
    try:
        files = [uri.removeprefix("file://") for uri in DeltaTable(str(table)).file_uris()]
        if not files:
            return {}
        ids = "count(*)" if table.name.startswith("_") else "count(distinct id)"
        counted = duckdb.execute(
            f"select regexp_extract(filename, 'export_id=([^/]+)', 1), count(*), {ids} from read_parquet("
            "$files, filename = true, hive_partitioning = false, union_by_name = true) group by 1",
            {"files": files},
        )
        return {export: [rows, different] for export, rows, different in counted.fetchall()}
    except Exception as error:  # noqa: BLE001 - whatever a reader meets is what is to be told
        found["broken"].append(f"{table.name}: {type(error).__name__}: {str(error)[:200]}")
        return {}


def problems(scans: Iterable[Scan], whole: Whole) -> list[str]:
    """What no reader may see: part of an export in a table, one listed that is not whole, or gone again."""
    told: dict[str, None] = {}
    before: set[str] = set()
    for each in scans:
        told |= dict.fromkeys(each["broken"])
        for table, exports in each["tables"].items():
            for export, (rows, ids) in exports.items():
                wanted = whole.get(export, {}).get(table, 0)
                if (rows, ids) != (wanted, wanted):
                    told[f"{table} has {rows} rows and {ids} ids of {export}, not {wanted}"] = None
        for export, lines in each["listed"].items():
            if lines != 1:
                told[f"_exports has {lines} lines of {export}"] = None
            for table, wanted in whole.get(export, {"any table": -1}).items():
                rows, _ = each["tables"].get(table, {}).get(export, (0, 0))
                if rows != wanted:
                    told[f"_exports has {export}, and {table} {rows} of its {wanted} rows"] = None
        told |= {f"{export} is in _exports no more": None for export in before - each["listed"].keys()}
        before |= each["listed"].keys()
    return list(told)


def read_scans(out: Path) -> list[Scan]:
    """What a reader has written so far; a line that is being written is left out."""
    return [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]


def main(tables: str, out: str) -> None:
    """Scans until standard input closes, and once more."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    with Path(out).open("w") as lines:
        while True:
            last = over.is_set()
            lines.write(json.dumps(scan(Path(tables))) + "\n")
            lines.flush()
            if last:
                return
            over.wait(PAUSE)


if __name__ == "__main__":
    main(*sys.argv[1:])
