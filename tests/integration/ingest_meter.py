"""What a whole `fhir-export run` costs, measured on its real process: peak memory, CPU and wall time."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from nightly_site import BIN, Site

from pipeline.exports.facts import Receipt


@dataclass(frozen=True)
class Measured:
    """One run. Megabytes are 10**6 bytes; `peak` is resident memory of all its processes together."""

    receipt: Receipt
    ndjson: float
    raw: float
    parquet: float
    parts: int
    wall: float
    cpu: float
    peak: float

    @property
    def rate(self) -> float:
        """Megabytes of NDJSON per second of CPU time."""
        return self.ndjson / self.cpu


def measure(site: Site) -> Measured:
    """Runs an export to its receipt, with the in-process executor as a production run has it."""
    started = time.monotonic()
    process = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait", "--json")
    peak = 0.0
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.02)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    log = (site.folder / "processes.log").read_text()
    assert process.returncode == 0, log
    wall = time.monotonic() - started
    export_id = site.export_ids()[-1]
    receipt = site.facts(export_id).receipt
    assert receipt is not None, log
    files = [Path(uri) for table in receipt.tables for uri in site.files_of(table, export_id)]
    return Measured(
        receipt=receipt,
        ndjson=receipt.decoded_bytes / 1e6,
        raw=receipt.raw_bytes / 1e6,
        parquet=sum(file.stat().st_size for file in files) / 1e6,
        parts=len(files),
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=peak,
    )


def _resident(pid: int) -> float:
    """Megabytes: the peak so far of the process itself where the system tells it, and its children now."""
    try:
        process = psutil.Process(pid)
        children = sum(child.memory_info().rss for child in process.children(recursive=True))
        return (_high_water(pid) or process.memory_info().rss) / 1e6 + children / 1e6
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0


def _high_water(pid: int) -> int | None:
    """VmHWM, bytes. Unlike `ru_maxrss` it begins anew at `exec`, without the memory of the parent."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
