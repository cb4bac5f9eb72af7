"""Resources of all 146 types, made from the definitions' names alone, and written to JSON by hand.

A tape of random bytes decides everything: Hypothesis draws it as one value, so that many small resources cost
little, and shrinks it well, because a zero byte always means the simplest choice and an empty tape means
`nothing more`. Nothing here knows of schemas, shapes or conversion.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from exact_json import Number
from hypothesis import strategies as st

from pipeline.tables import definitions
from pipeline.tables.definitions import Element, elements

Item = TypeVar("Item")

DEEPEST_BACKBONE = 5
"""How often a backbone element is put into itself (Questionnaire.item)."""
DEEPEST_EXTENSION = 4
"""How often an extension is put into an extension."""


@dataclass
class Tape:
    """Random bytes, read as choices; beyond the end every choice is the first."""

    data: bytes
    at: int = 0

    @property
    def over(self) -> bool:
        return self.at >= len(self.data)

    def below(self, limit: int) -> int:
        width = 1 if limit <= 256 else 2 if limit <= 65536 else 4
        taken = self.data[self.at : self.at + width]
        self.at += width
        return int.from_bytes(taken.ljust(width, b"\0"), "big") * limit >> 8 * width

    def pick(self, choices: Sequence[Item]) -> Item:
        return choices[self.below(len(choices))]

    def chance(self, percent: int) -> bool:
        return self.below(100) >= 100 - percent


# --- values ------------------------------------------------------------------------------------------

DECIMALS = (
    *("0", "1.10", "-0.0", "-0", "1E2", "1e-7", "0.0019263281655490874", "5", "100", "0.10", "-17.250"),
    *("123456789012345678901234567890.5", "123456789012345678901234567890"),
    *("9007199254740993", "1e22", "1E+23"),
    *("0.1234567890123456789012345678901234567890", "2.2250738585072011e-308"),
    *("4.9e-324", "1.7976931348623157e308"),
    *("8.442911973260991817129021e-309", "3.518437208883201171875e13"),
    *("9214843084008499", "0.500000000000000166"),
    *("1.00000000000000011102230246251565", "1448997445238699"),
    *("100000000000000016777215", "-1e-400", "0e400"),
)  # fmt: skip
"""Digits, exponents, signs; and the hard cases of rounding to a double (facts/tables.md 2)."""

TEXTS = (
    *("", "a", "plain text", "Zo\u00eb", 'quo"te'),
    *("back\\slash", "\\u0041 \\n", "a/b", "~0~1", "\u0000", "\t\r\n"),
    *("\b\f\x1f\x7f", "\u2028\u2029\ufeff", "\ud7ff\ue000\uffff"),
    *("\U0001f600", "\U0010ffff\U00010000", "e\u0301"),
    *("null", "true", "-0", "1E2", "2020-01-01", '{"a":1}'),
    *("[", "]}", '":', "','", "<div>\u00a0</div>", " ", "\u0080"),
    *("\u05d0\u202e", "x" * 40, '"' * 9, "\\" * 7),
)  # fmt: skip

LONG = (300, 5_000, 70_000)
"""Characters of the long strings."""

UNKNOWN_NAMES = (
    *("zz", "", "~", "/", "a/b", "~1", "~01"),
    *("0", "-", "\u00e9\U0001f600", 'q"k', "b\\k", "\u0000", "a.b[0]"),
    *("_unmapped", "_source_line", "_source_file", "_export_id"),
    *("export_id", "__id", "__birthDate_start", "value"),
    *("__value_numeric", "__start_start", "_name", "fhir_comments", "ID"),
    *("Id", "id ", " id", "resourcetype", "x" * 70),
)  # fmt: skip
"""Members that R4 may not define, named to hurt: pointer escapes, our own columns, near misses."""

ZONES = ("Z", "+00:00", "-00:00", "+02:00", "-05:00", "+05:30", "-09:30", "+14:00", "-14:00", "+12:45")
YEARS = ("2020", "2024", "1970", "1969", "1900", "2000", "0001", "9999", "1582", "1752", "0800")
LENGTH_OF_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
FRACTIONS = ("", ".0", ".123", ".999999", ".5", ".000001", ".12345", ".100")


def text(tape: Tape) -> str:
    kind = tape.below(20)
    if kind < 11:
        return tape.pick(("a", "b", "final", "http://example.org/x", "Patient/1", "x-1.2", "Some words here"))
    if kind < 17:
        return tape.pick(TEXTS)
    if kind == 17 and tape.chance(5):
        return tape.pick(("y", "\u00fc", "\U0001f600", '"', "\u0001")) * tape.pick(LONG)
    return "".join(_character(tape) for _ in range(tape.below(12)))


def _character(tape: Tape) -> str:
    ceiling = tape.pick((0x80, 0x100, 0x800, 0xD800, 0x110000))
    code = tape.below(ceiling)
    return chr(code) if not 0xD800 <= code <= 0xDFFF else "\ufffd"


def decimal(tape: Tape) -> Number:
    if tape.chance(60):
        return Number(tape.pick(DECIMALS))
    whole = str(
        tape.below(10 ** tape.below(10)) if tape.chance(70) else "".join(_digits(tape, 1 + tape.below(25)))
    )
    whole = whole.lstrip("0") or "0"
    fraction = "." + "".join(_digits(tape, 1 + tape.below(25))) if tape.chance(70) else ""
    exponent = ""
    if tape.chance(20):
        exponent = (
            tape.pick("eE") + tape.pick(("", "+", "-")) + tape.pick(("0", "1", "05", "12", "22", "0007"))
        )
    return Number(tape.pick(("", "-")) + whole + fraction + exponent)


def _digits(tape: Tape, count: int) -> list[str]:
    return [str(tape.below(10)) for _ in range(count)]


def integer(tape: Tape) -> Number:
    if tape.chance(40):
        return Number(tape.pick(("0", "1", "-1", "2147483647", "-2147483648", "2147483646", "10", "65536")))
    return Number(str(tape.below(1000) - 20))


def date(tape: Tape, least: int = 0, most: int = 2) -> str:
    """`YYYY`, `YYYY-MM` or `YYYY-MM-DD`; valid days only."""
    parts = least + tape.below(most - least + 1)
    year = tape.pick(YEARS) if tape.chance(60) else f"{1850 + tape.below(200):04}"
    if parts == 0:
        return year
    month = 1 + tape.below(12)
    if parts == 1:
        return f"{year}-{month:02}"
    number = int(year)
    leap = month == 2 and number % 4 == 0 and (number % 100 != 0 or number % 400 == 0)
    length = LENGTH_OF_MONTH[month - 1] + leap
    day = length if tape.chance(20) else 1 + tape.below(length)
    return f"{year}-{month:02}-{day:02}"


def clock(tape: Tape) -> str:
    hour, minute, second = (
        (23, 59, 59) if tape.chance(10) else (tape.below(24), tape.below(60), tape.below(60))
    )
    return f"{hour:02}:{minute:02}:{second:02}{tape.pick(FRACTIONS)}"


def instant(tape: Tape) -> str:
    return f"{date(tape, 2)}T{clock(tape)}{tape.pick(ZONES)}"


def primitive(tape: Tape, fhir_type: str) -> Any:
    """A value of a primitive type: str, bool or Number."""
    if fhir_type == "boolean":
        return tape.chance(50)
    if fhir_type == "decimal":
        return decimal(tape)
    if fhir_type in ("integer", "positiveInt", "unsignedInt"):
        return integer(tape)
    if fhir_type in ("date", "dateTime", "instant", "time"):
        if tape.chance(8):
            return tape.pick(NO_DATES)
        if fhir_type == "time":
            return clock(tape)
        if fhir_type == "date":
            return date(tape)
        return instant(tape) if fhir_type == "instant" or tape.chance(50) else date(tape)
    return text(tape)


NO_DATES = (
    *("", "yesterday", "2020-13", "2020-00-10", "2020-02-30"),
    *("2021-02-29", "20", "0000", "2020-1-1", "20200101"),
    *("2020-01-01T25:00:00Z", "2020-01-01T10:61:00Z", "2020/01/01", "2020-01-01 10:00:00Z", "-2020", "+2020"),
    *("12020-01-01", "0001-01-01T00:00:00+14:00"),
    *("9999-12-31T23:59:59-14:00", "2020-01-01T10:00:00+1", "\u0662\u0660"),
    *("2020-01-01T10:00:00.Z", "2020-01-01T", "2020-"),
    *("2020-01-", "2020-01-01T10:00:00Z ", " 2020", "2020-01-32"),
)  # fmt: skip
"""Texts that no reading makes a date: they must stay as they are, and mean no instant."""


# --- structures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where in a resource a structure lies: what it is inside of."""

    around: tuple[str, ...] = ()
    depth: int = 0

    def inside(self, structure: str) -> Place:
        return Place((*self.around, structure), self.depth + 1)

    def count(self, structure: str) -> int:
        return self.around.count(structure)


