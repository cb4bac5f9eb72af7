"""From wire bytes to lines: protocol facts 29, 33, 34 and the losses of section 6."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bulkdata.decoding import Decoder, decoded, decoded_blocks, lines, numbered_lines
from pipeline.bulkdata.downloads import Downloaded, verify
from pipeline.bulkdata.inspection import ODD, UNTYPED, LineInspector
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.errors import VerificationFailed

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(each, len(data)) for each in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def inspect(*blocks: bytes, longest: int = 1 << 20) -> LineInspector:
    inspector = LineInspector(longest)
    for block in blocks:
        inspector.feed(block)
    inspector.close()
    return inspector


def decode(chunks: list[bytes]) -> bytes:
    decoder = Decoder()
    parts = [block for chunk in chunks for block in decoder.feed(chunk)]
    return b"".join([*parts, *decoder.close()])


texts = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
cuts = st.lists(st.integers(min_value=0, max_value=400), max_size=12)


@STEADY
@given(st.lists(texts, max_size=12), cuts, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_lines_are_whole_wherever_the_blocks_are_cut(
    values: list[str], places: list[int], end: str, final: bool, bom: bool
) -> None:
    """Section 6: UTF-8 split at chunk edges; fact 34: CRLF, a BOM, no final newline."""
    resources = [json.dumps({"resourceType": "Patient", "x": value}, ensure_ascii=False) for value in values]
    body = end.join(resources) + (end if final else "")
    data = (b"\xef\xbb\xbf" if bom else b"") + body.encode()
    blocks = chopped(data, places)
    assert [line.decode() for line in lines(blocks)] == resources
    seen = inspect(*blocks)
    assert (seen.lines, seen.malformed, seen.cut) == (len(values), 0, False)
    assert seen.types_seen == ({"Patient": len(values)} if values else {})


@STEADY
@given(st.binary(max_size=300), cuts, st.integers(min_value=1, max_value=3))
def test_gzip_is_decoded_wherever_it_is_cut(data: bytes, places: list[int], members: int) -> None:
    """Protocol fact 29; several members, as `cat a.gz b.gz` makes them."""
    data = b"{" + data
    whole = b"".join(gzip.compress(data) for _ in range(members))
    assert decode(chopped(whole, places)) == data * members
    assert decode([whole + b"\0" * 7]) == data * members


def test_a_gzip_file_sent_with_gzip_encoding_is_decoded_twice() -> None:
    """Protocol fact 29: gzip files, with or without Content-Encoding on top."""
    assert decode([gzip.compress(gzip.compress(b'{"a":1}\n'))]) == b'{"a":1}\n'


def test_plain_bytes_pass_as_they_are() -> None:
    for data in (b"", b"{", b'{"a":1}\n' * 1000):
        assert decode([data[:1], data[1:]]) == data


@STEADY
@given(st.integers(min_value=0, max_value=10_000))
def test_gzip_that_is_cut_short_is_noticed(length: int) -> None:
    """Section 6: a file cut short accepted as complete."""
    whole = gzip.compress(bytes(range(256)) * 40)
    with pytest.raises(VerificationFailed, match="cut short"):
        decode([whole[: max(2, min(length, len(whole) - 1))]])


def test_damaged_gzip_is_noticed() -> None:
    whole = bytearray(gzip.compress(b"x" * 1000))
    whole[-6] ^= 0xFF
    with pytest.raises(VerificationFailed, match="damaged"):
        decode([bytes(whole)])


def test_a_gzip_bomb_comes_in_small_blocks() -> None:
    bomb = zlib.compressobj(wbits=31)
    data = b"".join(bomb.compress(b"\0" * (1 << 20)) for _ in range(64)) + bomb.flush()
    assert len(data) < 100_000
    assert max(len(block) for block in Decoder().feed(data)) <= 1 << 18


def test_stored_bytes_are_read_back_from_the_middle_of_a_pack(tmp_path: Path) -> None:
    """Design: small files are packed; each is found again by offset and length."""
    one, two = gzip.compress(b'{"a":1}\n'), b'{"b":2}\n{"b":3}\n'
    pack = tmp_path / "pack"
    pack.write_bytes(b"junk" + one + two)
    assert b"".join(decoded_blocks(pack, "gzip", 4, len(one))) == b'{"a":1}\n'
    assert list(lines(decoded_blocks(pack, "identity", 4 + len(one), len(two)))) == [b'{"b":2}', b'{"b":3}']
    with pytest.raises(VerificationFailed, match="shorter"):
        list(decoded_blocks(pack, "identity", 4 + len(one), len(two) + 1))
    with pytest.raises(VerificationFailed, match="not gzip"):
        list(decoded_blocks(pack, "gzip", 0, 4))
    with pytest.raises(VerificationFailed, match="cut short"):
        list(decoded([one[:-3]], "gzip"))


def test_line_numbers_are_those_of_an_editor() -> None:
    assert list(numbered_lines([b'\xef\xbb\xbf\n{"a":1}\r\n', b" \n{}"])) == [(2, b'{"a":1}'), (4, b"{}")]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"<!DOCTYPE html><html><body>Sign in", "HTML"),
        (b"\xef\xbb\xbf  <html>", "HTML"),
        (b"\n\n<?xml version='1.0'?><Bundle/>", "XML"),
        (b'[{"resourceType":"Patient"}]', "array"),
        (b"Not found", "not JSON"),
        (b"null\n7\n", "without any object"),
        (b'[\n{"resource":{"resourceType":"Patient"}},\n{"id":"1"}\n]\n', "array"),
        (b'{"resourceType":"Bundle","entry":[\n{"resource":{"resourceType":"Patient"}}\n]}\n', "first line"),
        (b"PK\x03\x04" + b"x" * 200, "not JSON"),
        (b'{\n  "resourceType": "Bundle"\n}\n', "first line"),
        (b'{"resourceType":"Patient",', "first line"),
    ],
)
def test_what_is_no_ndjson_is_refused_at_its_first_bytes(content: bytes, hint: str) -> None:
    """Protocol fact 34: an HTML login page (seen); section 6: an HTML page stored as data."""
    with pytest.raises(VerificationFailed, match=hint):
        inspect(*[content[i : i + 7] for i in range(0, len(content), 7)])


@pytest.mark.parametrize(
    "first",
    [
        b"null",
        b"[]",
        b'[{"resourceType":"Patient"}]',
        b'{"resourceType":"Patient"}{"resourceType":"Patient"}',
        b'{"resourceType":"Patient","x":"\xff"}',
        b'{"resourceType":"Pati',
        b'tient","id":"1"}',
        b"[" * 5000,
        b"x" * 100,
    ],
)
def test_a_bad_first_line_is_a_bad_line_when_resources_follow(first: bytes) -> None:
    good = b'{"resourceType":"Patient"}\n'
    data = first + b"\n" + good * 3
    for size in (1, 7, 1 << 20):
        seen = inspect(*[data[i : i + size] for i in range(0, len(data), size)])
        assert (seen.lines, seen.malformed, seen.malformed_lines) == (4, 1, [1])
        assert seen.types_seen == {"Patient": 3}


def test_a_long_document_is_given_up_before_its_end() -> None:
    inspector = LineInspector()
    inspector.feed(b"{\n")
    with pytest.raises(VerificationFailed, match="first line"):
        for _ in range(20):
            inspector.feed(b'  "name": {"family": "x"},\n' * 1000)


def test_a_page_without_line_ends_is_refused_before_it_is_all_there() -> None:
    inspector = LineInspector()
    with pytest.raises(VerificationFailed, match="HTML"):
        inspector.feed(b"<html>" + b"x" * 100)


def test_a_line_without_end_does_not_eat_the_memory() -> None:
    inspector = LineInspector(longest_line=1000)
    with pytest.raises(VerificationFailed, match="longer than 1000"):
        for _ in range(100):
            inspector.feed(b'{"a":"' + b"x" * 94)


def test_bad_lines_are_counted_and_named_by_number() -> None:
    good = b'{"resourceType":"Patient"}\n'
    bad = [
        b"{}{}",
        b'{"a":1,}',
        b"7",
        b'{"resourceType":7}',
        b'{"a":"\xff"}',
        b'{"a":' + b"[" * 9999 + b"}",
        b"{",
    ]
    seen = inspect(good + b"".join(line + b"\n" for line in bad) + b"\n" + good)
    assert (seen.lines, seen.malformed, seen.blank) == (2 + len(bad), len(bad), 1)
    assert seen.malformed_lines == [2, 3, 4, 5, 6, 7, 8]
    assert seen.types_seen == {"Patient": 2}


def test_types_are_counted_without_letting_content_through() -> None:
    seen = inspect(b'{"resourceType":"Patient"}\n{"id":"1"}\n{"resourceType":"Jane Doe, 1970-01-01"}\n')
    assert seen.types_seen == {"Patient": 1, UNTYPED: 1, ODD: 1}


def test_a_type_that_fhir_does_not_have_is_not_repeated() -> None:
    """It could be a patient's name; types of R5 are told, though there is no table for them."""
    names = ["JaneDoe", "Patient", "SubscriptionTopic", "Miller"]
    seen = inspect("".join(f'{{"resourceType":"{name}"}}\n' for name in names).encode())
    assert seen.types_seen == {"Patient": 1, "SubscriptionTopic": 1, ODD: 2}


