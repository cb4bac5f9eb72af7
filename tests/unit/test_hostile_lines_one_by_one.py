"""A bad line costs that line only; whatever can be kept is kept (issue 3, point 4; tables.md 1.9 and 4)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from conversion import BOM, Conversion, check, convert, physical_lines
from exact_json import NotJson, parse
from hostile_lines import (
    BAD_ESCAPES,
    BAD_JSON,
    BAD_NUMBERS,
    BAD_SURROGATES,
    BAD_UTF8,
    DUPLICATES,
    GOOD,
    HEAD,
    MISFITS,
    PLAIN,
    patient,
)

from pipeline.errors import VerificationFailed
from pipeline.tables.convert import Converter, FileCounts, Refused

FILE = "0001.ndjson"


def taken(data: bytes) -> Conversion:
    found = convert("Patient", {FILE: [data]})
    check("Patient", {FILE: data}, found)
    return found


def test_the_oracle_refuses_every_bad_line_and_takes_every_good_one() -> None:
    """Python's strict `json` says the same of these lists as their author."""
    for name, line in {**BAD_JSON, **DUPLICATES}.items():
        with pytest.raises(NotJson):
            print(name, parse(line))
    for line, _path in MISFITS.values():
        parse(line)
    for line in GOOD.values():
        parse(line)
    assert (len(BAD_JSON), len(DUPLICATES), len(MISFITS), len(GOOD)) == (661, 27, 69, 35)


def test_every_kind_of_bad_line_is_refused_once_and_costs_nothing_else() -> None:
    lines = [*BAD_JSON.values(), *DUPLICATES.values(), *(line for line, _ in MISFITS.values())]
    good = list(GOOD.values())
    file = [part for at, line in enumerate(lines) for part in (line, good[at % len(good)])]
    found = taken(b"\n".join([PLAIN, *file, PLAIN]) + b"\n")
    assert len(found.refused) == len(lines)
    assert len(found.rows) == len(lines) + 2
    assert found.counts == {FILE: FileCounts(2 * len(lines) + 2, len(lines) + 2, len(lines))}
    for bad, _line in found.refused.values():
        assert "SECRET" not in bad.reason + bad.path
        assert bad.source_file == FILE


def refused(lines: Iterable[bytes]) -> list[Refused]:
    """What is said of each of these bad lines, with a good one between every two."""
    expected = list(lines)
    data = b"".join(line + b"\n" + PLAIN + b"\n" for line in expected)
    found = taken(data).refused.values()
    assert [(bad.line, line) for bad, line in found] == [
        (2 * at + 1, line) for at, line in enumerate(expected)
    ]
    assert all(bad.sha256 == hashlib.sha256(line).hexdigest() for bad, line in found)
    return [bad for bad, _ in found]


def test_a_misfit_is_refused_by_its_path() -> None:
    found = refused(line for line, _ in MISFITS.values())
    paths = dict(zip(MISFITS, (bad.path for bad in found), strict=True))
    assert paths == {name: path for name, (_, path) in MISFITS.items()}
    strays = dict(zip(MISFITS, (bad.stray for bad in found), strict=True))
    assert {name: stray for name, stray in strays.items() if stray} == {
        "another resource type": "Observation"
    }


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([patient(b'"id":"' + bad + b'"') for bad in BAD_UTF8.values()], r"UTF-8"),
        ([patient(b'"id":"' + bad + b'"') for bad in BAD_SURROGATES.values()], r"surrogate"),
        ([patient(b'"id":"' + bad + b'"') for bad in BAD_ESCAPES.values()], r"JSON"),
        ([patient(b'"multipleBirthInteger":' + bad) for bad in BAD_NUMBERS.values()], r"JSON"),
        ([line for name, line in DUPLICATES.items() if name != "resourceType twice, other"], r"twice"),
        ([PLAIN[:-5], b"{", b'{"a', patient(b'"name":[{')[:-1]], r"the line ends in the middle"),
        ([PLAIN + PLAIN, PLAIN + b",", PLAIN + b"\0", PLAIN + b" null"], r"more behind the resource's end"),
        ([b"\0", BOM + PLAIN, b"# x", b"<a/>"], r"JSON"),
        ([b"null", b"[]", b"1", b'"x"', b"true"], r"in place of a resource"),
        (
            [b'{"id":"x"}', b'{"resourceType":"Observation"}', b'{"resourceType":"SECRET"}'],
            r"resourceType is",
        ),
        ([patient(b'"multipleBirthInteger":2147483648')], r"32-bit integer"),
        ([patient(b'"id":5')], r"a number in place of a string"),
        ([patient(b'"name":{}')], r"an object in place of an array"),
        ([patient(b'"active":"x"')], r"a string in place of true or false"),
    ],
)
def test_a_reason_says_what_is_wrong(lines: list[bytes], reason: str) -> None:
    reasons = [bad.reason for bad in refused(lines)]
    assert [found for found in reasons if not re.search(reason, found)] == []


