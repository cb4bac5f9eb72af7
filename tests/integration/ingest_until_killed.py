"""An ingest that is killed with SIGKILL right behind a write to the lake: `... EXPORT_ID RUN_ID PATTERN`.

`PATTERN`: a regular expression for the path, from the lake's root, of the write behind which it dies. Without
a match it goes on to the receipt.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

from ingest_by_hand import ingest

from pipeline.config import load_config
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.lake.local import LocalLake


def deadly(name: str, pattern: str, place: int) -> None:
    """Lets a method of the lake kill the process when it has written a path that matches."""
    whole = getattr(LocalLake, name)

    def write(lake: LocalLake, *arguments: Any) -> Any:
        result = whole(lake, *arguments)
        if re.search(pattern, arguments[place]):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(LocalLake, name, write)


def main(export_id: str, run_id: str, pattern: str) -> None:
    config = load_config()
    deadly("put_file", pattern, 1)
    deadly("put_new", pattern, 0)
    ingest(Session(config, config.source(None), this_process(run_id), is_dead=lambda _: True), export_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
