"""From the facts of an export to what is next: the rules, and nothing else.

`next_step` is a pure function; sensor, jobs and command line all do what it says (design, Facts).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from pipeline.errors import StillRunning
from pipeline.exports.asking import backoff, before_request, was_put_off
from pipeline.exports.facts import SUPPLEMENT, AttemptError, ClosingFact, Request
from pipeline.exports.ledger import CLOSINGS, Facts
from pipeline.exports.owner import Owner
from pipeline.exports.steps import (
    AskAgain,
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
)

__all__ = [
    "AskAgain",
    "Busy",
    "Closed",
    "Damaged",
    "Hold",
    "Ingest",
    "KickOff",
    "Policy",
    "Poll",
    "Reject",
    "Step",
    "Tidy",
    "counted_failures",
    "deadline_of",
    "describe",
    "is_open",
    "last_reason",
    "next_step",
]

RELEASE_FOR = timedelta(days=2)
"""How long DELETE is tried after the receipt; servers expire their jobs by themselves."""

ASKED_AGAIN_WITHIN = timedelta(days=1)
"""After its end; later the schedule has long gone on without it."""


def next_step(
    facts: Facts,
    now: datetime,
    policy: Policy,
    is_dead: Callable[[Owner], bool],
    *,
    overtaken: bool = False,
) -> Step:
    """What is to be done for this export. `is_dead` tells that the run of an owner is certainly over;
    `overtaken`: a later export goes on from this one, and asks for what it has left out.
    """
    if facts.damaged:
        return Damaged(facts.damaged)
    if facts.receipt:
        return _after_receipt(facts, now, policy, is_dead, overtaken)
    for state in CLOSINGS:
        if state in facts.closings:
            return _after_end(facts, facts.closings[state], now, policy) or Closed(state)
    if facts.request is None:
        return before_request(facts, now, policy, is_dead)
    claim = facts.last_claim
    if claim is not None and not is_dead(claim.owner):
        return Busy(claim.owner, "ingest")
    overdue = now > deadline_of(facts, facts.request, policy)
    failures = counted_failures(facts)
    # Past the deadline one more attempt finds out whether there is anything to ingest, and ends it if not.
    given_up = overdue and (_is_passing(facts) or _came_too_early(facts)) and facts.manifest is not None
    if failures >= policy.max_attempts or given_up:
        return Hold(f"{failures or 'all'} attempts failed; the last one: {last_reason(facts)}")
    if claim is None or _came_too_early(facts):
        return Poll(overdue, claim.number + 1 if claim else 1)
    return Ingest(claim.number + 1, last_reason(facts), _retry_at(facts, claim.number))


def deadline_of(facts: Facts, request: Request, policy: Policy) -> datetime:
    """Until when it may take; an operator's retry gives it as long once more."""
    retry = facts.last_retry
    return max(request.at, retry.at if retry else request.at) + policy.deadline


def goes_on_from(earlier: Facts, later: Facts) -> bool:
    """Whether a published export of the same request has begun where this one ended, or with everything."""
    return (
        later.receipt is not None
        and later.receipt.watermark is not None
        and not later.supplement_of
        and not later.closings.keys() & {"withdrawing", "withdrawn"}
        and earlier.asked is not None
        and later.asked is not None
        and later.asked.line == earlier.asked.line
    )


def _after_receipt(
    facts: Facts, now: datetime, policy: Policy, is_dead: Callable[[Owner], bool], overtaken: bool
) -> Step:
    receipt, claim = facts.receipt, facts.last_claim
    assert receipt is not None  # noqa: S101 - for the type checker: the caller looked
    for state in ("withdrawn", "withdrawing"):
        if state in facts.closings:
            return Closed(state)
    if claim is not None and claim.number > receipt.attempt and not is_dead(claim.owner):
        return Busy(claim.owner, "ingest")  # it is being ingested again
    open_job = facts.released is None and "gone" not in facts.closings and "cancelled" not in facts.closings
    supplement = _supplement(facts, receipt.at, now)
    if supplement is not None and not overtaken:
        return supplement
    release = policy.release and open_job and now < receipt.at + RELEASE_FOR
    # Raw bytes are the last copy until the server's is given back on purpose (design, Facts).
    drop_raw = not policy.keep_raw and not facts.raw_dropped and not release
    if release or drop_raw:
        return Tidy(release, drop_raw)
    return Closed("published")