def test_strange_but_good_lines_arrive() -> None:
    found = taken(b"\n".join(GOOD.values()))
    assert (found.refused, len(found.rows)) == ({}, len(GOOD))


def test_every_prefix_of_a_line_is_refused() -> None:
    line = patient(
        b'"id":"\\u00e9\xc3\xa9","active":true,"name":[{"given":["a",null],"_given":[null,{"id":"b"}]}],'
        b'"multipleBirthInteger":-12,"extension":[{"valueDecimal":1.5e3},{"extension":[{"extension":[{}]}]}],'
        b'"contained":[{"a":[1]}],"unknown":{"a":[false]}'
    )
    prefixes = [line[:length] for length in range(1, len(line))]
    found = taken(b"\n".join([*prefixes, line]))
    assert (len(found.refused), len(found.rows)) == (len(prefixes), 1)


def test_every_suffix_of_a_line_is_refused_too() -> None:
    line = GOOD["a choice of every kind"]
    found = taken(b"\n".join(line[start:] for start in range(len(line))))
    assert len(found.rows) == 1


def test_a_byte_order_mark_is_skipped_at_the_very_start_only() -> None:
    found = taken(BOM + PLAIN + b"\n" + PLAIN)
    assert (len(found.rows), found.refused) == (2, {})
    assert list(taken(BOM + BOM + PLAIN + b"\n" + PLAIN).refused) == [(FILE, 1)]
    assert list(taken(PLAIN + b"\n" + BOM + PLAIN).refused) == [(FILE, 2)]
    assert convert("Patient", {"a": [BOM[:1], BOM[1:], PLAIN], "b": [BOM + PLAIN]}).refused == {}
    assert convert("Patient", {"a": [BOM]}).counts == {"a": FileCounts(0, 0, 0)}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\r\n  \r\n\t\n", b" \n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_blank_lines_are_no_lines(end: bytes, last: bool) -> None:
    data = end.join([PLAIN, b"null", PLAIN]) + (end if last else b"")
    found = taken(data)
    step = end.count(b"\n")
    assert list(found.rows) == [(FILE, 1), (FILE, 1 + 2 * step)]
    [(bad, line)] = found.refused.values()
    assert (bad.line, bad.sha256) == (1 + step, hashlib.sha256(line).hexdigest())
    assert found.counts == {FILE: FileCounts(3, 2, 1)}


def test_the_hash_of_a_refused_line_leaves_out_its_end() -> None:
    found = convert("Patient", {FILE: [b"[1]\n[1]\r\n[1]"]})
    hashes = {bad.sha256 for bad, _ in found.refused.values()}
    assert hashes == {hashlib.sha256(b"[1]").hexdigest()}
    assert {line for _, line in found.refused.values()} == {b"[1]"}


@pytest.mark.parametrize("blocks", [[], [b""], [b"\n"], [b"", b"\n\n", b" \r\n", b"\t"]])
def test_a_file_of_nothing_is_no_rows_and_no_parts(blocks: list[bytes]) -> None:
    found = convert("Patient", {FILE: blocks})
    assert (found.rows, found.refused, found.part_rows) == ({}, {}, [])
    assert found.counts == {FILE: FileCounts(0, 0, 0)}


def test_a_file_of_bad_lines_only_gives_no_parts() -> None:
    found = taken(b"null\n{\n" * 20)
    assert (found.part_rows, found.counts) == ([], {FILE: FileCounts(40, 0, 40)})


LONG = 5_000_000
MANY = 1_000_000
"""Bytes of a line of many items: they cost the oracle more than long texts."""


