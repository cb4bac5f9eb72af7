"""Lives of a source's exports, each a process of its own, forked from one that has imported everything.

Standard input has a line of JSON for each life: null, or `[WHEN, WHAT, PATTERN]`, the write of its own at
which it kills itself (as in run_until_killed). Two lines come back for each: its process id when it starts,
and its exit code. A life does what `fhir-export run --wait` does, without Dagster: it finishes what is open
by the rules, and opens an export where nothing is. Imports take a second and more; fifty lives should not.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import deltalake  # noqa: F401 - imported here once, for every life
import driven_by_hand
import pyarrow.parquet  # noqa: F401
from run_until_killed import deadly

from pipeline.config import load_config
from pipeline.exports.identity import export_id_at
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.exports.state import Closed
from pipeline.lake.local import LocalLake
from pipeline.tables import convert, delta  # noqa: F401


def die_at(when: str, what: str, pattern: str) -> None:
    """SIGKILL at that write of this process."""
    if what == "commit":
        delta.commit_export = deadly(delta.commit_export, when, 0, pattern)
    else:
        place = 2 if what == "put_file" else 1
        setattr(LocalLake, what, deadly(getattr(LocalLake, what), when, place, pattern))


def live() -> None:
    """What is open goes on to its end; where nothing was, there is a new export."""
    config = load_config()
    site: Any = SimpleNamespace(config=config, source=config.source(None))
    session = Session(config, site.source, this_process("life"), is_dead=lambda _: True)
    known = session.ledger.export_ids()
    last = session.ledger.read(known[-1]) if known else None
    if last is None or isinstance(session.next_step(last), Closed):
        export_id = export_id_at(datetime.now(UTC), known)
    else:
        export_id = last.export_id
    # Run ids count up from here: one that has been there would be taken for the run of before.
    driven_by_hand.Drive(site, export_id, steps=time.time_ns()).to_the_end()


def _one(death: list[str] | None) -> int:
    """A life in this process, which is its own: its exit code."""
    os.setsid()
    try:
        if death:
            die_at(*death)
        live()
    except BaseException:  # noqa: BLE001 - a life ends in this process whatever happens
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def main() -> None:
    """A life for each line."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_one(json.loads(line)))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
