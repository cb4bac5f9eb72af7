"""Memory of the real ingest process (issue 2): bounded, whatever the volume.

`benchmarks/ingest_memory.py` measures the same at any size: 1 GB takes about 470 MB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ingest_meter import Measured, measure
from nightly_site import open_site

LIMIT = 600.0
"""Megabytes for 1 GB of NDJSON."""
SMALL_GROWTH = 150.0
"""Megabytes of peak that three times the NDJSON may add; the volumes differ by 170.

Measured: 54 to 70 on two loaded cores, 81 once in CI; with every decoded block kept in memory 233.
"""


def night(folder: Path, **sandbox: Any) -> Measured:
    """Patients and many long Observations, all in one stage."""
    export = {"level": "patient", "group": None, "types": ["Patient", "Observation"]}
    with open_site(folder, export=export, **sandbox) as site:
        return measure(site)


def test_neither_volume_nor_number_of_files_matters_to_memory_and_small_files_become_few_parts(
    tmp_path: Path,
) -> None:
    small_files = night(
        tmp_path / "small", patients=220, observations_per_patient=20, pad=15_000, file_lines=1
    )
    # More than a pack and than what the converter holds, so that this run already has its full peak.
    assert small_files.ndjson > 64
    assert small_files.receipt.files >= 440
    assert small_files.parts <= 8  # at most one for each lane and batch of 64 MB

    volume = night(tmp_path / "volume", patients=30, observations_per_patient=500, pad=15_000, file_lines=700)
    assert volume.ndjson > 3 * small_files.ndjson
    assert volume.peak - small_files.peak < SMALL_GROWTH
    assert volume.peak < LIMIT