def resource(tape: Tape, resource_type: str, place: Place | None = None) -> dict[str, Any]:
    """A resource as str, bool, Number, None, dict and list, of the given type."""
    found = structure(tape, resource_type, place or Place(), most=9)
    return {"resourceType": resource_type, **found}


def structure(tape: Tape, name: str, place: Place, most: int = 4) -> dict[str, Any]:
    """The members of one object; each choice such as `value[x]` at most once."""
    here = place.inside(name)
    found: dict[str, Any] = {}
    choices: set[str] = set()
    for element in _chosen(tape, name, here, most):
        if element.choice in choices or not _allowed(element, here):
            continue
        if element.choice is not None:
            choices.add(element.choice)
        found.update(_member(tape, element, here))
    if not found and name not in definitions.resource_types():
        # An object may not be empty in FHIR.
        found["id"] = text(tape)
    if tape.chance(4):
        _add_unknown(tape, found, name)
    return found


def _chosen(tape: Tape, name: str, here: Place, most: int) -> list[Element]:
    everything = elements(name)
    chosen: list[Element] = []
    recursive = [e for e in everything if e.type in here.around and e.type not in ("Extension", "Resource")]
    if recursive and tape.chance(60):
        chosen.append(tape.pick(recursive))
    if any(e.name == "extension" for e in everything) and tape.chance(12):
        chosen.append(next(e for e in everything if e.name == "extension"))
    if name == "Extension":
        chosen += [e for e in everything if e.name == "url"]
    chosen += [tape.pick(everything) for _ in range(tape.below(max(2, most + 1 - here.depth // 3)))]
    return list({e.name: e for e in chosen}.values())


def _allowed(element: Element, here: Place) -> bool:
    if element.type == "Extension":
        return here.count("Extension") < DEEPEST_EXTENSION
    if element.type == "Resource":
        return here.count("Resource") < 2
    if element.type in definitions.primitive_types():
        return True
    return here.count(element.type) < DEEPEST_BACKBONE and here.depth < 14


def _member(tape: Tape, element: Element, here: Place) -> dict[str, Any]:
    if element.type in definitions.primitive_types():
        return _primitive_members(tape, element, here)
    if tape.chance(2):
        return {element.name: None}
    if not element.many:
        return {element.name: _complex(tape, element.type, here)}
    return {element.name: [_complex(tape, element.type, here) for _ in range(1 + tape.below(3))]}


def _complex(tape: Tape, name: str, here: Place) -> dict[str, Any]:
    if name == "Resource":
        inner = definitions.resource_types()[tape.below(146)]
        return resource(tape, inner, here.inside("Resource"))
    return structure(tape, name, here)


def _primitive_members(tape: Tape, element: Element, here: Place) -> dict[str, Any]:
    beside = f"_{element.name}"
    extended = tape.chance(15) and here.count("Extension") < DEEPEST_EXTENSION
    if tape.chance(1):
        return {element.name: None, beside: None}
    if not element.many:
        if not extended:
            return {element.name: primitive(tape, element.type)}
        extension = {beside: _primitive_extension(tape, here)}
        return extension if tape.chance(30) else {element.name: primitive(tape, element.type), **extension}
    values: list[Any] = []
    extensions: list[Any] = []
    for _ in range(1 + tape.below(4)):
        empty = extended and tape.chance(40)
        values.append(None if empty else primitive(tape, element.type))
        extensions.append(_primitive_extension(tape, here) if empty or tape.chance(30) else None)
    if not extended:
        return {element.name: values}
    if tape.chance(10):
        return {beside: extensions}
    return {element.name: values, beside: extensions}


def _primitive_extension(tape: Tape, here: Place) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if tape.chance(40):
        found["id"] = text(tape)
    if not found or tape.chance(60):
        found["extension"] = [structure(tape, "Extension", here) for _ in range(1 + tape.below(2))]
    if tape.chance(4):
        _add_unknown(tape, found, "Element")
    return found


def _add_unknown(tape: Tape, found: dict[str, Any], name: str) -> None:
    known = {e.name for e in elements(name)} if name != "Element" else {"id", "extension"}
    for _ in range(1 + tape.below(2)):
        unknown = tape.pick(UNKNOWN_NAMES)
        if unknown not in known and unknown.removeprefix("_") not in known:
            found[unknown] = anything(tape, 3)


def anything(tape: Tape, deep: int) -> Any:
    """Any JSON value at all."""
    kind = tape.below(8 if deep else 5)
    if kind == 0:
        return None
    if kind == 1:
        return tape.chance(50)
    if kind == 2:
        return decimal(tape)
    if kind in (3, 4):
        return text(tape)
    if kind == 5:
        return [anything(tape, deep - 1) for _ in range(tape.below(4))]
    names = [tape.pick(UNKNOWN_NAMES) for _ in range(tape.below(4))]
    return {name: anything(tape, deep - 1) for name in names}


# --- to text -----------------------------------------------------------------------------------------


@dataclass
class Writer:
    """JSON text with an own style: white space, member order, escapes. Style 0 is the plainest."""

    style: int
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.style)
        self._spaces = 0.0 if self.style % 3 == 0 else 0.3
        self._escapes = 0.0 if self.style % 4 == 0 else 0.1 if self.style % 4 < 3 else 0.7
        self._shuffles = self.style % 2 == 1

    def line(self, value: Any) -> bytes:
        return "".join([self._space(), self._text(value), self._space()]).encode()

    def _space(self) -> str:
        if self._spaces == 0.0 or self._random.random() >= self._spaces:
            return ""
        return self._random.choice((" ", "  ", "\t", " \t ", "\r", "        "))

    def _text(self, value: Any) -> str:
        if isinstance(value, Number):
            return value.lexeme
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "null"}[value]
        if isinstance(value, list):
            return self._wrapped("[", [self._text(item) for item in value], "]")
        members = list(value.items())
        if self._shuffles:
            self._random.shuffle(members)
        pairs = [
            f"{self._string(name)}{self._space()}:{self._space()}{self._text(item)}" for name, item in members
        ]
        return self._wrapped("{", pairs, "}")

    def _wrapped(self, left: str, items: list[str], right: str) -> str:
        spaced = [f"{self._space()}{item}{self._space()}" for item in items]
        return left + (",".join(spaced) if spaced else self._space()) + right

    def _string(self, value: str) -> str:
        if len(value) > 1000 and self._escapes < 0.5:
            return '"' + "".join(map(_must_escape, value)) + '"'
        return '"' + "".join(self._character(character) for character in value) + '"'

    def _character(self, character: str) -> str:
        if self._escapes and self._random.random() < self._escapes:
            return self._free_escape(character)
        return _must_escape(character)

    def _free_escape(self, character: str) -> str:
        if character in SHORT_ESCAPES and self._random.random() < 0.5:
            return SHORT_ESCAPES[character]
        units = character.encode("utf-16-be")
        codes = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
        return "".join("\\u" + (code if self._random.random() < 0.5 else code.upper()) for code in codes)


SHORT_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "/": "\\/",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


def _must_escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character < " ":
        return SHORT_ESCAPES.get(character, f"\\u{ord(character):04x}")
    return character


# --- strategies --------------------------------------------------------------------------------------


def lines_of(tape_bytes: bytes, resource_type: str, count: int) -> list[bytes]:
    """`count` resources of one type as JSON lines, each from its share of the tape."""
    share = len(tape_bytes) // count
    found = []
    for number in range(count):
        tape = Tape(tape_bytes[number * share : (number + 1) * share])
        style = tape.below(65536)
        found.append(Writer(style).line(resource(tape, resource_type)))
    return found


def resource_lines(resource_type: str, count: int = 6, size: int = 220) -> st.SearchStrategy[list[bytes]]:
    """Lists of `count` JSON lines, each made from `size` random bytes."""
    return st.binary(min_size=count * size, max_size=count * size).map(
        lambda tape: lines_of(tape, resource_type, count)
    )