def _supplement(facts: Facts, ended: datetime, now: datetime) -> AskAgain | None:
    """Whether what this export has left out is to be asked for, in an export run of its own."""
    if not _leaves_out(facts):
        return None
    if facts.successor is not None:
        return None if facts.successor_opened else AskAgain(1, SUPPLEMENT)
    return AskAgain(1, SUPPLEMENT) if now <= ended + ASKED_AGAIN_WITHIN else None


def _leaves_out(facts: Facts) -> bool:
    receipt, intent = facts.receipt, facts.asked
    if facts.supplement_of:  # of added types: whatever became of it, the new patients come behind it
        return bool(facts.succeeds and facts.succeeds.lacks.types and facts.succeeds.lacks.patients)
    # Without a watermark nothing starts here: the next export finds out itself what it lacks.
    if receipt is None or intent is None or receipt.watermark is None:
        return False
    return bool(intent.lacks.types or intent.lacks.patients)


def _after_end(facts: Facts, closing: ClosingFact, now: datetime, policy: Policy) -> AskAgain | None:
    """What comes behind an end without data, where something does."""
    again = _ask_again(facts, closing, now, policy)
    if again or facts.closings.keys() & {"withdrawing", "withdrawn"}:
        return again
    return _supplement(facts, closing.at, now)


def _ask_again(facts: Facts, closing: ClosingFact, now: datetime, policy: Policy) -> AskAgain | None:
    """Whether a further export run is to be opened, or one that was begun is to be finished."""
    if not closing.cause:
        return None
    number = facts.succeeds.number + 1 if facts.succeeds else 1
    if facts.successor is not None:
        done = facts.successor_opened or facts.successor.cause == SUPPLEMENT
        return None if done else AskAgain(number, closing.cause)
    if number > policy.ask_again.get(closing.cause, 0) or now > closing.at + ASKED_AGAIN_WITHIN:
        return None
    return AskAgain(number, closing.cause)


def counted_failures(facts: Facts) -> int:
    """Attempts since the last receipt or retry that failed, one that died without a word included.

    Passing trouble (network, an overloaded server) does not count: it is tried again up to the deadline.
    """
    return sum(error is None or (error.counts and not error.transient) for error in _endings(facts))


def _endings(facts: Facts) -> list[AttemptError | None]:
    """How each attempt since the last receipt or retry ended; None for one that died without a word."""
    return [
        facts.attempt_errors.get(claim.number)
        for claim in facts.claims
        if claim.number > facts.forgiven_attempt
    ]


def _is_passing(facts: Facts) -> bool:
    last = _endings(facts)[-1:]
    return bool(last) and last[0] is not None and last[0].transient


def _came_too_early(facts: Facts) -> bool:
    """The last attempt found the server still at work: then it is polled, not tried again."""
    last = _endings(facts)[-1:]
    return bool(last) and last[0] is not None and last[0].kind == StillRunning.__name__


def last_reason(facts: Facts) -> str:
    """Why the last attempt ended, in words."""
    claim = facts.last_claim
    if claim is None:
        return "none was made"
    if facts.last_retry and claim.number <= facts.last_retry.after_attempt:
        return "tried again by hand"
    error = facts.attempt_errors.get(claim.number)
    return error.reason if error else f"attempt {claim.number} died (its run or process ended without a word)"


