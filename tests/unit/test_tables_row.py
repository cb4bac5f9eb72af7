"""One line to one row: exact numbers, unknown members kept, bad lines named without their content."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.tables.row import BadLine, RowEncoder, tolerant_row

PATIENT = b'{"resourceType":"Patient",'
OBSERVATION = b'{"resourceType":"Observation",'


def row(line: bytes, resource_type: str = "Patient") -> dict[str, Any]:
    encoded: dict[str, Any] = json.loads(RowEncoder(resource_type).encode(line))
    return encoded


def value_of(lexeme: str) -> Any:
    line = OBSERVATION + b'"valueQuantity":{"value":%s}}' % lexeme.encode()
    return row(line, "Observation")["valueQuantity"]["value"]


@pytest.mark.parametrize(
    "lexeme",
    [
        *("1.10", "0.0019263281655490874", "1E2", "1e-7", "5", "-0.0", "-0", "0", "0.0000000000001"),
        *("123456789012345678901234567890", "3.14159265358979323846264338327950288", "1e400", "-1.0E+2"),
    ],
)
def test_a_decimal_keeps_the_digits_of_its_source(lexeme: str) -> None:
    """tables.md rule 4."""
    assert value_of(lexeme) == lexeme


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
def test_any_json_number_keeps_its_spelling_as_a_decimal_and_inside_an_extension(lexeme: str) -> None:
    line = OBSERVATION + b'"valueQuantity":{"value":%s},"extension":[{"valueDecimal":%s}]}' % (
        lexeme.encode(),
        lexeme.encode(),
    )
    made = row(line, "Observation")
    assert made["valueQuantity"]["value"] == lexeme
    assert made["extension"] == f'[{{"valueDecimal":{lexeme}}}]'


def test_members_that_r4_does_not_define_arrive_by_json_pointer() -> None:
    """tables.md rule 9."""
    made = row(PATIENT + b'"name":[{"family":"A","nick":1.10}],"a/b~c":{"x":[1E2,null]},"_name":null}')
    assert made["name"] == [{"family": "A"}]
    assert made["_unmapped"] == '{"/name/0/nick":1.10,"/a~1b~0c":{"x":[1E2,null]},"/_name":null}'


def test_a_null_member_is_kept_as_unmapped_and_nulls_in_aligned_arrays_stay() -> None:
    made = row(PATIENT + b'"birthDate":null,"name":[{"given":["a",null],"_given":[null,{"id":"x"}]}]}')
    assert made["_unmapped"] == '{"/birthDate":null}'
    assert made["name"] == [{"given": ["a", None], "_given": '[null,{"id":"x"}]'}]


def test_extensions_contained_and_primitive_extensions_are_json_text() -> None:
    made = row(
        PATIENT + b'"extension":[{"url":"u","valueInteger":1}],"contained":[{"a":1.0}],"_gender":{"id":"g"}}'
    )
    assert made["extension"] == '[{"url":"u","valueInteger":1}]'
    assert made["contained"] == '[{"a":1.0}]'
    assert made["_gender"] == '{"id":"g"}'


def test_recursion_beyond_three_levels_is_json_text() -> None:
    """tables.md rule 6."""
    item: dict[str, Any] = {"linkId": "5"}
    for level in (4, 3, 2, 1):
        item = {"linkId": str(level), "type": "group", "item": [item]}
    made = row(json.dumps({"resourceType": "Questionnaire", "item": [item]}).encode(), "Questionnaire")
    third = made["item"][0]["item"][0]["item"][0]
    assert third["linkId"] == "3"
    assert json.loads(third["item"]) == [{"linkId": "4", "type": "group", "item": [{"linkId": "5"}]}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"null", "null in place of a resource"),
        (b"[]", "an array in place of a resource"),
        (b"{}", "resourceType is missing or unknown, not Patient at resourceType"),
        (b'{"resourceType":"Observation"}', "resourceType is Observation, not Patient at resourceType"),
        (b'{"resourceType":"Secret"}', "resourceType is missing or unknown, not Patient at resourceType"),
        (PATIENT + b'"id":"x"', "invalid JSON (expecting ',' delimiter) in character 35 of the line"),
        (PATIENT + b'"id":"x"} {}', "invalid JSON (extra data) in character 37 of the line"),
        (PATIENT + b'"id":"\xff"}', "invalid UTF-8 in byte 33 of the line"),
        (PATIENT + b'"id":"\\ud800"}', "a lone surrogate in a string"),
        (PATIENT + b'"x":"\\udc00"}', "a lone surrogate in a string"),
        (PATIENT + b'"x":NaN}', "NaN and Infinity are no JSON"),
        (PATIENT + b'"id":"a","id":"b"}', "a key occurs twice in one object"),
        (PATIENT + b'"extension":[{"url":"a","url":"b"}]}', "a key occurs twice in one object"),
        (PATIENT + b'"id":"a","x":"\\u003a","id":"b"}', "a key occurs twice in one object"),
        (PATIENT + b'"id":5}', "a number in place of a string at id"),
        (PATIENT + b'"active":"true"}', "a string in place of true or false at active"),
        (PATIENT + b'"name":{}}', "an object in place of an array at name"),
        (PATIENT + b'"name":[null]}', "null in place of an object at name[0]"),
        (
            PATIENT + b'"name":[{},{"period":{"start":[]}}]}',
            "an array in place of a string at name[1].period.start",
        ),
        (
            PATIENT + b'"multipleBirthInteger":2147483648}',
            "a number that is no 32-bit integer in place of an integer at multipleBirthInteger",
        ),
        (
            PATIENT + b'"multipleBirthInteger":1.0}',
            "a number that is no 32-bit integer in place of an integer at multipleBirthInteger",
        ),
        (PATIENT + b'"extension":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_bad_line_is_refused_with_its_reason_and_path(line: bytes, reason: str) -> None:
    with pytest.raises(BadLine) as bad:
        RowEncoder("Patient").encode(line)
    assert str(bad.value) == reason


def test_a_string_in_place_of_a_decimal_is_refused() -> None:
    line = OBSERVATION + b'"component":[{"valueQuantity":{"value":"5"}}]}'
    with pytest.raises(
        BadLine, match=r"^a string in place of a number at component\[0\]\.valueQuantity\.value$"
    ):
        RowEncoder("Observation").encode(line)


@given(st.text(min_size=1), st.text())
def test_no_reason_ever_repeats_content(name: str, secret: str) -> None:
    """A message may be pasted into a ticket."""
    marked = "SECRET" + secret
    for broken in (
        {"resourceType": "Patient", "id": {marked: name}},
        {"resourceType": marked},
        {"resourceType": "Patient", "name": [{"given": marked}]},
    ):
        with pytest.raises(BadLine) as bad:
            RowEncoder("Patient").encode(json.dumps(broken).encode())
        assert "SECRET" not in str(bad.value)
    with pytest.raises(BadLine) as bad:
        RowEncoder("Patient").encode(json.dumps({"id": marked}).encode()[:-1])
    assert "SECRET" not in str(bad.value)


@pytest.mark.parametrize(
    "line",
    [
        PATIENT + b'"id":"a","name":[{"given":["x",null],"period":{"start":"2020"}}],"active":true}',
        PATIENT + b'"extension":[{"url":"u","valueDecimal":1.10}],"multipleBirthInteger":2}',
        PATIENT + b'"id":"\\u0000\\ud83d\\ude00\\"","photo":[{"size":1}],"link":[],"text":{}}  ',
        b' { "resourceType" : "Patient" , "id" : "a:b" } \r',
    ],
)
def test_the_fast_and_the_tolerant_way_give_the_same_row(line: bytes) -> None:
    assert row(line) == json.loads(msgspec.json.encode(tolerant_row(line, "Patient")))


def test_an_unknown_resource_type_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ConfigError, match="Patiant"):
        RowEncoder("Patiant")
