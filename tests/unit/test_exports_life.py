"""Asked again, held and retried, past the deadline: the rules, without lake or server (design, Facts)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exports.advice import in_words
from pipeline.exports.facts import (
    AttemptError,
    Cause,
    Claim,
    ClosingFact,
    Intent,
    LookFact,
    ManifestFact,
    Receipt,
    Request,
    Retry,
    Succeeds,
    Successor,
    TableCounts,
)
from pipeline.exports.history import history
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import Owner
from pipeline.exports.state import (
    ASKED_AGAIN_WITHIN,
    AskAgain,
    Closed,
    Hold,
    Ingest,
    KickOff,
    Policy,
    Poll,
    Step,
    describe,
    is_open,
    next_step,
)

START = datetime(2026, 1, 31, 2, tzinfo=UTC)
ID, NEXT = "20260131T020000Z", "20260131T030000Z"
DEAD = Owner(run_id="dead", host="here")
POLICY = Policy(ask_again={"gone": 2, "failed": 1, "deadline": 0})
ACCEPTED = Facts(
    "hosp",
    ID,
    intents=(Intent(at=START, number=1, owner=DEAD, parameters={}, fingerprint="f", since_reason="full"),),
    request=Request(at=START, intent=1, status_url="u", owner=DEAD),
)


def after(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def step_of(facts: Facts, hours: float = 2, policy: Policy = POLICY) -> Step:
    return next_step(facts, after(hours), policy, lambda owner: owner == DEAD)


def ended(state: str, cause: Cause, hours: float = 1) -> Facts:
    closing = ClosingFact(at=after(hours), reason="it ended", cause=cause)
    return replace(ACCEPTED, closings={state: closing})


def link(number: int) -> Succeeds:
    return Succeeds(at=START, export_id="20260131T010000Z", number=number, reason="it was gone")


def claims(*numbers: int) -> tuple[Claim, ...]:
    return tuple(Claim(at=after(1), number=number, owner=DEAD) for number in numbers)


def failures(*numbers: int, **changes: Any) -> dict[int, AttemptError]:
    values: dict[str, Any] = {"at": after(1), "reason": "it broke", "kind": "Broken", **changes}
    return {number: AttemptError(**values) for number in numbers}


def retry(number: int = 1, after_attempt: int = 3, hours: float = 2, **changes: Any) -> dict[int, Retry]:
    return {number: Retry(at=after(hours), owner=DEAD, after_attempt=after_attempt, **changes)}


# --- asked again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cause", "links", "expected"),
    [
        ("gone", "gone", 0, AskAgain(1, "gone")),
        ("gone", "gone", 1, AskAgain(2, "gone")),
        ("gone", "gone", 2, Closed("gone")),
        ("gone", "failed", 0, AskAgain(1, "failed")),
        ("gone", "failed", 1, Closed("gone")),
        ("cancelled", "deadline", 0, Closed("cancelled")),
        ("cancelled", "", 0, Closed("cancelled")),
        ("gone", "", 0, Closed("gone")),
        ("rejected", "", 0, Closed("rejected")),
    ],
)
def test_an_end_without_data_is_asked_again_as_often_as_the_source_allows(
    state: str, cause: Cause, links: int, expected: Step
) -> None:
    """Protocol 24, 25: a new kick-off is the only way on; one by hand is never asked again."""
    facts = replace(ended(state, cause), succeeds=link(links) if links else None)
    step = step_of(facts)
    assert step == expected
    assert is_open(facts, step) == isinstance(expected, AskAgain), "the schedule waits for the chain"
    assert describe(facts, step, after(2)) == (state, describe(facts, Closed(state), after(2))[1])
    assert in_words(step, after(2), facts)


def test_an_export_past_its_deadline_is_asked_again_where_that_is_configured() -> None:
    allowed = replace(POLICY, ask_again={"deadline": 1})
    assert step_of(ended("cancelled", "deadline"), policy=allowed) == AskAgain(1, "deadline")


def test_what_ended_long_ago_is_not_asked_again() -> None:
    over = ASKED_AGAIN_WITHIN.total_seconds() / 3600
    assert isinstance(step_of(ended("gone", "gone", hours=1), hours=1 + over), AskAgain)
    assert step_of(ended("gone", "gone", hours=1), hours=1.01 + over) == Closed("gone")


def test_a_chain_that_was_begun_is_finished_also_later_and_then_it_is_over() -> None:
    begun = replace(ended("gone", "gone"), successor=Successor(at=after(1), export_id=NEXT))
    assert step_of(begun, hours=100) == AskAgain(1, "gone")
    whole = replace(begun, successor_opened=True)
    assert step_of(whole) == Closed("gone")
    assert NEXT in describe(whole, Closed("gone"), after(2))[1]
    assert NEXT in in_words(Closed("gone"), after(2), whole)


def test_an_export_that_asks_again_says_so_and_is_kicked_off_like_any_other() -> None:
    facts = Facts("hosp", NEXT, succeeds=link(1))
    step = step_of(facts)
    assert step == KickOff(1, "asked again: it was gone")
    assert describe(facts, step, after(2)) == ("planned", "asked again: it was gone")
    assert is_open(facts, step)


def test_a_withdrawn_export_is_not_asked_again() -> None:
    facts = ended("gone", "gone")
    withdrawn = {**facts.closings, "withdrawn": ClosingFact(at=after(2), reason="by hand")}
    assert step_of(replace(facts, closings=withdrawn)) == Closed("withdrawn")


@given(st.sampled_from(["gone", "failed", "deadline"]), st.integers(0, 4), st.integers(0, 3))
def test_no_chain_is_longer_than_allowed(cause: Cause, allowed: int, links: int) -> None:
    facts = replace(ended("gone", cause), succeeds=link(links) if links else None)
    step = step_of(facts, policy=Policy(ask_again={cause: allowed}))
    assert isinstance(step, AskAgain) == (links < allowed)
    assert not isinstance(step, AskAgain) or step.number == links + 1


# --- held and retried ----------------------------------------------------------------------------------


def held(facts: Facts) -> Facts:
    closing = ClosingFact(at=after(1), reason="3 attempts failed")
    return replace(facts, helds={1: closing}, closings={"held": closing})


FAILED = replace(ACCEPTED, claims=claims(1, 2, 3), attempt_errors=failures(1, 2, 3))


def test_a_retry_is_an_attempt_at_once_and_counts_failures_anew() -> None:
    retried = replace(held(FAILED), closings={}, retries=retry())
    assert step_of(FAILED, hours=1) == Hold("3 attempts failed; the last one: it broke")
    assert step_of(retried) == Ingest(4, "tried again by hand")
    assert is_open(retried, step_of(retried))
    again = replace(retried, claims=claims(1, 2, 3, 4, 5), attempt_errors=failures(1, 2, 3, 4, 5))
    assert isinstance(step_of(again), Ingest)
    spent = replace(again, claims=claims(*range(1, 7)), attempt_errors=failures(*range(1, 7)))
    assert step_of(spent) == Hold("3 attempts failed; the last one: it broke")


def test_a_retry_gives_an_overdue_export_its_deadline_once_more() -> None:
    """Protocol 25; else the first passing trouble would hold it again."""
    early = failures(4, transient=True, at=after(40))
    facts = replace(held(FAILED), closings={}, retries=retry(hours=40), manifest=manifest())
    facts = replace(facts, claims=claims(1, 2, 3, 4), attempt_errors=FAILED.attempt_errors | early)
    assert isinstance(step_of(facts, hours=50), Ingest)
    assert isinstance(step_of(facts, hours=65), Hold)


def test_a_held_export_names_the_commands_that_end_it() -> None:
    facts = held(FAILED)
    words = in_words(step_of(facts), after(2), facts)
    assert f"fhir-export retry hosp/{ID}" in words
    assert f"fhir-export withdraw hosp/{ID}" in words


@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 6))
def test_however_often_it_is_retried_it_is_held_again_after_max_attempts_more(
    most: int, forgiven: int, more: int
) -> None:
    numbers = range(1, forgiven + more + 1)
    facts = replace(
        ACCEPTED,
        claims=claims(*numbers),
        attempt_errors=failures(*numbers),
        retries=retry(after_attempt=forgiven) if forgiven else {},
    )
    step = step_of(facts, hours=3, policy=Policy(max_attempts=most))
    assert isinstance(step, Hold) == (more >= most)


# --- past the deadline ---------------------------------------------------------------------------------


def manifest() -> ManifestFact:
    return ManifestFact(at=after(1), transaction_time="2026-01-31T02:00:00Z", pages=1, page={})


def test_passing_trouble_past_the_deadline_is_ended_by_one_attempt_more_where_no_manifest_came() -> None:
    """Protocol 25: that attempt cancels, whatever the server answers; with a manifest it is held instead."""
    facts = replace(ACCEPTED, claims=claims(1), attempt_errors=failures(1, transient=True))
    assert isinstance(step_of(facts, hours=25), Ingest)
    assert isinstance(step_of(replace(facts, manifest=manifest()), hours=25), Hold)


def test_a_job_that_runs_again_behind_its_manifest_is_held_at_the_deadline() -> None:
    """Polled for ever otherwise: an attempt that finds it at work is no failure (protocol 25)."""
    early = failures(1, kind="StillRunning", counts=False)
    facts = replace(ACCEPTED, manifest=manifest(), claims=claims(1), attempt_errors=early)
    assert isinstance(step_of(facts), Poll)
    assert isinstance(step_of(facts, hours=25), Hold)


def test_trouble_with_the_status_is_told_while_it_lasts() -> None:
    facts = replace(ACCEPTED, looks=(LookFact(at=after(1), reason="HTTP 403: forbidden"),))
    state, reason = describe(facts, step_of(facts), after(2))
    assert step_of(facts) == Poll(False)
    assert (state, "HTTP 403: forbidden" in reason, "03:00 UTC" in reason) == ("running", True, True)
    assert any("HTTP 403" in event.what for event in history(facts))


def test_a_job_whose_end_the_server_did_not_confirm_may_still_run() -> None:
    """Protocol 25, 35."""
    facts = ended("cancelled", "deadline")
    assert "may still run" in describe(facts, Closed("cancelled"), after(2))[1]
    confirmed = replace(facts, released=ClosingFact(at=after(1), reason="deleted"))
    assert "may still run" not in describe(confirmed, Closed("cancelled"), after(2))[1]


# --- published in part ---------------------------------------------------------------------------------


def test_a_partial_export_that_is_published_tells_how_to_take_it_as_it_is() -> None:
    table = TableCounts(resource_type="Patient", rows=3, quarantined=0, files=1, bytes=1, parts=1, version=1)
    receipt = Receipt(
        at=after(1),
        attempt=1,
        owner=DEAD,
        transaction_time="2026-01-31T02:00:00Z",
        watermark=None,
        incomplete=("smaller",),
        partial=("smaller",),
        fingerprint="f",
        tables={"patient": table},
        files=1,
        raw_bytes=1,
        decoded_bytes=1,
        deleted=0,
        error_entries={},
    )
    facts = replace(ACCEPTED, receipts=(receipt,), released=ClosingFact(at=after(1), reason="deleted"))
    assert step_of(facts) == Closed("published")
    assert f"fhir-export retry hosp/{ID} --accept-partial" in in_words(Closed("published"), after(2), facts)
    taken = replace(facts, retries=retry(after_attempt=1, accept_partial=True))
    assert step_of(taken) == Closed("published")
    assert in_words(Closed("published"), after(2), taken) == "nothing"
    assert "by hand" in describe(taken, Closed("published"), after(2))[1]
