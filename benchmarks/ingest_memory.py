"""Memory, CPU time and size of one ingest: `python benchmarks/ingest_memory.py --gigabytes 1`.

Many small files instead: `--gigabytes 0.003 --observations 2 --file-lines 1`, 3,000 files of 1 or 2 kB.

A sandbox makes about that much NDJSON, nearly all of it Observations, so that one staging step takes it all.
The run is the real one, `fhir-export run --wait`, in a process of its own: the table at the end is about that
process (sign-in, polling and Dagster included), not about the server. Nothing outside a temporary folder is
written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

from ingest_meter import Measured, measure
from nightly_site import open_site

LIMIT = 600.0
"""Megabytes of memory for 1 GB of NDJSON (issue 2)."""

_BYTES = 1030
"""In an observation without padding, on average."""


def main() -> int:
    options = _options()
    per_patient = options.observations * (_BYTES + options.pad)
    patients = max(1, round(options.gigabytes * 1e9 / per_patient))
    with (
        tempfile.TemporaryDirectory(prefix="ingest-", dir=options.folder) as folder,
        open_site(
            Path(folder) / "site",
            patients=patients,
            observations_per_patient=options.observations,
            pad=options.pad,
            file_lines=options.file_lines,
            gzip="never" if options.plain else "accepted",
            export={"level": "patient", "group": None, "types": ["Patient", "Observation"]},
            source={"downloads": {"concurrency": options.downloads}},
        ) as site,
    ):
        measured = measure(site)
    _show(measured)
    if measured.peak > LIMIT:
        print(f"more than {LIMIT:.0f} MB of memory")
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of NDJSON, about (default: 1)")
    parser.add_argument("--pad", type=int, default=0, help="characters of narrative in each observation")
    parser.add_argument("--observations", type=int, default=500, help="for each patient (default: 500)")
    parser.add_argument("--file-lines", type=int, default=20_000, help="lines in a file (default: 20,000)")
    parser.add_argument("--downloads", type=int, default=4, help="downloads at a time (default: 4)")
    parser.add_argument("--plain", action="store_true", help="the server does not compress")
    parser.add_argument("--folder", help="where the temporary folder is made")
    return parser.parse_args()


def _show(measured: Measured) -> None:
    rows = measured.receipt.rows
    for name, value in (
        ("NDJSON", f"{measured.ndjson:,.0f} MB in {measured.receipt.files:,} files, {rows:,} rows"),
        ("as stored raw", f"{measured.raw:,.0f} MB"),
        ("Parquet", f"{measured.parquet:,.1f} MB in {measured.parts} parts"),
        ("wall time", f"{measured.wall:,.1f} s, with the server's on the same machine"),
        ("CPU time", f"{measured.cpu:,.1f} s: {measured.rate:.1f} MB of NDJSON a second"),
        ("per file", f"{measured.cpu / max(1, measured.receipt.files) * 1e3:,.1f} ms of CPU time"),
        ("peak memory", f"{measured.peak:,.0f} MB"),
    ):
        print(f"{name:14} {value}")


if __name__ == "__main__":
    sys.exit(main())
