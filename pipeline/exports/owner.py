"""Who does something: the run, and the process that it lives in."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

_STARTS_ALIKE = 2.0
"""Seconds: two processes of one number that started further apart are two processes."""


class Owner(BaseModel):
    """A run, by id, and its process; a process is told from a later one with its number by its start."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    host: str
    boot: str = ""
    """Which boot, and which process namespace, of that machine: in another one the number means nothing."""
    pid: int | None = None
    """None when the run outlives this process (a step worker): then only the run's own status counts."""
    started: float | None = None
    """When the process started, seconds after the boot: a clock that is set does not move it."""

    def process_is_alive(self) -> bool:
        """True only when it is certain: this machine, and the very process."""
        if self.pid is None or (self.host, self.boot) != machine():
            return False
        return _lives(self.pid, self.started)

    def process_is_dead(self) -> bool:
        """True only when it is certain: this machine, and no such process any more."""
        host, boot = machine()
        if self.pid is None or self.host != host:
            return False
        if _boot_of(self.boot) != _boot_of(boot):
            return True
        return self.boot == boot and not _lives(self.pid, self.started)


def _boot_of(identity: str) -> str:
    return identity.partition(" ")[0]


def _lives(pid: int, started: float | None) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(_since_boot(process) - started) < _STARTS_ALIKE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _since_boot(process: psutil.Process) -> float:
    """From Linux's own clock ticks where there are any: psutil's times move with the wall clock."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return process.create_time() - psutil.boot_time()
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


@cache
def machine() -> tuple[str, str]:
    """This machine's name, and its boot with the process namespace: `<boot id> <namespace>`."""
    return socket.gethostname(), f"{_boot_id()} {_namespace()}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "-"


def this_process(run_id: str, *, outlived: bool = False) -> Owner:
    """The owner for work done here; `outlived`: the run goes on when this process has ended."""
    if outlived:
        host, boot = machine()
        return Owner(run_id=run_id, host=host, boot=boot)
    return process_of_run(run_id, os.getpid())


def process_of_run(run_id: str, pid: int) -> Owner:
    """The owner for work whose run lives in that process of this machine."""
    host, boot = machine()
    return Owner(run_id=run_id, host=host, boot=boot, pid=pid, started=_since_boot(psutil.Process(pid)))
