"""One NDJSON line to one JSON row in the form of the table: the exact part of the conversion.

A row is the resource again, as JSON, with three changes: decimals are strings holding the source's digits,
members of kind `json` are strings holding JSON text, and members that R4 does not define lie in `_unmapped`.

Two ways give the same rows. The fast one decodes with msgspec into structures made from the definitions; it
refuses what it does not know. The tolerant one walks plain Python values, knows the path of every problem,
and is asked only for lines that the fast one refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec

from pipeline.tables import definitions
from pipeline.tables.schema import UNMAPPED
from pipeline.tables.shape import Member, Structure, members

INT32: Final = (-(2**31), 2**31 - 1)


class BadLine(Exception):
    """A line that is no resource of the declared type. Holds a reason and a JSON path, never content."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{reason} at {path}" if path else reason)
        self.reason = reason
        self.path = path


class RowEncoder:
    """Lines of one resource type to rows. Not shared between threads."""

    def __init__(self, resource_type: str) -> None:
        if not definitions.is_resource_type(resource_type):
            # The definitions name the mistake.
            definitions.elements(resource_type)
        self.resource_type = resource_type
        self._decoder = msgspec.json.Decoder(
            _structure_class(Structure(resource_type)), float_hook=msgspec.Raw, dec_hook=_decode_special
        )
        # DecimalText and JsonText are strings of a kind of their own; `str` makes plain ones of them.
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def encode(self, line: bytes) -> bytes:
        """The row for one line, as JSON bytes without a newline. Raises BadLine."""
        try:
            row = self._encoder.encode(self._decoder.decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError):
            return self._tolerant(line)
        # Every parser hides a duplicate key; the row then has fewer colons than the line.
        if row.count(b":") != line.count(b":") or _MINUS_ZERO.search(line) or _COLON.search(line):
            return self._tolerant(line)
        return row

    def _tolerant(self, line: bytes) -> bytes:
        return msgspec.json.encode(tolerant_row(line, self.resource_type))


# What the fast way would spell otherwise: a minus zero without a fraction, and a colon hidden in an escape.
# Two expressions, because each begins with a fixed text and so is found five times as fast as their union.
_MINUS_ZERO: Final = re.compile(rb"-0[\s,\]}]")
_COLON: Final = re.compile(rb"\\u003[aA]")


# --- the fast way ------------------------------------------------------------------------------------


class DecimalText(str):
    """A decimal, as the source's digits."""

    __slots__ = ()


class JsonText(str):
    """A JSON value, as text."""

    __slots__ = ()


