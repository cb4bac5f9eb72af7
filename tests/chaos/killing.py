"""Killing at a kill point: a thread that watches the lake and the server's log, and acts when it is time."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chaos.catalogue import LAKE_POINTS, REQUEST_POINTS
from chaos.plan import Moment

PACE = 0.005
"""Seconds between two looks, at least: a look at many files takes longer, and the machine has other work."""


class At:
    """Calls `act` at a moment, once, in a thread of its own; `hit` tells whether it came."""

    def __init__(self, moment: Moment, source: Path, access_log: Path, act: Callable[[], None]) -> None:
        self.hit = False
        self._over = threading.Event()
        self._moment = moment
        self._act = act
        self._count = _counter(moment.point, source, access_log) if moment.point else None
        self._before = self._count() if self._count else 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No more waiting; an act that has begun is waited for."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._over.is_set():
            at = time.monotonic()
            if self._come(at - began):
                self.hit = True
                self._act()
                return
            looked = time.monotonic() - at
            self._over.wait(max(PACE, 3 * looked))

    def _come(self, seconds: float) -> bool:
        if self._count is None:
            return seconds >= self._moment.after
        return self._count() - self._before >= self._moment.number


def _counter(point: str, source: Path, access_log: Path) -> Callable[[], int]:
    if point in LAKE_POINTS:
        return _LakeCounter(source, LAKE_POINTS[point])
    method, path = REQUEST_POINTS[point]
    return _LogCounter(access_log, method, path)


class _LakeCounter:
    def __init__(self, source: Path, pattern: str) -> None:
        self._pattern = re.compile(re.escape(f"{source}/") + pattern + r"\Z")
        self._below = source / pattern.partition("/")[0]

    def __call__(self) -> int:
        found = 0
        for folder, _, names in os.walk(self._below):
            found += sum(self._pattern.match(f"{folder}/{name}") is not None for name in names)
        return found


class _LogCounter:
    def __init__(self, log: Path, method: str | None, path: str) -> None:
        self._log = log
        self._method = f'"method":"{method}"'.encode() if method else b""
        self._path = re.compile(path.removesuffix("$").encode() + (b'"' if path.endswith("$") else b""))
        self._read = 0
        self._found = 0

    def __call__(self) -> int:
        if not self._log.exists():
            return 0
        with self._log.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        lines = data[:whole].split(b"\n")
        self._found += sum(self._method in line and self._path.search(line) is not None for line in lines)
        return self._found
