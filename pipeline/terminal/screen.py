"""Data on standard output, words on standard error; colour, spinners and bars on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNBOUNDED = 10_000
"""Columns of a table that goes into a pipe or a file: nothing is cut or wrapped there."""


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this module is what prints


def give(text: str) -> None:
    """A line of what was asked for."""
    print(text, flush=True)  # noqa: T201 - as above


def give_json(value: object) -> None:
    """One JSON value on a line of its own."""
    give(json.dumps(value, ensure_ascii=False))


def give_table(headers: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Rows under headers; the columns in `numbers` are set to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console(sys.stdout.isatty(), stderr=False)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, show_edge=False)
    for header in headers:
        table.add_column(Text(header), justify="right" if header in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Gives a `say` for the time of some work; on a terminal a spinner turns below what is said."""
    if not sys.stderr.isatty():
        yield say
        return
    from rich.text import Text

    console = _console(True, stderr=True)

    def report(text: str) -> None:
        console.print(Text(text))

    with console.status(Text(what)):
        yield report


@contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes the bytes done since its last call; a bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(True, stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def age(span: timedelta) -> str:
    """`3 d 4 h`, `12 min`: how long ago, to two places."""
    seconds = int(span.total_seconds())
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for position, (name, size) in enumerate(units):
        if seconds >= size:
            smaller = units[position + 1] if position < 2 else None
            rest = seconds % size // smaller[1] if smaller else 0
            return f"{seconds // size} {name}" + (f" {rest} {smaller[0]}" if smaller and rest else "")
    return "0 s"


def number(value: int | None) -> str:
    """`1,234`, or a dash for what is not known yet."""
    return "-" if value is None else f"{value:,}"


def _console(terminal: bool, *, stderr: bool) -> Console:
    from rich.console import Console

    return Console(
        stderr=stderr, highlight=False, markup=False, emoji=False, width=None if terminal else UNBOUNDED
    )
