"""Whether a run's process is over is said only when it is certain; with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.exports.owner import Owner, this_process

SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(SLEEPER, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def owner_of(pid: int) -> Owner:
    """As `this_process` would say it in that process: seconds after boot, from Linux's own ticks."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    started = int(ticks) / os.sysconf("SC_CLK_TCK")
    return this_process("run").model_copy(update={"pid": pid, "started": started})


def test_a_living_process_is_not_dead(child: subprocess.Popen[str]) -> None:
    assert not this_process("run").process_is_dead()
    assert this_process("run").process_is_alive()
    assert not owner_of(child.pid).process_is_dead()
    assert owner_of(child.pid).process_is_alive()


def test_a_killed_process_is_dead_also_before_its_parent_noticed(child: subprocess.Popen[str]) -> None:
    owner = owner_of(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    for _ in range(500):
        if psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert owner.process_is_dead()
    assert not owner.process_is_alive()
    child.wait()
    assert owner.process_is_dead()
    assert not owner.process_is_alive()


def test_a_stopped_process_is_not_dead(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    try:
        assert not owner_of(child.pid).process_is_dead()
    finally:
        os.kill(child.pid, signal.SIGCONT)


def test_another_process_with_the_same_number_is_not_the_owner(child: subprocess.Popen[str]) -> None:
    owner = owner_of(child.pid)
    assert owner.started is not None
    earlier = owner.model_copy(update={"started": owner.started - 1000})
    assert earlier.process_is_dead()
    assert not earlier.process_is_alive()


def test_a_process_on_another_machine_is_never_said_to_be_dead_or_alive(child: subprocess.Popen[str]) -> None:
    owner = owner_of(child.pid).model_copy(update={"host": "elsewhere", "started": 1.0})
    assert not owner.process_is_dead()
    assert not owner.process_is_alive()


def test_a_process_of_before_the_last_boot_is_dead(child: subprocess.Popen[str]) -> None:
    owner = owner_of(child.pid)
    _, _, namespace = owner.boot.partition(" ")
    assert owner.model_copy(update={"boot": f"an-earlier-boot {namespace}"}).process_is_dead()


def test_a_process_of_another_container_of_this_machine_is_never_judged(child: subprocess.Popen[str]) -> None:
    """Its number means another process here."""
    owner = owner_of(child.pid)
    boot, _, _ = owner.boot.partition(" ")
    elsewhere = owner.model_copy(update={"boot": f"{boot} pid:[1]", "started": 0.0})
    assert not elsewhere.process_is_dead()
    assert not elsewhere.process_is_alive()


def test_a_run_that_outlives_its_process_is_not_judged_by_it() -> None:
    owner = this_process("run", outlived=True)
    assert owner.pid is None
    assert not owner.process_is_dead()
    assert not owner.process_is_alive()


def test_an_owner_survives_being_written_down() -> None:
    owner = this_process("run")
    assert Owner.model_validate_json(owner.model_dump_json()) == owner
    assert not Owner.model_validate_json(owner.model_dump_json()).process_is_dead()


def test_a_clock_that_was_set_does_not_kill_a_living_process(child: subprocess.Popen[str]) -> None:
    """The start that psutil tells moves with the clock: a step must not free a live claim."""
    owner = owner_of(child.pid)
    assert owner.started is not None
    assert owner.started < time.clock_gettime(time.CLOCK_BOOTTIME) + 1, "after the boot, not since 1970"
    assert not owner.process_is_dead()
