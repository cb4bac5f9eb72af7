"""Memory and time of putting one big file into a lake on Azure: `python benchmarks/azure_upload.py`.

Three processes, one after the other, put the same file (1 GB unless told otherwise) into Azurite: the lake;
adlfs with its defaults; adlfs's `open(..., "wb")`. Peak memory is each process's own (`VmHWM`: Linux only),
with the interpreter and its imports. Fails when the lake takes more than 300 MB (issue 4).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from azure_storage import ACCOUNT, start_azurite

LIMIT = 300
"""Megabytes of memory for 1 GB."""

_MEASURED = """
import json, os, sys, time
from pathlib import Path
def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
way, local, container = sys.argv[1:]
if way == "lake":
    from pipeline.config import LakeAuth
    from pipeline.lake.lake import open_lake
    auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
    url = f"abfs://{container}@{os.environ['ACCOUNT']}.dfs.core.windows.net/"
    lake = open_lake(url, Path("/"), auth, lambda _: os.environ["HELD"].encode())
    put = lambda: lake.put_file(Path(local), way)
else:
    from adlfs import AzureBlobFileSystem
    fs = AzureBlobFileSystem(connection_string=os.environ["HELD"])
    def put():
        if way == "put_file":
            fs.put_file(local, f"{container}/{way}")
            return
        with open(local, "rb") as source, fs.open(f"{container}/{way}", "wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
began = time.monotonic()
put()
print(json.dumps([peak(), time.monotonic() - began, sum(os.times()[:2])]))
"""

_WAYS = {
    "lake": "the lake",
    "put_file": "adlfs's put_file, its defaults",
    "write": 'adlfs\'s open(..., "wb")',
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the file (default: 1000)")
    options = parser.parse_args()
    lake_peak = 0.0
    print(f"{options.megabytes} MB into Azurite  {'peak MB':>10} {'seconds':>8} {'CPU s':>6}")
    for way, words in _WAYS.items():
        with tempfile.TemporaryDirectory(prefix="upload-") as folder:
            local = Path(folder) / "big"
            with local.open("wb") as file:
                for _ in range(options.megabytes):
                    file.write(os.urandom(1_000_000))
            peak, seconds, cpu = _measure(way, local, Path(folder))
        print(f"  {words:<32} {peak:>8.0f} {seconds:>8.1f} {cpu:>6.1f}")
        lake_peak = peak if way == "lake" else lake_peak
    if lake_peak > LIMIT:
        print(f"more than {LIMIT} MB of memory")
        return 1
    return 0


def _measure(way: str, local: Path, folder: Path) -> tuple[float, float, float]:
    with start_azurite(folder / "azurite") as azurite:
        container = azurite.new_container()
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, way, str(local), container],
            env={**os.environ, "HELD": azurite.connection_string, "ACCOUNT": ACCOUNT},
            stdout=subprocess.PIPE,
            check=True,
        )
        assert azurite.container(container).get_blob_client(way).get_blob_properties().size == (
            local.stat().st_size
        )
    peak, seconds, cpu = json.loads(done.stdout)
    return peak, seconds, cpu


if __name__ == "__main__":
    sys.exit(main())