def test_half_a_last_line_is_a_file_cut_short() -> None:
    """Section 6: half a line left under the final name."""
    good = b'{"resourceType":"Patient"}\n'
    assert inspect(good, b'{"resourceType":"Pat').cut
    assert not inspect(good, b'{"resourceType":"Patient"}').cut
    assert not inspect(good, b'{"resourceType":"Pat\n').cut


def downloaded(lines_: int, types: dict[str, int], malformed: tuple[int, ...] = ()) -> Downloaded:
    return Downloaded(Path("f"), "identity", 1, 1, "0", lines_, True, types, 0, len(malformed), malformed)


def test_a_file_as_promised_gives_no_warning() -> None:
    file = ManifestFile("output", 0, "Patient", "https://s/1", 2)
    assert verify(downloaded(2, {"Patient": 2}), file) == []
    assert verify(downloaded(0, {}), ManifestFile("output", 0, "Patient", "https://s/1", 0)) == []


@pytest.mark.parametrize(("count", "found"), [(0, 1), (3, 2), (2, 0)])
def test_a_wrong_count_fails_or_warns_as_configured(count: int, found: int) -> None:
    """Protocol fact 33: verify against count, 0 too; LinuxForHealth counts wrongly."""
    file = ManifestFile("output", 4, "Patient", "https://s/1?sig=SECRET", count)
    got = downloaded(found, {"Patient": found} if found else {})
    with pytest.raises(VerificationFailed) as raised:
        verify(got, file)
    assert f"promises {count} lines, {found} arrived" in str(raised.value)
    assert "output[4] (Patient)" in str(raised.value)
    assert "SECRET" not in str(raised.value)
    assert len(verify(got, file, on_count_mismatch="warn")) == 1


