"""The rule that holds an export for its bad lines: by table over all files, and by file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.config import MaxQuarantined
from pipeline.exports.acceptance import in_words, objections
from pipeline.exports.facts import FileRows, QuarantinePart, StagedBatch

LIMITS = MaxQuarantined()


def batch(group: str, *files: FileRows, number: int = 0) -> StagedBatch:
    tables = {table for file in files for table in file.bad}
    parts = [
        QuarantinePart(
            table=each, path=f"hosp/quarantine/x/0001/{each}-{number:05d}.ndjson", lines=1, bytes=1
        )
        for each in sorted(tables)
    ]
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    return StagedBatch(
        at=moment, type=group, number=number, attempt=1, parts=(), files=files, quarantine=tuple(parts)
    )


def file(name: str, tables: dict[str, int], bad: dict[str, int] | None = None) -> FileRows:
    bad = bad or {}
    rows, lost = sum(tables.values()), sum(bad.values())
    return FileRows(name=name, lines=rows + lost, rows=rows, quarantined=lost, tables=tables, bad=bad)


@pytest.mark.parametrize(
    ("lines", "bad", "held"),
    [(100, 10, False), (100, 11, True), (11_000, 11, False), (11_999, 12, True), (12_000, 12, False)],
)
def test_the_larger_of_ten_and_one_in_a_thousand_is_allowed(lines: int, bad: int, held: bool) -> None:
    found = objections(
        [batch("patient", file("output-000000", {"patient": lines - bad}, {"patient": bad}))], LIMITS
    )
    assert bool(found) is held


def test_a_table_is_judged_over_all_its_files_and_all_batches() -> None:
    one = batch("patient", file("output-000000", {"patient": 50}, {"patient": 6}), number=0)
    other = batch("patient", file("output-000001", {"patient": 50}, {"patient": 5}), number=1)
    assert objections([one], LIMITS) == []
    (found,) = objections([one, other], LIMITS)
    assert found.cause == "patient: 11 of 111 lines are bad, and max_quarantined allows 10 of so many"
    assert found.path == "hosp/quarantine/x/0001/patient-00000.ndjson"


def test_a_bad_line_counts_where_it_would_have_gone_not_where_it_came() -> None:
    mixed = batch("patient", file("output-000000", {"patient": 50}, {"patient": 6, "device": 6}))
    assert objections([mixed], LIMITS) == []
    more = batch("device", file("output-000001", {"device": 9}, {"device": 5}))
    assert [each.cause.split(":")[0] for each in objections([mixed, more], LIMITS)] == ["device"]


def test_lines_of_no_type_are_measured_by_the_files_that_declare_none() -> None:
    many = batch("untyped", file("output-000000", {"patient": 19_980}, {"untyped": 20}))
    assert objections([many], LIMITS) == []
    few = batch("untyped", file("output-000000", {"patient": 100}, {"untyped": 20}))
    (found,) = objections([few], LIMITS)
    assert found.cause.startswith("lines without a resource type: 20 of 120 lines are bad")


def test_a_file_without_a_good_line_is_refused_whatever_the_limit() -> None:
    generous = MaxQuarantined(lines=1000, share=1.0)
    bad = file("output-000003", {}, {"patient": 2})
    empty = file("output-000004", {})
    (found,) = objections([batch("patient", empty, bad)], generous)
    assert found.cause == "patient: none of the 2 lines of output-000003 is a resource"
    assert found.path.endswith("patient-00000.ndjson")


def test_a_line_that_found_its_own_table_is_a_good_line() -> None:
    assert objections([batch("patient", file("output-000000", {"device": 3}))], MaxQuarantined(lines=0)) == []


def test_a_conversion_of_an_earlier_version_had_one_table() -> None:
    values: dict[str, Any] = {"name": "output-000000", "lines": 3, "rows": 3, "quarantined": 0}
    old = batch("patient", FileRows(**values))
    assert old.tables == {"patient"}
    assert objections([old], LIMITS) == []


def test_the_words_name_three_and_count_the_rest() -> None:
    files = [file(f"output-{number:06d}", {}, {"patient": 1}) for number in range(5)]
    words = in_words(objections([batch("patient", *files)], MaxQuarantined(lines=100)))
    assert words.count("none of the 1 lines") == 3
    assert words.endswith("; and 2 more")