@pytest.mark.parametrize(
    "line",
    [
        patient(b'"text":{"div":"%s"}' % (b"y" * LONG)),
        patient(b'"text":{"div":"%s"}' % (b'\\"\xc3\xa9\\u00e9' * (LONG // 10))),
        patient(b'"contained":[{"x":"%s"}]' % (b"z" * LONG)),
        patient(b'"unknown":["%s",1.10]' % (b"z" * LONG)),
        patient(b'"name":[' + b",".join([b'{"given":["abcdefgh"],"use":"usual"}'] * (MANY // 36)) + b"]"),
        patient(b'"name":[{"given":[' + b",".join([b'"abcdefgh"'] * (MANY // 11)) + b"]}]"),
    ],
    ids=["text", "escapes", "contained", "unknown", "items", "strings"],
)
def test_a_line_of_megabytes_arrives_and_a_bad_one_is_refused(line: bytes) -> None:
    """tables.md 4: lines of 937 kB are real."""
    assert len(line) > 900_000
    data = b"\n".join([PLAIN, line, line[:-2], PLAIN])
    found = convert("Patient", {FILE: [data]})
    check("Patient", {FILE: data}, found, rows=False)
    assert list(found.refused) == [(FILE, 3)]
    assert len(found.rows) == 3


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"item":[', b'[{"extension":['])
@pytest.mark.parametrize("place", [b'"unknown":', b'"contained":', b'"name":', b'"extension":'])
def test_ten_thousand_brackets_cost_that_line_only(opening: bytes, place: bytes) -> None:
    closing = b"".join(b"]" if c == b"["[0] else b"}" for c in reversed(opening) if c in b"[{")
    deep = patient(place + opening * 10_000 + b"1" + closing * 10_000)
    unclosed = HEAD + place + opening * 10_000
    found = convert("Patient", {FILE: [b"\n".join([PLAIN, deep, PLAIN, unclosed, PLAIN])]})
    assert list(found.rows) == [(FILE, 1), (FILE, 3), (FILE, 5)]
    assert set(found.refused) == {(FILE, 2), (FILE, 4)}


def test_five_hundred_levels_pass_and_six_hundred_do_not() -> None:
    """Deeper than any resource; the limit spares every reader behind us its own."""
    deep = {
        levels: [patient(place + b"[" * levels + b"]" * levels) for place in (b'"unknown":', b'"contained":')]
        for levels in (500, 600)
    }
    found = taken(b"\n".join(deep[500]))
    assert (found.refused, len(found.rows)) == ({}, 2)
    assert {
        bad.reason for bad, _ in convert("Patient", {FILE: [b"\n".join(deep[600])]}).refused.values()
    } == {"nested deeper than 512 levels"}


def test_without_someone_to_refuse_to_the_first_bad_line_stops_everything(tmp_path: Path) -> None:
    lines = b"\n".join([PLAIN] * 50 + [patient(b'"gender":["SECRET"]')] + [PLAIN] * 50)
    with (
        pytest.raises(VerificationFailed, match=r"0001\.ndjson line 51 .* at gender") as failed,
        Converter("Patient", None, "x", tmp_path, max_part_rows=7) as converter,
    ):
        converter.add([lines], FILE)
        converter.finish()
    assert "SECRET" not in str(failed.value)
    assert failed.value.__suppress_context__ or failed.value.__context__ is None
    assert list(tmp_path.iterdir()) == []


def test_strays_name_their_type_whatever_else_they_hold() -> None:
    """The caller hands them to that type's Converter, which may refuse them in its turn."""
    strays = {
        b'{"resourceType":"Observation"}': "Observation",
        b'{"id":"a","status":[{"x":1}],"resourceType" : "Encounter"}': "Encounter",
        b'{"resourceT\\u0079pe":"Obser\\u0076ation"}': "Observation",
        b'{"contained":[{"resourceType":"Patient"}],"resourceType":"Bundle"}': "Bundle",
        b'{"resourceType":"observation"}': None,
        b'{"resourceType":"DomainResource"}': None,
        b'{"resourceType":"Observation"': None,
        b'{"resourceType":"Observation","a":NaN}': None,
        b'{"resourceType":"Observation","a":1,"a":2}': "Observation",
        b'{"resourceType":"Observation","resourceType":"Patient"}': None,
        b'{"contained":[{"resourceType":"Observation"}]}': None,
        b'{"resourceType":["Observation"]}': None,
    }
    found = taken(b"\n".join(strays))
    assert {line: bad.stray for bad, line in found.refused.values()} == strays


def test_a_stray_keeps_its_file_and_line_in_the_table_of_its_type(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    heard: list[tuple[int, str | None]] = []
    with Converter(
        "Observation", None, "x", tmp_path, refuse=lambda bad, line: heard.append((bad.line, bad.stray))
    ) as converter:
        converter.add([b'{"resourceType":"Observation","id":"own"}\n'], "own.ndjson")
        converter.add_line(b'{"resourceType":"Observation","id":"stray"}', "other.ndjson", 17)
        converter.add_line(b'{"resourceType":"Observation","id":5}', "other.ndjson", 18)
        [part] = converter.finish()
    rows = pq.read_table(part.path, columns=["id", "_source_file", "_source_line"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [("own", "own.ndjson", 1), ("stray", "other.ndjson", 17)]
    assert heard == [(18, None)]
    assert converter.files["other.ndjson"] == FileCounts(2, 1, 1)


def test_physical_lines_of_the_oracle_are_counted_from_one_with_blanks() -> None:
    assert physical_lines(BOM + b"a\n\n \r\nb\r\n") == {1: b"a", 4: b"b\r"}
