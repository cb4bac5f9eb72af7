"""`next_step`: from facts to what is next, without Dagster, network or lake (design, Facts)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.exports.asking import MAX_KICKOFF_FAILURES
from pipeline.exports.facts import (
    AttemptError,
    Claim,
    ClosingFact,
    Intent,
    IntentError,
    Receipt,
    Request,
    TableCounts,
)
from pipeline.exports.ledger import CLOSINGS, Facts
from pipeline.exports.owner import Owner
from pipeline.exports.state import (
    RELEASE_FOR,
    Busy,
    Closed,
    Damaged,
    Hold,
    Ingest,
    KickOff,
    Policy,
    Poll,
    Reject,
    Step,
    Tidy,
    counted_failures,
    describe,
    is_open,
    next_step,
)

START = datetime(2026, 1, 31, 2, tzinfo=UTC)
POLICY = Policy(max_attempts=3, deadline=timedelta(hours=24))
LIVE = Owner(run_id="live", host="here")
DEAD = Owner(run_id="dead", host="here")
EMPTY = Facts("hosp_a", "20260131T020000Z")


def is_dead(owner: Owner) -> bool:
    return owner.run_id == "dead"


def after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def step_of(facts: Facts, minutes: float = 60, policy: Policy = POLICY) -> Step:
    return next_step(facts, after(minutes), policy, is_dead)


def intent(number: int = 1, owner: Owner = DEAD, minutes: float = 0) -> Intent:
    return Intent(
        at=after(minutes), number=number, owner=owner, parameters={}, fingerprint="f", since_reason="full"
    )


def refused(minutes: float = 0, retry: float | None = None, *, certain: bool = True) -> IntentError:
    retry_at = None if retry is None else after(retry)
    return IntentError(at=after(minutes), reason="HTTP 429", retry_at=retry_at, certain=certain)


def claim(number: int, owner: Owner = DEAD, minutes: float = 10) -> Claim:
    return Claim(at=after(minutes), number=number, owner=owner)


def failed(minutes: float = 11, *, counts: bool = True, transient: bool = False) -> AttemptError:
    return AttemptError(
        at=after(minutes), reason="it broke", kind="Broken", counts=counts, transient=transient
    )


def receipt(attempt: int = 1, minutes: float = 20, **changes: Any) -> Receipt:
    table = TableCounts(resource_type="Patient", rows=3, quarantined=0, files=1, bytes=10, parts=1, version=1)
    values: dict[str, Any] = {
        "at": after(minutes),
        "attempt": attempt,
        "owner": DEAD,
        "transaction_time": "2026-01-31T02:00:00Z",
        "watermark": None,
        "incomplete": (),
        "fingerprint": "f",
        "tables": {"patient": table},
        "files": 1,
        "raw_bytes": 10,
        "decoded_bytes": 10,
        "deleted": 0,
        "error_entries": {},
    }
    return Receipt(**(values | changes))


def closing(minutes: float = 30) -> ClosingFact:
    return ClosingFact(at=after(minutes), reason="because")


ACCEPTED = replace(
    EMPTY, intents=(intent(),), request=Request(at=START, intent=1, status_url="u", owner=DEAD)
)

Case = tuple[Facts, float, Step]


# --- before the request ------------------------------------------------------------------------------


def test_a_new_export_is_asked_for_at_once() -> None:
    assert step_of(EMPTY) == KickOff(1, "new")


def test_a_live_kickoff_is_left_alone_and_a_dead_one_is_asked_again() -> None:
    assert step_of(replace(EMPTY, intents=(intent(owner=LIVE),))) == Busy(LIVE, "kick-off")
    again = step_of(replace(EMPTY, intents=(intent(owner=DEAD),)))
    assert isinstance(again, KickOff)
    assert again.number == 2


def test_an_uncertain_request_asks_again_and_says_so() -> None:
    """An intent with neither acceptance nor error: a job may run there, asking again finds out."""
    facts = replace(
        EMPTY, intents=(intent(), intent(2, minutes=5)), intent_errors={1: refused(certain=False)}
    )
    step = step_of(facts)
    assert isinstance(step, KickOff)
    assert (step.number, describe(facts, step, after(60))[0]) == (3, "uncertain")


def test_a_429_waits_as_long_as_the_server_asks() -> None:
    facts = replace(EMPTY, intents=(intent(),), intent_errors={1: refused(retry=90)})
    step = step_of(facts, minutes=60)
    assert step == KickOff(2, "HTTP 429", after(90))
    assert describe(facts, step, after(60))[0] == "waiting"


def test_429s_go_on_to_the_deadline_and_end_in_a_rejection() -> None:
    """Being put off never uses up the tries; only the deadline ends it."""
    many = 4 * MAX_KICKOFF_FAILURES
    intents = tuple(intent(n, minutes=n) for n in range(1, many + 1))
    errors = {n: refused(minutes=n, retry=n + 1) for n in range(1, many + 1)}
    facts = replace(EMPTY, intents=intents, intent_errors=errors)
    assert isinstance(step_of(facts), KickOff)
    deadline = POLICY.deadline.total_seconds() / 60 + 1  # it counts from the first intent, at minute 1
    at_the_end = replace(facts, intent_errors=errors | {many: refused(retry=deadline)})
    assert isinstance(step_of(at_the_end), KickOff)
    too_late = replace(facts, intent_errors=errors | {many: refused(retry=deadline + 1)})
    assert isinstance(step_of(too_late), Reject)


def test_requests_that_fail_otherwise_end_in_a_rejection_with_the_last_reason() -> None:
    numbers = range(1, MAX_KICKOFF_FAILURES + 1)
    facts = replace(
        EMPTY, intents=tuple(intent(n) for n in numbers), intent_errors={n: refused() for n in numbers}
    )
    step = step_of(facts)
    assert isinstance(step, Reject)
    assert "HTTP 429" in step.reason
    assert step.advice


def test_failing_requests_are_spaced_further_and_further() -> None:
    waits = []
    for count in range(1, MAX_KICKOFF_FAILURES):
        numbers = range(1, count + 1)
        facts = replace(
            EMPTY, intents=tuple(intent(n) for n in numbers), intent_errors={n: refused() for n in numbers}
        )
        step = step_of(facts, minutes=0)
        assert isinstance(step, KickOff)
        assert step.not_before is not None
        waits.append(step.not_before - START)
    assert waits == sorted(set(waits))


# --- running and ingesting ---------------------------------------------------------------------------


@pytest.mark.parametrize(("minutes", "overdue"), [(1, False), (24 * 60, False), (24 * 60 + 1, True)])
def test_an_accepted_export_is_polled_to_its_deadline_and_once_more(minutes: float, overdue: bool) -> None:
    assert step_of(ACCEPTED, minutes) == Poll(overdue)


def test_a_live_claim_means_wait_and_a_dead_one_is_taken_over_at_once() -> None:
    assert step_of(replace(ACCEPTED, claims=(claim(1, LIVE),))) == Busy(LIVE, "ingest")
    step = step_of(replace(ACCEPTED, claims=(claim(1, DEAD),)))
    assert isinstance(step, Ingest)
    assert (step.attempt, step.not_before) == (2, None)


def test_a_failed_attempt_is_followed_by_the_next_after_a_pause() -> None:
    facts = replace(ACCEPTED, claims=(claim(1),), attempt_errors={1: failed(minutes=11)})
    step = step_of(facts, minutes=11)
    assert isinstance(step, Ingest)
    assert step.attempt == 2
    assert step.not_before is not None
    assert after(11) < step.not_before < after(20)


def test_a_passing_error_waits_longer_than_a_lasting_one() -> None:
    def wait(error: AttemptError) -> datetime:
        step = step_of(replace(ACCEPTED, claims=(claim(1),), attempt_errors={1: error}))
        assert isinstance(step, Ingest)
        assert step.not_before is not None
        return step.not_before

    assert wait(failed(transient=True)) > wait(failed())


def test_after_max_attempts_the_export_is_held() -> None:
    claims = tuple(claim(n) for n in (1, 2, 3))
    facts = replace(ACCEPTED, claims=claims, attempt_errors={n: failed() for n in (1, 2, 3)})
    step = step_of(facts)
    assert isinstance(step, Hold)
    assert "it broke" in step.reason
    two = replace(facts, claims=claims[:2])
    assert isinstance(step_of(two), Ingest)


def test_an_attempt_that_died_without_a_word_counts() -> None:
    facts = replace(ACCEPTED, claims=tuple(claim(n) for n in (1, 2, 3)))
    assert isinstance(step_of(facts), Hold)
    assert counted_failures(facts) == 3


def test_attempts_that_do_not_count_never_hold_an_export() -> None:
    numbers = range(1, 10)
    facts = replace(
        ACCEPTED,
        claims=tuple(claim(n) for n in numbers),
        attempt_errors={n: failed(counts=False) for n in numbers},
    )
    assert counted_failures(facts) == 0
    assert isinstance(step_of(facts), Ingest | Poll)


# --- closed ------------------------------------------------------------------------------------------


def test_a_held_export_does_not_stand_in_the_way_of_the_schedule() -> None:
    claims = tuple(claim(n) for n in (1, 2, 3))
    failing = replace(ACCEPTED, claims=claims)
    assert is_open(failing, step_of(failing))
    held = replace(failing, closings={"held": closing()})
    assert step_of(held) == Closed("held")
    assert not is_open(held, step_of(held))


@pytest.mark.parametrize("name", CLOSINGS)
def test_a_closing_fact_ends_an_export(name: str) -> None:
    facts = replace(ACCEPTED, closings={name: closing()})
    assert step_of(facts) == Closed(name)
    assert not is_open(facts, Closed(name))
    state, reason = describe(facts, Closed(name), after(60))
    assert state == name
    assert reason.startswith("because")


def test_a_receipt_wins_over_held() -> None:
    facts = replace(
        ACCEPTED,
        claims=tuple(claim(n) for n in (1, 2, 3, 4)),
        closings={"held": closing()},
        receipts=(receipt(4),),
        released=closing(),
    )
    assert step_of(facts) == Closed("published")
    assert not is_open(facts, step_of(facts))


def test_a_published_export_is_released_and_then_closed() -> None:
    facts = replace(ACCEPTED, claims=(claim(1),), receipts=(receipt(),))
    assert step_of(facts) == Tidy(release=True, drop_raw=False)
    assert step_of(replace(facts, released=closing())) == Closed("published")
    assert step_of(facts, policy=replace(POLICY, release=False)) == Closed("published")
    late = 20 + RELEASE_FOR.total_seconds() / 60
    assert step_of(facts, minutes=late) == Closed("published")


@pytest.mark.parametrize("over", ["gone", "cancelled"])
def test_a_job_that_is_over_is_not_released(over: str) -> None:
    facts = replace(ACCEPTED, receipts=(receipt(),), closings={over: closing()})
    assert step_of(facts) == Closed("published")


def test_raw_bytes_are_dropped_only_after_the_release() -> None:
    policy = replace(POLICY, keep_raw=False)
    facts = replace(ACCEPTED, receipts=(receipt(),))
    assert step_of(facts, policy=policy) == Tidy(release=True, drop_raw=False)
    released = replace(facts, released=closing())
    assert step_of(released, policy=policy) == Tidy(release=False, drop_raw=True)
    assert step_of(replace(released, raw_dropped=True), policy=policy) == Closed("published")


def test_ingesting_a_published_export_again_is_left_alone_while_it_lives() -> None:
    facts = replace(ACCEPTED, claims=(claim(1), claim(2, LIVE)), receipts=(receipt(1),), released=closing())
    assert step_of(facts) == Busy(LIVE, "ingest")
    assert not is_open(facts, step_of(facts))
    died = replace(facts, claims=(claim(1), claim(2, DEAD)))
    assert step_of(died) == Closed("published")


def test_a_withdrawn_export_stays_withdrawn() -> None:
    facts = replace(ACCEPTED, receipts=(receipt(),), closings={"withdrawn": closing()})
    assert step_of(facts) == Closed("withdrawn")


def test_damaged_facts_stop_everything() -> None:
    for facts in (EMPTY, ACCEPTED, replace(ACCEPTED, receipts=(receipt(),))):
        damaged = replace(facts, damaged=("request.json",))
        step = step_of(damaged)
        assert step == Damaged(("request.json",))
        assert not is_open(damaged, step)
        assert "request.json" in describe(damaged, step, after(60))[1]


# --- for any facts -----------------------------------------------------------------------------------

MINUTES = st.floats(0, 3000, allow_nan=False)
OWNERS = st.sampled_from([LIVE, DEAD])


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    """Any combination of facts, also such as only a strange history could leave."""
    intents = tuple(intent(n, draw(OWNERS), draw(MINUTES)) for n in range(1, draw(st.integers(0, 7)) + 1))
    retries = st.none() | MINUTES
    intent_errors = {
        each.number: refused(draw(MINUTES), draw(retries), certain=draw(st.booleans()))
        for each in intents
        if draw(st.booleans())
    }
    request = None
    if draw(st.booleans()):
        request = Request(at=after(draw(MINUTES)), intent=max(len(intents), 1), status_url="u", owner=DEAD)
    claims = tuple(claim(n, draw(OWNERS), draw(MINUTES)) for n in range(1, draw(st.integers(0, 6)) + 1))
    attempt_errors = {
        each.number: failed(draw(MINUTES), counts=draw(st.booleans()), transient=draw(st.booleans()))
        for each in claims
        if draw(st.booleans())
    }
    receipts = tuple(receipt(n, draw(MINUTES)) for n in range(1, len(claims) + 1) if draw(st.booleans()))
    return replace(
        EMPTY,
        intents=intents,
        intent_errors=intent_errors,
        request=request,
        claims=claims,
        attempt_errors=attempt_errors,
        receipts=receipts,
        released=closing() if draw(st.booleans()) else None,
        closings={name: closing() for name in draw(st.sets(st.sampled_from(CLOSINGS), max_size=2))},
        raw_dropped=draw(st.booleans()),
        damaged=("x.json",) if draw(st.integers(0, 9)) == 0 else (),
    )


POLICIES = st.builds(
    Policy,
    max_attempts=st.integers(1, 5),
    deadline=st.sampled_from([timedelta(minutes=30), timedelta(hours=24)]),
    release=st.booleans(),
    keep_raw=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(any_facts(), MINUTES, POLICIES)
def test_every_combination_of_facts_has_a_step_that_is_safe(
    facts: Facts, minutes: float, policy: Policy
) -> None:
    step = next_step(facts, after(minutes), policy, is_dead)
    assert describe(facts, step, after(minutes))[0]
    if facts.request is not None:
        assert not isinstance(step, KickOff | Reject), "a job is never asked for twice"
    if facts.request is None:
        assert not isinstance(step, Poll | Ingest | Hold), "there is nothing to poll or ingest"
    if facts.last_claim and not is_dead(facts.last_claim.owner):
        assert not isinstance(step, Ingest), "a live claim is never overtaken"
    if isinstance(step, KickOff):
        assert step.number == len(facts.intents) + 1, "an intent's name is never used twice"
        last = facts.intents[-1] if facts.intents else None
        assert last is None or last.number in facts.intent_errors or is_dead(last.owner)
    if isinstance(step, Ingest):
        assert step.attempt == len(facts.claims) + 1
        assert counted_failures(facts) < policy.max_attempts
    if isinstance(step, Tidy):
        assert facts.receipt
        assert step.release or step.drop_raw
        assert not (step.drop_raw and policy.keep_raw)
    if facts.receipts or facts.closings or facts.damaged:
        assert not is_open(facts, step), "it must not keep the next night from running"
    if facts.closings and not facts.receipts and not facts.damaged:
        assert isinstance(step, Closed)
        assert step.state in facts.closings


@settings(max_examples=100, deadline=None)
@given(any_facts(), POLICIES)
def test_an_open_export_ends_by_itself(facts: Facts, policy: Policy) -> None:
    """If every kick-off is put off and every attempt fails, the export is over after finitely many steps."""
    facts = replace(
        facts,
        damaged=(),
        intents=tuple(replace_owner(each) for each in facts.intents),
        claims=tuple(each.model_copy(update={"owner": DEAD}) for each in facts.claims),
    )
    now = after(3000)
    for _ in range(200):
        step = next_step(facts, now, policy, is_dead)
        match step:
            case KickOff(number, _, at):
                now = max(now, at) if at else now
                new = Intent(
                    at=now, number=number, owner=DEAD, parameters={}, fingerprint="f", since_reason=""
                )
                wait = IntentError(at=now, reason="429", retry_at=now + timedelta(minutes=20))
                facts = replace(
                    facts, intents=(*facts.intents, new), intent_errors={**facts.intent_errors, number: wait}
                )
            case Poll():
                facts = replace(facts, claims=(Claim(at=now, number=1, owner=DEAD),))
            case Ingest(number, _, _):
                facts = replace(facts, claims=(*facts.claims, Claim(at=now, number=number, owner=DEAD)))
            case Hold():
                facts = replace(facts, closings={**facts.closings, "held": closing()})
            case Reject():
                facts = replace(facts, closings={**facts.closings, "rejected": closing()})
            case Tidy(release, drop_raw):
                facts = replace(
                    facts,
                    released=closing() if release else facts.released,
                    raw_dropped=facts.raw_dropped or drop_raw,
                )
            case _:
                break
    assert isinstance(step, Closed)


def replace_owner(each: Intent) -> Intent:
    return each.model_copy(update={"owner": DEAD})
