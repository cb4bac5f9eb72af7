"""Whether part of an export is missing, told by an earlier one (protocol 22)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.sidecar import count_issues
from pipeline.exports.facts import ClosingFact, Intent, Receipt, Request, Retry, TableCounts
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import Owner
from pipeline.exports.partial import (
    Shrunken,
    in_words,
    is_full,
    is_measure,
    lines_of,
    missing_errors,
    shrunken,
)

NOW = datetime(2026, 1, 31, 2, tzinfo=UTC)
OWNER = Owner(run_id="one", host="here")


def export(since: str | None = None, **changes: Any) -> Facts:
    table = TableCounts(resource_type="Patient", rows=9, quarantined=1, files=1, bytes=1, parts=1, version=1)
    values: dict[str, Any] = {
        "at": NOW,
        "attempt": 1,
        "owner": OWNER,
        "transaction_time": "2026-01-31T02:00:00Z",
        "watermark": "2026-01-31T02:00:00Z",
        "incomplete": (),
        "fingerprint": "f",
        "tables": {"patient": table},
        "files": 1,
        "raw_bytes": 1,
        "decoded_bytes": 1,
        "deleted": 0,
        "error_entries": {},
    }
    parameters = {"since": since}
    intent = Intent(
        at=NOW, number=1, owner=OWNER, parameters=parameters, fingerprint="f", since_reason="because"
    )
    return Facts(
        "hosp",
        "20260131T020000Z",
        intents=(intent,),
        request=Request(at=NOW, intent=1, status_url="u", owner=OWNER),
        receipts=(Receipt(**(values | changes)),),
    )


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"patient": 10, "observation": 100}, ()),
        ({"patient": 8, "observation": 80}, ()),
        ({"patient": 7, "observation": 80}, (Shrunken("patient", 10, 7),)),
        ({"patient": 10}, (Shrunken("observation", 100, 0),)),
        ({"patient": 10, "observation": 79, "device": 3}, (Shrunken("observation", 100, 79),)),
        ({}, (Shrunken("observation", 100, 0), Shrunken("patient", 10, 0))),
    ],
)
def test_types_that_shrank_are_named_with_their_numbers(
    now: dict[str, int], expected: tuple[Shrunken, ...]
) -> None:
    found = shrunken({"observation": 100, "patient": 10}, now, 0.8)
    assert found == expected
    for each in found:
        assert f"{each.table} {each.now or 'none'} of {each.before} lines" in in_words(found, "before")[0]
    assert bool(in_words(found, "before")) == bool(found)


COUNTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 10_000))


@given(COUNTS, COUNTS, st.integers(1, 100))
def test_a_share_is_exact_and_growth_is_never_partial(
    before: dict[str, int], now: dict[str, int], percent: int
) -> None:
    found = {each.table for each in shrunken(before, now, percent / 100)}
    for table, lines in before.items():
        assert (table in found) == (now.get(table, 0) * 100 < percent * lines)
    assert shrunken(before, before, percent / 100) == ()
    assert found <= before.keys()


def test_an_export_is_measured_by_a_whole_full_one_of_the_same_parameters() -> None:
    assert is_measure(export(), "f")
    assert lines_of(export().receipts[0]) == {"patient": 10}
    assert not is_measure(export(), "other")
    assert not is_measure(export(since="2026-01-30T00:00:00Z"), "f"), "changes only"
    assert not is_measure(replace(export(), receipts=()), "f"), "not published"
    for state in ("withdrawing", "withdrawn"):
        gone = replace(export(), closings={state: ClosingFact(at=NOW, reason="by hand")})
        assert not is_measure(gone, "f")


def test_what_was_incomplete_is_a_measure_once_it_was_taken_as_it_is() -> None:
    """Else a population that really shrank would be told every night."""
    partial = export(incomplete=("smaller",))
    assert not is_measure(partial, "f")
    taken = Retry(at=NOW, owner=OWNER, after_attempt=1, accept_partial=True)
    assert is_measure(replace(partial, retries={1: taken}), "f")
    refused = taken.model_copy(update={"accept_partial": False})
    assert not is_measure(replace(partial, retries={1: refused}), "f")


def test_an_export_without_an_accepted_request_is_not_full() -> None:
    assert is_full(export())
    assert not is_full(replace(export(), request=None))


def test_errors_of_the_server_are_told_as_a_number_and_as_codes_never_as_texts() -> None:
    """Protocol 22, 31: diagnostics may hold PHI, and so may a code that is none."""
    line = (
        b'{"resourceType":"OperationOutcome","issue":['
        b'{"severity":"error","code":"processing","diagnostics":"Wilhelmina"},'
        b'{"severity":"fatal","code":"Wilhelmina"},{"severity":"warning"}]}\n'
    )
    severities, codes = count_issues([line])
    assert {name: count for name, count in severities.items() if count} == {
        "error": 1,
        "fatal": 1,
        "warning": 1,
    }
    assert codes == {"processing": 1, "other": 2}
    assert missing_errors(2) == ["the server reports 2 errors"]
    assert missing_errors(0) == []
