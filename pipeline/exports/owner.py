"""Who does something: the run, and the process that it lives in."""

from __future__ import annotations

import os
import socket
from functools import cache

import psutil
from pydantic import BaseModel, ConfigDict


class Owner(BaseModel):
    """A run, by id, and its process; a process is told from a later one with its number by its start."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    host: str
    pid: int | None = None
    """None when the run outlives this process (a step worker): then only the run's own status counts."""
    started: float | None = None
    """When the process started, seconds since 1970."""

    boot: int = 0
    """When that machine was booted: after the next boot every process number means another process."""

    def process_is_alive(self) -> bool:
        """True only when it is certain: this machine, and the very process."""
        if self.pid is None or (self.host, self.boot) != machine():
            return False
        return _lives(self.pid, self.started)

    def process_is_dead(self) -> bool:
        """True only when it is certain: this machine, and no such process any more."""
        if self.pid is None or self.host != machine()[0]:
            return False
        return self.boot != machine()[1] or not _lives(self.pid, self.started)


def _lives(pid: int, started: float | None) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) < 2
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@cache
def machine() -> tuple[str, int]:
    """This machine's name and the time of its boot, seconds since 1970."""
    return socket.gethostname(), int(psutil.boot_time())


def this_process(run_id: str, *, outlived: bool = False) -> Owner:
    """The owner for work done here; `outlived`: the run goes on when this process has ended."""
    host, boot = machine()
    if outlived:
        return Owner(run_id=run_id, host=host, boot=boot)
    process = psutil.Process(os.getpid())
    return Owner(run_id=run_id, host=host, boot=boot, pid=process.pid, started=process.create_time())
