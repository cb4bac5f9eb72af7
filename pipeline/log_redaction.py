"""The one place that every log record of a process passes, whoever writes it and wherever it goes.

Python makes each record by one function; here it makes them without secrets. Handlers, formatters and
Dagster's own log manager only ever see the cleaned one, at every level, also those of libraries that are
loaded later (httpx prints whole URLs, httpcore all headers of an answer, azure's libraries both).

It does not reach what is no Python log: delta-rs writes to stderr where RUST_LOG asks it to.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.redaction import HIDDEN, beginning, hide
from pipeline.unexpected import harmless, print_uncaught, told

LONGEST_MESSAGE = 32_000

_ANSWER_HEADERS = "return_value=("
"""Of httpcore's lines: everything that a server has sent in its headers follows."""


def keep_logs_clean() -> None:
    """From now on in this process; doing it again changes nothing."""
    before = logging.getLogRecordFactory()
    if not isinstance(before, _CleanRecords):
        logging.setLogRecordFactory(_CleanRecords(before))
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = print_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_uncaught_in_thread


class _CleanRecords:
    """Makes records by the function that was there before, and cleans them."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *given: Any, **named: Any) -> logging.LogRecord:
        record = self._make(*given, **named)
        _clean_message(record)
        _clean_error(record)
        return record


def _clean_message(record: logging.LogRecord) -> None:
    try:
        said = record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong format; logging would print the arguments to stderr
        record.msg, record.args = f"(a log message that cannot be formatted, of {record.name})", ()
        return
    safe = _safe(said)
    if safe == said and len(said) <= LONGEST_MESSAGE:
        return
    # Some formatters take the arguments one by one (uvicorn's), so they are kept where that is enough.
    record.args = _safe_arguments(record.args)
    try:
        if record.args and record.getMessage() == safe:
            return
    except Exception:  # noqa: BLE001, S110 - an argument was no text and is one now
        pass
    record.msg, record.args = safe, ()


def _safe(text: str) -> str:
    if _ANSWER_HEADERS in text:
        text = f"{text.partition(_ANSWER_HEADERS)[0]}{_ANSWER_HEADERS}{HIDDEN})"
    return hide(text if len(text) <= LONGEST_MESSAGE else f"{beginning(text, LONGEST_MESSAGE)}... (cut)")


def _safe_arguments(arguments: Any) -> Any:
    if isinstance(arguments, Mapping):
        return {name: _safe_argument(each) for name, each in arguments.items()}
    return tuple(_safe_argument(each) for each in arguments or ())


def _safe_argument(argument: object) -> object:
    return argument if isinstance(argument, int | float | None) else _safe(str(argument))


def _clean_error(record: logging.LogRecord) -> None:
    if record.stack_info:
        record.stack_info = hide(record.stack_info)
    if not record.exc_info or record.exc_info[1] is None:
        return
    error = record.exc_info[1]
    record.exc_text = told(error)
    safe = harmless(error)
    record.exc_info = (type(safe), safe, safe.__traceback__)


def _print_uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None and not issubclass(given.exc_type, SystemExit):
        print_uncaught(given.exc_type, given.exc_value, given.exc_traceback)
