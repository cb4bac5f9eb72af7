"""Steps that run in processes of their own end with the process of their run.

Dagster's step hands its events to the run's process through a queue. When that was killed nobody reads them:
the step waits for ever at its end, with all its memory (chaos seed 19). What it was at is taken over anyway.
"""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with(run_worker: int) -> None:
    """From now on this process ends when that one does, if it is a child of it."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != run_worker:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)  # as SIGKILL would: the next attempt goes on from the facts

    threading.Thread(target=wait, name="run-worker", daemon=True).start()
