"""What a knob may be set to: how a value from YAML is read, and how the documentation says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LONGEST_SECONDS = 86_400.0

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+|/\{tenant\})*")
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_PARAMETER = re.compile(r"_?[A-Za-z]{1,40}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9.+-]+(/[A-Za-z0-9.+-]+)?")
_MARKUP = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Form:
    """The values of one knob. `read` raises ValueError for any other."""

    accepts: str
    """Ends the sentence: it accepts ..."""
    read: Callable[[object], Any]


def knob(says: str, form: Form) -> dict[str, Any]:
    """The metadata that make a field of `Profile` a knob. `says`: what it does, for the documentation."""
    return {"says": says, "form": form}


def choice(*values: str) -> Form:
    """One of these words."""
    return Form(_or(values), lambda value: _one_of(value, values))


def some_of(*values: str) -> Form:
    """A list of one or more of these words; comes as a tuple in their own order."""

    def read(value: object) -> tuple[str, ...]:
        given = [_one_of(each, values) for each in _list(value)]
        return tuple(each for each in values if each in given)

    return Form(f"a list of one or more of {_or(values, 'and')}", read)


def _flag(value: object) -> bool:
    if value is True or value is False:
        return value
    raise ValueError


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_SECONDS:
        return float(value)
    raise ValueError


def _positive(value: object) -> float:
    seconds = _seconds(value)
    if not seconds:
        raise ValueError
    return seconds


def _share(value: object) -> float:
    share = _seconds(value)
    if not 0 < share <= 1:
        raise ValueError
    return share


def _text(form: re.Pattern[str]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise ValueError
        return value

    return read


def _path(value: object) -> str:
    path = _text(_PATH)(value)
    if path.count("{tenant}") > 1:
        raise ValueError
    return path


def _token_path(value: object) -> str:
    path = _path(value)
    if not path or "{tenant}" in path:
        raise ValueError
    return path


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    try:
        re.compile(value)
    except re.error:
        raise ValueError from None
    return value


def _sentence(value: object) -> str:
    if not isinstance(value, str) or _MARKUP.search(value) or len(value) > 300:
        raise ValueError
    return value


def _names(form: re.Pattern[str]) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_text(form)(each) for each in _list(value)))

    return read


def _list(value: object) -> list[object]:
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset) or not value:
        raise ValueError
    return list(value)


def _one_of(value: object, values: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in values:
        raise ValueError
    return value


def _or_null(form: Form) -> Form:
    return Form(f"{form.accepts}, or null", lambda value: None if value is None else form.read(value))


def _or(values: tuple[str, ...], word: str = "or") -> str:
    return f"{', '.join(values[:-1])} {word} {values[-1]}" if len(values) > 1 else values[0]


FLAG = Form("true or false", _flag)
SECONDS = Form("seconds, above 0 and at most a day", _positive)
LAG = _or_null(Form("seconds, at most a day", _seconds))
SHARE = _or_null(Form("a share, above 0 and at most 1", _share))
SCOPE = Form("scopes with single spaces between them", _text(_SCOPE))
BASE_PATH = Form("a path that begins with /, with at most one {tenant} in it, or an empty text", _path)
TOKEN_PATH = _or_null(Form("a path that begins with /", _token_path))
PATTERN = _or_null(Form("a regular expression", _pattern))
MEDIA_TYPE = _or_null(Form("a media type", _text(_MEDIA_TYPE)))
SENTENCE = Form("a text of at most 300 characters", _sentence)
TYPES = Form("a list of resource types, such as [Patient, Observation]", _names(_TYPE))
PARAMETERS = _or_null(Form("a list of parameter names", lambda value: frozenset(_names(_PARAMETER)(value))))
