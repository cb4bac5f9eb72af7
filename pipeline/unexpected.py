"""Errors that nobody foresaw: their place and kind are told, their texts are not.

The text of a foreign error may quote what it stumbled over: a patient's name in a value that does not fit, a
signed URL that cannot be read. Dagster keeps a failed step's error in its event log, with the errors behind
it; so everything that comes out of a step passes `contained`, and whatever prints an error asks `told`.
"""

from __future__ import annotations

import functools
import inspect
import os
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

from pipeline.errors import ExportError
from pipeline.redaction import hide

SHOW_TEXTS = "FHIR_EXPORT_SHOW_ERROR_TEXTS"
"""Environment variable: with 1, `fhir-export --debug` prints the texts of foreign errors, too. They may hold
content; nothing else ever prints them."""

_OURS = str(Path(__file__).parent) + os.sep
_NOT_AT_FAULT = ("unexpected.py",)

Function = TypeVar("Function", bound=Callable[..., Any])


def contained(work: Function) -> Function:
    """A step's function, or generator of events, that lets only errors out which are safe to keep.

    `ExportError`s come out without what stands behind them. Any other error becomes an `ExportError` that
    names its kind and the innermost line of ours, with its frames but without its text. What is no error (an
    interruption) passes as it is. To Dagster the function looks the same.
    """
    if inspect.isgeneratorfunction(work):

        @functools.wraps(work)
        def yielding(*given: Any, **named: Any) -> Generator[Any, Any, Any]:
            try:
                return (yield from work(*given, **named))
            except Exception as error:  # noqa: BLE001 - of every kind, by its purpose
                safe = _safe(error)
            _forget_origin(safe)
            raise safe

        return cast("Function", yielding)

    @functools.wraps(work)
    def returning(*given: Any, **named: Any) -> Any:
        try:
            return work(*given, **named)
        except Exception as error:  # noqa: BLE001 - of every kind, by its purpose
            safe = _safe(error)
        _forget_origin(safe)
        raise safe  # not in the except block, where the foreign error would become its context

    return cast("Function", returning)


def place(error: BaseException) -> str:
    """Where it happened: the innermost line of ours, else of all, such as `parts.py, line 91`."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return "an unknown place"
    ours = [frame for frame in frames if _is_ours(frame[0])]
    frame, line = (ours or frames)[-1]
    return f"{Path(frame.f_code.co_filename).name}, line {line}"


def told(error: BaseException, *, with_texts: bool = False) -> str:
    """The error with its frames, and those behind it, as Python prints them; texts only where they are safe.

    Safe are an `ExportError`'s text and that of an error which met no code of ours on its way: it cannot
    have touched data. `with_texts`: all texts, for a developer's terminal. Credentials are never in it.
    """
    return "\n\n".join(_one(each, with_texts) for each in _chain(error))


def text_of(error: BaseException) -> str:
    """The error's own text where that is safe, without credentials; else `(text withheld)`.

    One that was made of an unsafe error may repeat it.
    """
    if isinstance(error, ExportError):
        return hide(str(error))
    if any(_met_ours(each) for each in _chain(error) if not isinstance(each, ExportError)):
        return "(text withheld)"
    return hide(str(error))


def harmless(error: BaseException) -> BaseException:
    """An error to print in its place, by code that knows nothing of all this: same frames, safe texts."""
    if isinstance(error, ExportError) and error.__cause__ is None and error.__context__ is None:
        return error
    safe: BaseException | None = None
    for each in reversed(_chain(error)):
        stand_in = type(type(each).__name__, (Exception,), {"__module__": type(each).__module__})
        outer: BaseException = stand_in(text_of(each)).with_traceback(each.__traceback__)
        outer.__cause__, safe = safe, outer
    assert safe is not None  # noqa: S101 - for the type checker: there is one at least
    return safe


def _safe(error: Exception) -> ExportError:
    if isinstance(error, ExportError):
        return error
    safe = ExportError(
        f"unexpected {type(error).__name__} in {place(error)}",
        "Its text is withheld, since it may hold data; the frames show where it happened: report it",
    )
    return safe.with_traceback(error.__traceback__)


def _forget_origin(error: ExportError) -> None:
    error.__cause__ = error.__context__ = None


def _one(error: BaseException, with_texts: bool) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    text = hide(str(error)) if with_texts else text_of(error)
    return f"Traceback (most recent call last):\n{hide(frames)}{type(error).__name__}: {text}"


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was made of, as Python would print them; the outermost first."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and not any(each is one for one in found):
        found.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return found


def _met_ours(error: BaseException) -> bool:
    return any(_is_ours(frame) for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_ours(frame: FrameType) -> bool:
    path = frame.f_code.co_filename
    return path.startswith(_OURS) and not path.endswith(_NOT_AT_FAULT)


def print_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: what would end the process with its text on the screen."""
    import sys

    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"{told(error)}\n")
