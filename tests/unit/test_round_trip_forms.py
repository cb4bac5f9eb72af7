"""The form of the tables as DuckDB sees it, rule by rule, with every expected value written by hand.

(facts/tables.md 1; issue 3, point 3.) What is generated cannot show that a rule was misunderstood twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipeline.tables.convert import Converter

EXPORT = "20260101T020000Z"


class Table:
    """One converted table, read by DuckDB."""

    def __init__(self, folder: Path, resource_type: str, *lines: str) -> None:
        with Converter(resource_type, None, EXPORT, folder) as converter:
            converter.add([line.encode() + b"\n" for line in lines], "0001.ndjson")
            [part] = converter.finish()
        self.path = part.path
        self.connection = duckdb.connect()
        self.connection.execute("set timezone = 'UTC'")

    def all(self, expression: str) -> list[Any]:
        """A SQL expression over the rows, in the order of the lines."""
        query = f"select {expression} from '{self.path}' order by _source_line"
        return [row[0] for row in self.connection.execute(query).fetchall()]

    def one(self, expression: str) -> Any:
        [value] = self.all(expression)
        return value

    def type(self, expression: str) -> str:
        return str(self.one(f"typeof({expression})"))


def test_primitives_have_their_types(tmp_path: Path) -> None:
    table = Table(
        tmp_path,
        "Patient",
        '{"resourceType":"Patient","id":"a","active":false,"birthDate":"2020-05",'
        '"multipleBirthInteger":-2147483648,'
        '"photo":[{"size":2147483647,"data":"AAECAw==","url":"http://x"}],"text":{"div":"<div/>"}}',
    )
    types = {
        "resourceType": "VARCHAR",
        "id": "VARCHAR",
        "active": "BOOLEAN",
        "birthDate": "VARCHAR",
        "__birthDate_start": "TIMESTAMP WITH TIME ZONE",
        "__birthDate_end": "TIMESTAMP WITH TIME ZONE",
        "multipleBirthInteger": "INTEGER",
        "photo[1].size": "INTEGER",
        "photo[1].data": "VARCHAR",
        "text.div": "VARCHAR",
        "_export_id": "VARCHAR",
        "_source_file": "VARCHAR",
        "_source_line": "BIGINT",
    }
    assert {name: table.type(name) for name in types} == types
    assert table.one("multipleBirthInteger") == -2147483648
    assert table.one("photo[1].size") == 2147483647
    assert table.one("active") is False
    assert table.one("(_export_id, _source_file, _source_line)") == (EXPORT, "0001.ndjson", 1)


DECIMALS = {
    "1.10": 1.1,
    "0.0019263281655490874": 0.0019263281655490874,
    "123456789012345678901234567890.5": 1.2345678901234568e29,
    "-0.0": -0.0,
    "-0": -0.0,
    "0": 0.0,
    "1E2": 100.0,
    "1e-7": 1e-07,
    "9007199254740993": 9007199254740992.0,
    "1.00000000000000011102230246251566": 1.0000000000000002,
}


def test_decimals_keep_their_digits_and_have_a_number_beside_them(tmp_path: Path) -> None:
    table = Table(
        tmp_path,
        "Observation",
        *(f'{{"resourceType":"Observation","valueQuantity":{{"value":{digits}}}}}' for digits in DECIMALS),
        '{"resourceType":"Observation","valueQuantity":{"unit":"kg"}}',
    )
    assert set(table.all("typeof(valueQuantity.value)")) == {"VARCHAR"}
    assert set(table.all("typeof(valueQuantity.__value_numeric)")) == {"DOUBLE"}
    assert table.all("valueQuantity.value") == [*DECIMALS, None]
    assert [repr(number) for number in table.all("valueQuantity.__value_numeric")] == [
        *(repr(number) for number in DECIMALS.values()),
        "None",
    ]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


DATES = {
    "2020": ("2020-01-01 00:00:00", "2020-12-31 23:59:59.999999"),
    "2020-02": ("2020-02-01 00:00:00", "2020-02-29 23:59:59.999999"),
    "2021-02": ("2021-02-01 00:00:00", "2021-02-28 23:59:59.999999"),
    "1900-02": ("1900-02-01 00:00:00", "1900-02-28 23:59:59.999999"),
    "2000-12-31": ("2000-12-31 00:00:00", "2000-12-31 23:59:59.999999"),
    "0001": ("0001-01-01 00:00:00", "0001-12-31 23:59:59.999999"),
    "9999-12-31": ("9999-12-31 00:00:00", "9999-12-31 23:59:59.999999"),
    "2020-03-01T00:30:00+02:00": ("2020-02-29 22:30:00", "2020-02-29 22:30:00.999999"),
    "2019-12-31T23:30:15.25-05:30": ("2020-01-01 05:00:15.250000", "2020-01-01 05:00:15.259999"),
    "1969-12-31T23:59:59.999999Z": ("1969-12-31 23:59:59.999999", "1969-12-31 23:59:59.999999"),
    "2020-01-01T10:00:00.123456789Z": ("2020-01-01 10:00:00.123456", "2020-01-01 10:00:00.123456"),
    "2020-01-01T10:00:00": ("2020-01-01 10:00:00", "2020-01-01 10:00:00.999999"),
}
NO_DATES = (
    *("", "soon", "2020-13", "2020-02-30", "2021-02-29", "0000", "2020-1-1", "20200101"),
    *("2020-01-01T24:00:00Z", "2020-01-01 10:00:00Z", "2020-01-01T10:00:00+0200"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("resource_type", "element"),
    [("Patient", "deceasedDateTime"), ("Patient", "birthDate"), ("Observation", "issued")],
)
def test_dates_have_the_instants_that_they_can_mean(tmp_path: Path, resource_type: str, element: str) -> None:
    texts = [*DATES, *NO_DATES]
    table = Table(
        tmp_path,
        resource_type,
        *(f'{{"resourceType":"{resource_type}","{element}":"{text}"}}' for text in texts),
        f'{{"resourceType":"{resource_type}"}}',
    )
    nothing = [None] * (len(NO_DATES) + 1)
    assert table.all(element) == [*texts, None]
    assert table.all(f"__{element}_start") == [*(utc(start) for start, _ in DATES.values()), *nothing]
    assert table.all(f"__{element}_end") == [*(utc(end) for _, end in DATES.values()), *nothing]


def test_dates_in_structures_and_lists_have_their_instants_beside_them(tmp_path: Path) -> None:
    table = Table(
        tmp_path,
        "ServiceRequest",
        '{"resourceType":"ServiceRequest","occurrenceTiming":{"event":["2020",null,"x","2021-03"],'
        '"_event":[null,{"id":"e"},null,null],"repeat":{"boundsPeriod":{"start":"2020-01-31","end":"2020-02"}}}}',
    )
    assert table.one("occurrenceTiming.event") == ["2020", None, "x", "2021-03"]
    assert table.one("occurrenceTiming.__event_start") == [utc("2020-01-01"), None, None, utc("2021-03-01")]
    assert table.one("occurrenceTiming.__event_end") == [
        *(utc("2020-12-31 23:59:59.999999"), None, None),
        utc("2021-03-31 23:59:59.999999"),
    ]
    period = "occurrenceTiming.repeat.boundsPeriod"
    assert table.one(f"{period}.__start_start") == utc("2020-01-31")
    assert table.one(f"{period}.__end_end") == utc("2020-02-29 23:59:59.999999")
    assert table.one("occurrenceTiming._event[2].id") == "e"
    assert table.one("occurrenceTiming._event[1]") is None


def test_extensions_are_typed_two_levels_deep_and_verbatim_below(tmp_path: Path) -> None:
    """tables.md 1.6: US Core race is two levels."""
    third = '[ {"url" : "c","valueDecimal":1.10 , "x":{ } }]'
    table = Table(
        tmp_path,
        "Patient",
        '{"resourceType":"Patient","extension":[{"url":"a","extension":[{"url":"b","valueCoding":{"code":"x",'
        f'"extension":{third}}},"extension":{third}}},{{"url":"b2","valueDecimal":2.50}}]}}]}}',
    )
    assert table.type("extension[1].extension[1].extension") == "VARCHAR"
    assert table.one("extension[1].extension[1].extension") == third
    assert table.one("extension[1].extension[1].valueCoding.extension") == third
    assert table.one("extension[1].extension[1].valueCoding.code") == "x"
    assert table.one("extension[1].extension[2].valueDecimal") == "2.50"
    assert table.one("extension[1].extension[2].__valueDecimal_numeric") == 2.5
    assert table.one("len(extension[1].extension)") == 2


def test_extensions_of_primitives_and_of_elements_count_their_own_levels(tmp_path: Path) -> None:
    third = '[{"url":"c"}]'
    table = Table(
        tmp_path,
        "Patient",
        '{"resourceType":"Patient","birthDate":"2020","_birthDate":{"id":"i","extension":[{"url":"a",'
        '"valueString":"s","_valueString":{"extension":[{"url":"b","_valueString":{"extension":'
        + third
        + "}}]}}]},"
        '"name":[{"given":["A",null,"C"],"_given":[null,{"extension":[{"url":"g","valueCode":"nickname"}]},null]}],'
        '"contact":[{"name":{"family":"F","extension":[{"url":"e","valuePeriod":{"start":"2020-06",'
        '"extension":[{"url":"f","valueInteger":7}]}}]}}]}',
    )
    assert table.one("(_birthDate.id, _birthDate.extension[1].url)") == ("i", "a")
    second = "_birthDate.extension[1]._valueString.extension[1]"
    assert table.one(f"{second}.url") == "b"
    assert table.type(f"{second}._valueString.extension") == "VARCHAR"
    assert table.one(f"{second}._valueString.extension") == third
    assert table.one("name[1].given") == ["A", None, "C"]
    assert table.one("[x.extension[1].valueCode for x in name[1]._given]") == [None, "nickname", None]
    assert table.one("name[1]._given[1]") is None
    inner = "contact[1].name.extension[1].valuePeriod"
    assert table.one(f"{inner}.__start_end") == utc("2020-06-30 23:59:59.999999")
    assert table.one(f"{inner}.extension[1].valueInteger") == 7


def test_contained_resources_are_verbatim_text(tmp_path: Path) -> None:
    contained = '[ {"resourceType":"Medication" ,"x":1.10,"\\u0069d":"\\/a"},\t{"a":[ ]}]'
    table = Table(
        tmp_path, "Patient", '{"resourceType":"Patient", "contained" : ' + contained + ' ,"id":"a"}'
    )
    assert table.type("contained") == "VARCHAR"
    assert table.one("contained") == contained
    assert table.one("id") == "a"


def test_resources_in_bundles_and_parameters_are_verbatim_text(tmp_path: Path) -> None:
    inner = '{"resourceType":"Patient" , "id":"p","multipleBirthInteger":1.0}'
    (tmp_path / "b").mkdir()
    (tmp_path / "p").mkdir()
    bundle = Table(
        tmp_path / "b",
        "Bundle",
        '{"resourceType":"Bundle","total":1,"entry":[{"fullUrl":"u","resource":' + inner + "}]}",
    )
    assert bundle.one("(entry[1].fullUrl, entry[1].resource, total)") == ("u", inner, 1)
    parameters = Table(
        tmp_path / "p",
        "Parameters",
        '{"resourceType":"Parameters","parameter":[{"name":"a","resource":' + inner + "}]}",
    )
    assert parameters.one("parameter[1].resource") == inner


def test_recursion_is_columns_three_levels_deep_and_verbatim_below(tmp_path: Path) -> None:
    fourth = '[{"linkId":"4" ,"item":[{"linkId":"5","initial":[{"valueDecimal":1.50}]}]}]'
    table = Table(
        tmp_path,
        "Questionnaire",
        '{"resourceType":"Questionnaire","item":[{"linkId":"1","item":[{"linkId":"2","item":[{"linkId":"3",'
        f'"item":{fourth},"maxLength":5}}]}}]}}]}}',
    )
    assert table.one("item[1].item[1].item[1].linkId") == "3"
    assert table.one("item[1].item[1].item[1].maxLength") == 5
    assert table.type("item[1].item[1].item[1].item") == "VARCHAR"
    assert table.one("item[1].item[1].item[1].item") == fourth


def test_a_reference_in_a_reference_is_verbatim_text(tmp_path: Path) -> None:
    assigner = '{ "reference":"Organization/1"}'
    table = Table(
        tmp_path,
        "Observation",
        '{"resourceType":"Observation","subject":{"reference":"Patient/1","identifier":{"value":"v",'
        f'"assigner":{assigner}}}}},'
        '"identifier":[{"assigner":{"reference":"Organization/2","identifier":{"value":"w"}}}]}',
    )
    assert table.one("(subject.reference, subject.identifier.value)") == ("Patient/1", "v")
    assert table.one("subject.identifier.assigner") == assigner
    assert table.one("identifier[1].assigner.reference") == "Organization/2"
    assert table.one("identifier[1].assigner.identifier.value") == "w"


def test_members_that_r4_does_not_define_lie_in_one_column(tmp_path: Path) -> None:
    table = Table(
        tmp_path,
        "Patient",
        '{"resourceType":"Patient","a/b":{"~":1.10},"name":[{"family":"F"},{"family":null,'
        '"m~n":[1E2, null]}],"__birthDate_start":"x","birthDate":"2020","_name":1}',
        '{"resourceType":"Patient","id":"clean"}',
    )
    assert set(table.all("typeof(_unmapped)")) == {"VARCHAR"}
    text, nothing = table.all("_unmapped")
    assert nothing is None
    (found,) = duckdb.execute("select json_keys(?::json)", [text]).fetchall()
    assert found is not None
    assert sorted(found[0]) == ["/__birthDate_start", "/_name", "/a~1b", "/name/1/family", "/name/1/m~0n"]
    for piece in ('{"~":1.10}', "[1E2, null]"):
        assert piece in text
    assert table.all("__birthDate_start") == [utc("2020-01-01"), None]
    assert table.all("name[1].family") == ["F", None]


def test_texts_are_as_written(tmp_path: Path) -> None:
    table = Table(
        tmp_path,
        "Patient",
        '{"resourceType":"Patient","id":"\\u00e9\\ud83d\\ude00\\"\\\\\\/\\b\\f\\n\\r\\t","gender":"\\u0000x",'
        '"language":" 2020-01-01T00:00:00Z ","implicitRules":"","name":[{"family":"\U0010ffff\u2028é"}]}',
    )
    assert table.one("id") == 'é😀"\\/\b\f\n\r\t'
    assert table.one("gender") == "\0x"
    assert table.one("language") == " 2020-01-01T00:00:00Z "
    assert table.one("implicitRules") == ""
    assert table.one("name[1].family") == "\U0010ffff\u2028é"


def test_empty_is_not_absent(tmp_path: Path) -> None:
    table = Table(
        tmp_path,
        "Patient",
        '{"resourceType":"Patient","name":[],"meta":{},"link":[{}],"contact":[{"telecom":[]}]}',
        '{"resourceType":"Patient"}',
    )
    assert table.all("name") == [[], None]
    assert table.all("meta is null") == [False, True]
    assert table.all("len(link)") == [1, None]
    assert table.all("link[1] is null") == [False, True]
    assert table.all("contact[1].telecom") == [[], None]


def test_the_columns_lead_with_type_id_and_meta_and_end_with_the_lineage(tmp_path: Path) -> None:
    table = Table(tmp_path, "Patient", '{"zz":1,"birthDate":"2020","id":"a","resourceType":"Patient"}')
    names = table.connection.execute(f"select * from '{table.path}'").description
    columns = [column[0] for column in names]
    assert columns[:3] == ["resourceType", "id", "meta"]
    assert columns[-4:] == ["_unmapped", "_export_id", "_source_file", "_source_line"]
    at = columns.index("birthDate")
    assert columns[at : at + 3] == ["birthDate", "__birthDate_start", "__birthDate_end"]
    assert "export_id" not in columns
