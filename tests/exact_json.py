"""The oracle for JSON: the standard library, made strict, with numbers kept as they were written.

No code of the pipeline. What `parse` refuses is bad JSON for the tests; what it gives is compared by `==`,
which does not care about member order and does care about every digit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Number:
    """A number by the characters it was written in."""

    lexeme: str


class NotJson(ValueError):
    """Not one JSON value in UTF-8 with unique keys; the reason in a few words."""


def parse(line: bytes) -> Any:
    """The value of one line. Raises NotJson, also where nesting goes deeper than CPython follows."""
    try:
        text = line.decode("utf-8", errors="strict")
    except UnicodeDecodeError:
        raise NotJson("UTF-8") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as bad:
        raise NotJson(bad.msg) from None
    except RecursionError:
        raise NotJson("depth") from None
    _refuse_surrogates(value)
    return value


def differences(source: Any, back: Any, path: str = "") -> list[str]:
    """Where two parsed values are not the same, as JSON paths with what lies there."""
    if source == back:
        # Numbers are Number, so no True passes for 1.
        return []
    if isinstance(source, dict) and isinstance(back, dict):
        found = [f"{path}/{name}: lost" for name in source.keys() - back.keys()]
        found += [f"{path}/{name}: new" for name in back.keys() - source.keys()]
        for name in source.keys() & back.keys():
            found += differences(source[name], back[name], f"{path}/{name}")
        return found
    if isinstance(source, list) and isinstance(back, list) and len(source) == len(back):
        pairs = enumerate(zip(source, back, strict=True))
        return [text for at, (a, b) in pairs for text in differences(a, b, f"{path}/{at}")]
    return [f"{path}: {source!r} became {back!r}"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise NotJson("duplicate key")
        found[name] = value
    return found


def _no_constant(_name: str) -> NoReturn:
    raise NotJson("NaN or Infinity")


_DECODER = json.JSONDecoder(
    parse_float=Number, parse_int=Number, parse_constant=_no_constant, object_pairs_hook=_unique, strict=True
)


def _refuse_surrogates(value: Any) -> None:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise NotJson("lone surrogate")
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_surrogates(name)
            _refuse_surrogates(item)
