"""Delivery: everything that is to be told is told, at least once, and nobody waits for it.

Each addressee has a thread of its own, so that one who is slow or gone holds up neither a tick nor others.
What could not be told is not kept: the next tick finds it again, by the facts and by the memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.errors import ExportError, Unreachable
from pipeline.lake.lake import Lake
from pipeline.notify.kinds import Addressee
from pipeline.notify.memory import Memory
from pipeline.notify.notice import Notice
from pipeline.retry_after import pace

WAIT_SECONDS = 12.0
"""So long a tick waits for those who are told; they go on without it."""
LONG_SECONDS = 60.0
"""A notifier that is at one notice for so long is spoken of: its addressee is told nothing else meanwhile."""
_AT_ONCE = 20
"""Notices for one addressee in one tick: the rest comes with the next."""
_FIRST_PAUSE = 30.0
_LONGEST_PAUSE = 1800.0


@dataclass
class _Line:
    """The way to one addressee."""

    addressee: Addressee
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="notify")
    )
    at_work: Future[None] | None = None
    begun: float = 0.0
    """When the notice that is under way was, by the monotonic clock."""
    failures: int = 0
    not_before: float = 0.0
    trouble: str = ""
    failed: Counter[str] = field(default_factory=Counter)
    """By a notice's key: one that is refused each time must not stand before the others for ever."""

    def says(self) -> str:
        """What does not go well, in words; empty where all is well."""
        if self.at_work is not None and not self.at_work.done():
            took = time.monotonic() - self.begun
            if took > LONG_SECONDS:
                return f"has not come back for {took:.0f} s from one notice; nothing else is told meanwhile"
        return self.trouble


class Delivery:
    """Tells the addressees of one source. `log` takes words that are safe to print."""

    def __init__(self, source: str, addressees: Sequence[Addressee]) -> None:
        self._memory = Memory(source)
        self._lines = [_Line(each) for each in addressees]

    def tell(self, lake: Lake, notices: Sequence[Notice], log: Callable[[str], None]) -> list[str]:
        """Tells what was not told yet. Returns what did not go well, in words; raises nothing of it."""
        now = time.monotonic()
        for line in self._lines:
            if line.at_work is not None and not line.at_work.done():
                continue
            due = [each for each in notices if self._is_due(lake, line, each)]
            due.sort(key=lambda each: line.failed[each.key])
            if due and now >= line.not_before:
                line.begun = now
                line.at_work = line.pool.submit(self._work, lake, line, due[:_AT_ONCE], log)
        wait([line.at_work for line in self._lines if line.at_work], timeout=WAIT_SECONDS)
        return [f"{line.addressee.notifier.name}: {said}" for line in self._lines if (said := line.says())]

    def has_told(self, lake: Lake, notice: Notice) -> bool:
        """Whether everybody who wants to hear of it has."""
        return not any(self._is_due(lake, line, notice) for line in self._lines)

    def _is_due(self, lake: Lake, line: _Line, notice: Notice) -> bool:
        return line.addressee.wants(notice) and not self._memory.knows(lake, notice, line.addressee)

    def _work(self, lake: Lake, line: _Line, notices: Sequence[Notice], log: Callable[[str], None]) -> None:
        for notice in notices:
            line.begun = time.monotonic()
            try:
                line.addressee.notifier.tell(notice)
            except Exception as error:  # noqa: BLE001 - a notifier of others may raise anything
                line.failed[notice.key] += 1
                self._put_off(line, error)
                return
            line.failures, line.trouble = 0, ""
            try:
                self._memory.remember(lake, notice, line.addressee, datetime.now(UTC))
            except Exception as error:  # noqa: BLE001 - nobody looks at this thread: the rest is to be told
                said = _in_words(error)
                log(f"told {line.addressee.notifier.name}, and that could not be written down: {said}")

    def _put_off(self, line: _Line, error: Exception) -> None:
        """Not again at once: after what the other side asks for, else after a pause that grows."""
        asked = error.retry_after if isinstance(error, Unreachable) else None
        pause = pace(line.failures, asked, first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        line.failures += 1
        line.not_before = time.monotonic() + pause
        line.trouble = f"{_in_words(error)}; told again in {pause:.0f} s"


def _in_words(error: Exception) -> str:
    # The text of a foreign error may hold anything, the URL too.
    return str(error) if isinstance(error, ExportError) else f"unexpected {type(error).__name__}"
