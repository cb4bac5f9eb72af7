"""Erasures that kill themselves with SIGKILL before so many-th write: `CONFIG PATIENT NUMBER...`.

Each is a process of its own on the same lake, forked from one that has imported everything. Prints how each
ended.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import deltalake  # noqa: F401 - imported here once
import pyarrow.parquet  # noqa: F401

from pipeline.config import load_config
from pipeline.exports.erasing import erase
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.lake.local import LocalLake
from pipeline.tables import erased
from pipeline.tables.current.chunks import ChunkTable

WRITES = [
    *((LocalLake, name) for name in ("put_file", "put_new", "replace_if", "remove")),
    (erased, "leave"),
    (ChunkTable, "replace"),
]


def die_at(number: int) -> None:
    """SIGKILL before that write of this process."""
    done = [0]

    def deadly(whole: Any) -> Any:
        def work(*arguments: Any, **named: Any) -> Any:
            done[0] += 1
            if done[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*arguments, **named)

        return work

    for place, name in WRITES:
        setattr(place, name, deadly(getattr(place, name)))


def main(config_path: str, patient: str, *numbers: str) -> None:
    for number in numbers:
        pid = os.fork()
        if pid == 0:
            die_at(int(number))
            config = load_config(Path(config_path))
            erase(Session(config, config.source(None), this_process("killed")), patient, dry_run=False)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
