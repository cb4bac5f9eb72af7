"""Rotates key files in forked children that kill themselves before the n-th step that touches the folder.

Reads lines `PATH N NOW` and answers each with `killed` or `done`: python rotate_until_killed.py
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path

from pipeline.auth.pem_ring import PemRing

WAIT = timedelta(minutes=15)


def rotate(path: Path, steps: int, now: datetime) -> None:
    """Python tells its audit hooks of each opening, renaming, linking and removing before it is done."""
    folder = str(path.parent)
    left = steps

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event.partition(".")[0] in ("open", "os") and any(folder in str(each) for each in arguments):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    PemRing(path, algorithm="ES384", kid=None, wait=WAIT).rotate(now)


def main() -> None:
    for line in sys.stdin:
        path, steps, now = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                rotate(Path(path), int(steps), datetime.fromisoformat(now))
                status = 0
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        outcome = {0: "done", -signal.SIGKILL: "killed"}.get(os.waitstatus_to_exitcode(ended), "failed")
        print(outcome, flush=True)


if __name__ == "__main__":
    main()