@cache
def _structure_class(structure: Structure) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any, Any]] = []
    rename: dict[str, str] = {}
    for position, (name, member) in enumerate(members(structure).items()):
        # JSON names may be Python keywords (`class`), so attributes are numbered.
        attribute = f"f{position}"
        rename[attribute] = name
        if position == 0 and definitions.is_resource_type(structure.type):
            # No default: a line without resourceType, or with another one, is refused here.
            fields.append((attribute, Literal[structure.type], msgspec.NODEFAULT))
        else:
            fields.append((attribute, _field_type(member) | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct(
        structure.type.replace(".", "_"),
        fields,
        rename=rename,
        omit_defaults=True,
        forbid_unknown_fields=True,
        gc=False,
    )


def _field_type(member: Member) -> Any:
    if member.structure is not None:
        inner: Any = _structure_class(member.structure)
        return list[inner] if member.many else inner
    simple: Any = {
        "text": str,
        "boolean": bool,
        "integer": Annotated[int, msgspec.Meta(ge=INT32[0], le=INT32[1])],
        "decimal": DecimalText,
        "json": JsonText,
    }[member.kind]
    # FHIR aligns an array of primitives with its extensions by null.
    return list[simple | None] if member.many else simple


def _decode_special(kind: type, value: Any) -> Any:
    if kind is DecimalText:
        if type(value) is msgspec.Raw:
            return DecimalText(bytes(value), "ascii")
        if type(value) is int:
            return DecimalText(value)
        raise ValueError("not a number")
    if value is None:
        raise ValueError("null")
    return JsonText(msgspec.json.encode(value), "utf-8")


# --- the tolerant way --------------------------------------------------------------------------------


def parse_exactly(line: bytes) -> Any:
    """The JSON value of a line, with every number as the text it was written in (msgspec.Raw).

    Stricter than `json.loads`: UTF-8 only, one value, no NaN, no duplicate key, no lone surrogate.
    Raises BadLine.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise BadLine(f"invalid UTF-8 in byte {bad.start + 1} of the line") from None
    try:
        return _EXACT.decode(text)
    except json.JSONDecodeError as bad:
        raise BadLine(f"invalid JSON ({_parser_words(bad)}) in character {bad.pos + 1} of the line") from None
    except RecursionError:
        raise BadLine("nested too deeply") from None


def _parser_words(bad: json.JSONDecodeError) -> str:
    # The parser's fixed phrases only: what it quotes could be content.
    return bad.msg.split(":")[0].lower()


def _number(lexeme: str) -> msgspec.Raw:
    return msgspec.Raw(lexeme)


def _no_constant(_name: str) -> NoReturn:
    raise BadLine("NaN and Infinity are no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadLine("a key occurs twice in one object")
    return found


_EXACT: Final = json.JSONDecoder(
    parse_float=_number, parse_int=_number, parse_constant=_no_constant, object_pairs_hook=_unique
)


def tolerant_row(line: bytes, resource_type: str) -> dict[str, Any]:
    """The row as Python values. Raises BadLine with the path of what does not fit the definitions."""
    value = parse_exactly(line)
    if not isinstance(value, dict):
        raise BadLine(f"{_json_kind(value)} in place of a resource")
    declared = value.get("resourceType")
    if declared != resource_type:
        known = isinstance(declared, str) and definitions.is_resource_type(declared)
        raise BadLine(
            f"resourceType is {declared if known else 'missing or unknown'}, not {resource_type}",
            "resourceType",
        )
    unmapped: dict[str, Any] = {}
    row = _structure_row(value, Structure(resource_type), "", unmapped)
    if unmapped:
        row[UNMAPPED] = _json_text(unmapped, "")
    _no_surrogate(row)
    return row


def _structure_row(
    value: dict[str, Any], structure: Structure, pointer: str, unmapped: dict[str, Any]
) -> dict[str, Any]:
    known = members(structure)
    row: dict[str, Any] = {}
    for name, content in value.items():
        member = known.get(name)
        here = f"{pointer}/{escape(name)}"
        if member is None or content is None:
            unmapped[here] = content
        else:
            row[name] = _member_value(member, content, here, unmapped)
    return row


def _member_value(member: Member, value: Any, pointer: str, unmapped: dict[str, Any]) -> Any:
    if member.kind == "json":
        return _json_text(value, pointer)
    if not member.many:
        return _single_value(member, value, pointer, unmapped)
    if not isinstance(value, list):
        raise BadLine(f"{_json_kind(value)} in place of an array", _dotted(pointer))
    return [
        None
        if item is None and member.structure is None
        else _single_value(member, item, f"{pointer}/{position}", unmapped)
        for position, item in enumerate(value)
    ]


def _single_value(member: Member, value: Any, pointer: str, unmapped: dict[str, Any]) -> Any:
    if member.structure is not None:
        if not isinstance(value, dict):
            raise BadLine(f"{_json_kind(value)} in place of an object", _dotted(pointer))
        return _structure_row(value, member.structure, pointer, unmapped)
    return _SIMPLE[member.kind](value, pointer)


def _text(value: Any, pointer: str) -> str:
    if not isinstance(value, str):
        raise BadLine(f"{_json_kind(value)} in place of a string", _dotted(pointer))
    return value


def _boolean(value: Any, pointer: str) -> bool:
    if not isinstance(value, bool):
        raise BadLine(f"{_json_kind(value)} in place of true or false", _dotted(pointer))
    return value


def _integer(value: Any, pointer: str) -> int:
    lexeme = bytes(value).decode() if isinstance(value, msgspec.Raw) else ""
    # Longer than any int32: also spares int() the quadratic cost of a number with a million digits.
    if len(lexeme) <= 11 and re.fullmatch(r"-?[0-9]+", lexeme) and INT32[0] <= int(lexeme) <= INT32[1]:
        return int(lexeme)
    what = "a number that is no 32-bit integer" if lexeme else _json_kind(value)
    raise BadLine(f"{what} in place of an integer", _dotted(pointer))


def _decimal(value: Any, pointer: str) -> str:
    if not isinstance(value, msgspec.Raw):
        raise BadLine(f"{_json_kind(value)} in place of a number", _dotted(pointer))
    return bytes(value).decode()


_SIMPLE: Final[dict[str, Callable[[Any, str], Any]]] = {
    "text": _text,
    "boolean": _boolean,
    "integer": _integer,
    "decimal": _decimal,
}


def _json_text(value: Any, pointer: str) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        raise BadLine("a lone surrogate in a string", _dotted(pointer)) from None
    except RecursionError:
        raise BadLine("nested too deeply", _dotted(pointer)) from None


def _no_surrogate(row: dict[str, Any]) -> None:
    _json_text(row, "")


def escape(name: str) -> str:
    """A member name as a JSON Pointer token (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def unescape(token: str) -> str:
    """A JSON Pointer token as the member name."""
    return token.replace("~1", "/").replace("~0", "~")


_NAME: Final = re.compile(r"_?[A-Za-z][A-Za-z0-9]{0,63}|[0-9]{1,9}")


def _dotted(pointer: str) -> str:
    # A name that no definition could hold might be content; it is not repeated.
    steps = [step if _NAME.fullmatch(step) else "?" for step in pointer.split("/")[1:]]
    return re.sub(r"\.([0-9]+)(?=\.|$)", r"[\1]", ".".join(steps))


def _json_kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "an array"
    return "an object" if isinstance(value, dict) else "a number"
