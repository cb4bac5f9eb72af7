"""Signs of life of the runs that live in commands, for commands on other machines.

Where a process is on this machine, its number tells whether it lives. A machine that is gone, or a container
that was started anew under another name, tells nothing: the run beats in Dagster's database while it lives,
and who waits for it counts by a clock of its own.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import dagster as dg

from pipeline.exports.owner import Owner, machine

BEATS_TAG = "fhir-export/beats"
"""On runs that beat: those that a daemon has launched are looked after by its monitoring."""

EVERY_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""Without a beat for so long the machine counts as gone; should it live, its claim on the export is lost."""

_MOST_RUNS = 32
"""Of one source, that are remembered: those that have beaten last."""


def _key(source: str) -> str:
    return f"fhir-export/alive/{source}"


def _beats(instance: dg.DagsterInstance, source: str) -> dict[str, int]:
    """How often each run of the source has beaten, the last one at the end.

    All of them in one value: Dagster's store gives no key back, and a key for each run would stay for ever.
    """
    held = instance.run_storage.get_cursor_values({_key(source)}).get(_key(source), "{}")
    try:
        found = json.loads(held)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def beating(instance: dg.DagsterInstance, source: str, run_id: str) -> Iterator[None]:
    """The run beats for as long as the block takes."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        # Two runs that beat in the same moment may undo each other's beat, but not time after time.
        while not ended.wait(EVERY_SECONDS * random.uniform(0.7, 1.0) if number else 0):  # noqa: S311
            number += 1
            with suppress(Exception):  # a database that is busy or full: the next beat counts
                beats = _beats(instance, source)
                others = [each for each in beats.items() if each[0] != run_id][1 - _MOST_RUNS :]
                value = json.dumps({**dict(others), run_id: number})
                instance.run_storage.set_cursor_values({_key(source): value})

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(EVERY_SECONDS)


@dataclass
class Watch:
    """Waits for one owner's run, and tells when its machine is gone."""

    instance: dg.DagsterInstance
    source: str
    owner: Owner
    _seen: int = 0
    _since: float = field(default_factory=time.monotonic)

    def is_silent(self) -> bool:
        """True when the run should beat from another machine, and has not for `SILENT_SECONDS`."""
        run = self.instance.get_run_by_id(self.owner.run_id)
        if run is None or BEATS_TAG not in run.tags or self.owner.host == machine()[0]:
            return False
        number = _beats(self.instance, self.source).get(self.owner.run_id, self._seen)
        if number != self._seen:
            self._seen, self._since = number, time.monotonic()
        return time.monotonic() - self._since > SILENT_SECONDS
