"""Valid lines with random damage: taken if and only if the oracles say so, and then whole.

What a reader written for speed gets wrong shows here: a byte too far, a state that outlives its line.
"""

from __future__ import annotations

from typing import Any

from conversion import check, convert
from exact_json import Number, parse
from generated_resources import Tape, Writer, lines_of
from hypothesis import given, settings
from hypothesis import strategies as st

TYPES = ("Patient", "Observation", "Questionnaire", "Bundle", "Claim", "PlanDefinition")
LINES = 24
TOKENS = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":"),
    *(b" ", b"\t", b"\r", b"0", b"-", b".", b"e", b"u", b"1"),
    *(b"\n", b"\x00", b"\x1f", b"\x7f", b"\x80", b"\xbf"),
    *(b"\xc0", b"\xc3", b"\xe2", b"\xed", b"\xf0", b"\xf4", b"\xff"),
    *(b"null", b"true", b"false", b"NaN", b"-Infinity", b"1e5"),
    *(b"-0", b"01", b"1.0", b"2147483648", b'""', b"[]"),
    *(b"{}", b"[null]", b'"a":1,', b'"id":"b",', b'"extension":[],'),
    *(b'"_id":{},', b"\\ud800", b"\\udc00", b"\\u00", b"\\"),
    *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"//", b"\\x41"),
    *(b"9" * 40, b"\\u0000", b'":"', b"},{", b"]]"),
)  # fmt: skip


def damaged(line: bytes, tape: Tape) -> bytes:
    found = bytearray(line)
    for _ in range(tape.below(4)):
        at = tape.below(len(found) + 1)
        kind = tape.below(9)
        if kind == 0:
            del found[at : at + 1 + tape.below(3)]
        elif kind == 1:
            found[at:at] = tape.pick(TOKENS)
        elif kind == 2:
            found[at : at + 1] = tape.pick(TOKENS)
        elif kind == 3 and at < len(found):
            found[at] ^= 1 << tape.below(8)
        elif kind == 4 and at < len(found):
            found[at] = tape.below(256)
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            found[at:at] = found[at : at + tape.below(60)]
        elif kind == 7:
            other = tape.below(len(found) + 1)
            found[at:at] = found[other : other + tape.below(40)]
        else:
            del found[at : at + tape.below(60)]
    return bytes(found)


STRANGERS: tuple[Any, ...] = (
    *(Number("1"), Number("1.5"), Number("-0"), Number("2147483648"), "x", "2020", "", True, False, None),
    *(
        [],
        {},
        [None],
        [{}],
        ["x"],
        [[]],
        {"a": Number("1.10")},
        [Number("7")],
        {"id": "y"},
        {"extension": [{}]},
    ),
)


def exchanged(value: Any, tape: Tape) -> Any:
    """The same value with one value in it, at any depth, replaced by something of another kind."""
    if isinstance(value, dict) and value and tape.chance(85):
        name = tape.pick(list(value))
        return {**value, name: exchanged(value[name], tape)}
    if isinstance(value, list) and value and tape.chance(70):
        at = tape.below(len(value))
        return [*value[:at], exchanged(value[at], tape), *value[at + 1 :]]
    return tape.pick(STRANGERS)


def changed(line: bytes, tape: Tape) -> bytes:
    """Damaged in its bytes, or whole JSON with a value of the wrong kind, or both, or neither."""
    if len(line) > 20_000:
        return line
    if tape.chance(40):
        line = Writer(tape.below(256)).line(exchanged(parse(line), tape))
    return damaged(line, tape) if tape.chance(70) else line


def damaged_file(tape: Tape, resource_type: str, share: int) -> bytes:
    """Lines of one type, most of them damaged; damage may bring line ends with it."""
    start = tape.at
    tape.at += LINES * share
    lines = lines_of(tape.data[start : tape.at], resource_type, LINES)
    return b"\n".join(changed(line, tape) for line in lines)


def survives(data: bytes) -> None:
    """The property, for one tape."""
    tape = Tape(data)
    resource_type = tape.pick(TYPES)
    source = damaged_file(tape, resource_type, SHARE)
    size = 1 + tape.below(len(source) + 1)
    blocks = [source[at : at + size] for at in range(0, len(source), size)]
    found = convert(resource_type, {"a.ndjson": blocks}, lanes=1 + tape.below(2))
    check(resource_type, {"a.ndjson": source}, found)


SHARE = 60
TAPE = 1 + LINES * (SHARE + 24)


@settings(max_examples=20)
@given(st.binary(min_size=TAPE, max_size=TAPE))
def test_a_damaged_line_is_taken_only_if_it_is_still_a_resource(data: bytes) -> None:
    survives(data)