def _retry_at(facts: Facts, number: int) -> datetime | None:
    error = facts.attempt_errors.get(number)
    if error is None or number <= facts.forgiven_attempt:
        return None  # a killed run, or an operator's retry: nothing speaks against going on at once
    ended_so = sum(each is not None and each.transient == error.transient for each in _endings(facts))
    pause_ends = error.at + backoff(ended_so, seconds=30 if error.transient else 3)
    return max(pause_ends, error.retry_at or pause_ends)


def is_open(facts: Facts, step: Step) -> bool:
    """Whether the export still stands in the way of the next scheduled one of its source."""
    return facts.receipt is None and isinstance(
        step, KickOff | Poll | Ingest | Busy | Hold | Reject | AskAgain
    )


def describe(facts: Facts, step: Step, now: datetime) -> tuple[str, str]:
    """State and explanation for people: (`running`, `the server works on it`)."""
    match step:
        case Damaged(names):
            return "damaged", f"cannot be read: {', '.join(names)}; restore them, nothing is done until then"
        case Tidy():
            return _describe_closed(facts, "published")
        case Closed(state):
            return _describe_closed(facts, state)
        case AskAgain() if facts.receipt:
            return _describe_closed(facts, "published")
        case AskAgain():
            return _describe_closed(facts, next(each for each in CLOSINGS if each in facts.closings))
        case KickOff(number, reason, at):
            return _describe_kickoff(facts, number, reason, at if at and at > now else None)
        case Poll(overdue):
            return "running", ("past its deadline" if overdue else "the server works on it") + _trouble(facts)
        case Busy(owner, what):
            return ("requesting" if what == "kick-off" else "ingesting"), f"{what} by run {owner.run_id}"
        case Ingest(attempt, reason, _):
            return "failing", f"attempt {attempt} is next; {reason}"
        case Hold(reason):
            return "failing", f"to be held: {reason}"
        case Reject(reason, _):
            return "failing", f"to be rejected: {reason}"


def _trouble(facts: Facts) -> str:
    if not facts.looks:
        return ""
    last = facts.looks[-1]
    return f"; asking it failed at {last.at:%Y-%m-%d %H:%M} UTC: {last.reason}"


def _describe_kickoff(facts: Facts, number: int, reason: str, at: datetime | None) -> tuple[str, str]:
    when = f" at {at:%H:%M:%S} UTC" if at else ""
    if facts.unprepared and facts.unprepared[-1].intent == number:
        return "failing", f"{reason}; {'prepared again' + when if when else 'to be prepared again'}"
    if number == 1:
        return "planned", "not asked for yet" if reason == "new" else reason
    said = f"{reason}; {'asked again' + when if when else 'to be asked again'}"
    return _kickoff_state(facts, number - 1), said


def _kickoff_state(facts: Facts, number: int) -> str:
    """waiting: the server said later; failing: certainly no job; uncertain: there may be one."""
    if was_put_off(facts, number):
        return "waiting"
    error = facts.intent_errors.get(number)
    return "failing" if error is not None and error.certain else "uncertain"


def _describe_closed(facts: Facts, state: str) -> tuple[str, str]:
    closing: ClosingFact | None = facts.closings.get(state)
    if closing is not None:
        return state, "; ".join(_sentences(facts, state, closing))
    receipt = facts.receipt
    if receipt is None:
        return state, ""
    if receipt.incomplete:
        taken = " (taken as it is by hand)" if facts.taken_as_it_is else ""
        return state, f"incomplete{taken}, so the watermark stays: " + "; ".join(receipt.incomplete)
    return state, "complete and verified"


def _sentences(facts: Facts, state: str, closing: ClosingFact) -> list[str]:
    said = [f"{closing.reason}. {closing.advice}" if closing.advice else closing.reason]
    if state == "cancelled" and facts.request and not facts.released:
        said.append("its job may still run on the server, which did not confirm the end")
    if facts.successor:
        completes = facts.successor.cause == SUPPLEMENT
        said.append(f"{'followed' if completes else 'asked again'} by {facts.successor.export_id}")
    return said
