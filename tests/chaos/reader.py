"""A reader that scans the tables in a loop, as a process of its own: `python -m chaos.reader TABLES OUT`.

It ends when standard input closes, and writes what it saw: for each export and table every number of rows,
and the same again for scans in which `_exports` had listed the export before the table was read.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from deltalake import DeltaTable

PAUSE = 0.1
"""Seconds between two scans, at least."""

SHARE = 8
"""So many times as long as a scan takes is the pause behind it: the machine has other work."""


class Sightings:
    """What was seen, each thing once."""

    def __init__(self) -> None:
        self.scans = 0
        self.seen: set[tuple[str, str, int]] = set()
        self.whole: set[tuple[str, str, int]] = set()
        self.broken: set[str] = set()
        self._rows: dict[str, int] = {}

    def scan(self, tables: Path) -> None:
        """One look at everything; `_exports` first, since what it lists must be there afterwards."""
        listed = set(self._by_export(tables / "_exports"))
        for table in sorted(tables.glob("[a-z]*")):
            found = self._by_export(table)
            self.seen |= {(export, table.name, rows) for export, rows in found.items()}
            self.whole |= {(export, table.name, found.get(export, 0)) for export in listed}
        self.scans += 1

    def _by_export(self, table: Path) -> dict[str, int]:
        if not any((table / "_delta_log").glob("*.json")):
            return {}
        found: dict[str, int] = defaultdict(int)
        try:
            for uri in DeltaTable(str(table)).file_uris():
                path = uri.removeprefix("file://")
                found[path.rpartition("export_id=")[2].partition("/")[0]] += self._count(path)
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is what is to be told
            self.broken.add(f"{table.name}: {type(error).__name__}: {str(error)[:200]}")
        return found

    def _count(self, path: str) -> int:
        if path not in self._rows:
            self._rows[path] = pq.read_table(path, columns=[]).num_rows
        elif not Path(path).exists():
            raise FileNotFoundError(Path(path).name)
        return self._rows[path]

    def as_json(self) -> dict[str, object]:
        return {
            "scans": self.scans,
            "seen": sorted(self.seen),
            "whole": sorted(self.whole),
            "broken": sorted(self.broken),
        }


def main(tables: str, out: str) -> None:
    """Scans until standard input closes."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    sightings = Sightings()
    while not over.is_set():
        began = time.monotonic()
        sightings.scan(Path(tables))
        over.wait(max(PAUSE, SHARE * (time.monotonic() - began)))
    sightings.scan(Path(tables))
    Path(out).write_text(json.dumps(sightings.as_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