def test_another_type_than_declared_is_told_and_costs_nothing() -> None:
    """Protocol fact 34: a file declared as one type may hold another (seen)."""
    got = downloaded(3, {"Patient": 1, "Device": 2})
    (warning,) = verify(got, ManifestFile("output", 0, "Patient", "https://s/1"))
    assert warning == "output[0] (Patient) holds 2 lines of type Device"
    (warning,) = verify(got, ManifestFile("output", 0, None, "https://s/1"))
    assert warning == "output[0] holds 2 lines of type Device, 1 lines of type Patient"
    assert len(verify(got, ManifestFile("error", 0, "OperationOutcome", "https://s/1"))) == 1
    with pytest.raises(VerificationFailed, match="2 lines of type Device"):
        verify(got, ManifestFile("deleted", 0, "Bundle", "https://s/1"))


def test_bad_lines_are_told_by_number_and_only_cost_a_file_that_must_be_understood_whole() -> None:
    """Facts/tables.md rule 9; a deletion or an error of the server that is passed over would be lost."""
    got = downloaded(3, {"Patient": 2}, (2,))
    (warning,) = verify(got, ManifestFile("output", 0, "Patient", "https://s/1", 3))
    assert warning == "output[0] (Patient): 1 of 3 lines are no JSON object (line 2)"
    for kind in ("deleted", "error"):
        with pytest.raises(VerificationFailed, match=r"1 of 3 lines.*line 2"):
            verify(got, ManifestFile(kind, 0, "Patient", "https://s/1", 3))  # type: ignore[arg-type]


def test_a_bad_line_is_a_line_for_the_count() -> None:
    """Protocol fact 33."""
    got = downloaded(3, {"Patient": 2}, (2,))
    with pytest.raises(VerificationFailed, match="promises 2 lines, 3 arrived"):
        verify(got, ManifestFile("output", 0, "Patient", "https://s/1", 2))
