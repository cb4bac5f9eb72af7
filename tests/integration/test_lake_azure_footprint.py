"""What the lake on Azure costs: requests for many small files, memory for a big one (azure-and-aidbox E)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from azure_storage import Azurite
from lake_on_azurite import lake_by_key, lake_url, logged

MIB = 2**20
UPLOADER = """
import json, os, sys
from pathlib import Path
from pipeline.config import LakeAuth
from pipeline.lake.lake import open_lake

def peak():
    # Of this process alone: getrusage's peak is inherited from whoever started it.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024

auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
lake = open_lake(sys.argv[1], Path("/"), auth, lambda _: os.environ["HELD"].encode())
lake.put_new("before", b"1")
before = peak()
lake.put_file(Path(sys.argv[2]), "big")
put = peak()
with lake.local_copy("big") as copy:
    size = copy.stat().st_size
print(json.dumps({"before": before, "put": put, "copied": peak(), "size": size}))
"""


def test_each_of_500_small_files_is_one_request_and_no_listing(azurite: Azurite, tmp_path: Path) -> None:
    container = azurite.new_container()
    lake = lake_by_key(azurite, container)
    for number in range(500):
        (tmp_path / f"{number:03d}").write_bytes(b"x" * (100 + number))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: lake.put_file(tmp_path / f"{n:03d}", f"raw/patient/{n:03d}"), range(500)))
    lines = logged(azurite, f"/{container}", 501)
    creation, *puts = [line.split('"')[1] for line in lines]
    assert "restype=container" in creation, "the test's own"
    assert sorted(puts) == [
        f"PUT /devstoreaccount1/{container}/night/raw/patient/{number:03d} HTTP/1.1" for number in range(500)
    ]


def test_memory_does_not_grow_with_the_file_that_is_put_or_copied(azurite: Azurite, tmp_path: Path) -> None:
    """300 MB by at most four requests of 8 MiB at a time; adlfs's defaults hold the whole file."""
    local = tmp_path / "big"
    with local.open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(MIB))
    said = subprocess.run(
        [sys.executable, "-c", UPLOADER, lake_url(azurite.new_container()), str(local)],
        env={**os.environ, "HELD": azurite.connection_string},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    peak = json.loads(said.stdout)
    assert peak["size"] == 300 * MIB
    assert peak["put"] - peak["before"] < 120
    assert peak["copied"] - peak["before"] < 120
    assert peak["copied"] < 300
