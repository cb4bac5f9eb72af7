"""From the facts of an export to what is next: the rules, and nothing else.

`next_step` is a pure function; sensor, jobs and command line all do what it says (design, Facts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pipeline.errors import StillRunning
from pipeline.exports.facts import AttemptError, ClosingFact
from pipeline.exports.ledger import CLOSINGS, Facts
from pipeline.exports.owner import Owner

MAX_KICKOFF_FAILURES = 5
"""Tries that ended neither in an answer nor in a 'later': then an operator has to look."""

RELEASE_FOR = timedelta(days=2)
"""How long DELETE is tried after the receipt; servers expire their jobs by themselves."""


@dataclass(frozen=True)
class Policy:
    """What the configuration says about one source's exports."""

    max_attempts: int = 3
    deadline: timedelta = timedelta(hours=24)
    release: bool = True
    keep_raw: bool = True


@dataclass(frozen=True)
class KickOff:
    """Send the kick-off request, now or at `not_before`; `number` is the intent's."""

    number: int
    reason: str
    not_before: datetime | None = None


@dataclass(frozen=True)
class Poll:
    """Ask the server how far it is; past the deadline the answer 'not yet' ends the export."""

    overdue: bool
    attempt: int = 1
    """The attempt to start when it is ready."""


@dataclass(frozen=True)
class Ingest:
    """Start this attempt, now or at `not_before`."""

    attempt: int
    reason: str
    not_before: datetime | None = None


@dataclass(frozen=True)
class Hold:
    """Write `held`: the attempts are used up."""

    reason: str


@dataclass(frozen=True)
class Reject:
    """Write `rejected`: the kick-off cannot be done."""

    reason: str
    advice: str


@dataclass(frozen=True)
class Tidy:
    """Published; the job on the server or the raw bytes are still to be given back."""

    release: bool
    drop_raw: bool


@dataclass(frozen=True)
class Busy:
    """Somebody works on it: nothing to do."""

    owner: Owner
    what: Literal["kick-off", "ingest"]


@dataclass(frozen=True)
class Closed:
    """Over: `state` is published, held, gone, rejected, cancelled or withdrawn."""

    state: str


@dataclass(frozen=True)
class Damaged:
    """Facts that cannot be read; nothing is done until somebody mends or restores them."""

    names: tuple[str, ...]


Step = KickOff | Poll | Ingest | Hold | Reject | Tidy | Busy | Closed | Damaged


def next_step(facts: Facts, now: datetime, policy: Policy, is_dead: Callable[[Owner], bool]) -> Step:
    """What is to be done for this export. `is_dead` tells that the run of an owner is certainly over."""
    if facts.damaged:
        return Damaged(facts.damaged)
    if facts.receipt:
        return _after_receipt(facts, now, policy, is_dead)
    for state in CLOSINGS:
        if state in facts.closings:
            return Closed(state)
    if facts.request is None:
        return _before_request(facts, now, policy, is_dead)
    claim = facts.last_claim
    if claim is not None and not is_dead(claim.owner):
        return Busy(claim.owner, "ingest")
    overdue = now > facts.request.at + policy.deadline
    failures = counted_failures(facts)
    if failures >= policy.max_attempts or (overdue and _is_passing(facts)):
        return Hold(f"{failures or 'all'} attempts failed; the last one: {last_reason(facts)}")
    if claim is None or _came_too_early(facts):
        return Poll(overdue, claim.number + 1 if claim else 1)
    return Ingest(claim.number + 1, last_reason(facts), _retry_at(facts, claim.number))


def _after_receipt(facts: Facts, now: datetime, policy: Policy, is_dead: Callable[[Owner], bool]) -> Step:
    receipt, claim = facts.receipt, facts.last_claim
    assert receipt is not None  # noqa: S101 - for the type checker: the caller looked
    if "withdrawn" in facts.closings:
        return Closed("withdrawn")
    if claim is not None and claim.number > receipt.attempt and not is_dead(claim.owner):
        return Busy(claim.owner, "ingest")  # it is being ingested again
    open_job = facts.released is None and "gone" not in facts.closings and "cancelled" not in facts.closings
    release = policy.release and open_job and now < receipt.at + RELEASE_FOR
    # Raw bytes are the last copy until the server's is given back on purpose (design, Facts).
    drop_raw = not policy.keep_raw and not facts.raw_dropped and not release
    if release or drop_raw:
        return Tidy(release, drop_raw)
    return Closed("published")


def _before_request(facts: Facts, now: datetime, policy: Policy, is_dead: Callable[[Owner], bool]) -> Step:
    if not facts.intents:
        return KickOff(1, "new")
    intent = facts.intents[-1]
    error = facts.intent_errors.get(intent.number)
    if error is None and not is_dead(intent.owner):
        return Busy(intent.owner, "kick-off")
    first = facts.intents[0].at
    if error is not None and error.retry_at is not None:
        if error.retry_at > first + policy.deadline:
            return Reject(
                f"the server did not take the request within {_hours(policy.deadline)}: {error.reason}",
                "Look at the server's load, and for an export of this client that still runs there",
            )
        return KickOff(intent.number + 1, error.reason, error.retry_at)
    failed = sum(1 for each in facts.intents if not _was_put_off(facts, each.number))
    reason = error.reason if error else "the request was sent, perhaps, and no answer was recorded"
    if failed >= MAX_KICKOFF_FAILURES or now > first + policy.deadline:
        advice = (error.advice if error else "") or "`fhir-export check` finds the cause"
        return Reject(f"{failed} kick-off requests failed; the last one: {reason}", advice)
    return KickOff(intent.number + 1, reason, intent.at + _backoff(failed, seconds=5))


def _was_put_off(facts: Facts, number: int) -> bool:
    error = facts.intent_errors.get(number)
    return error is not None and error.retry_at is not None


def counted_failures(facts: Facts) -> int:
    """Attempts since the last receipt that failed, one that died without a word included.

    Passing trouble (network, an overloaded server) does not count: it is tried again up to the deadline.
    """
    return sum(error is None or (error.counts and not error.transient) for error in _endings(facts))


def _endings(facts: Facts) -> list[AttemptError | None]:
    """How each attempt since the last receipt ended; None for one that died without a word."""
    return [
        facts.attempt_errors.get(claim.number)
        for claim in facts.claims
        if claim.number > facts.settled_attempt
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
    error = facts.attempt_errors.get(claim.number)
    return error.reason if error else f"attempt {claim.number} died (its run or process ended without a word)"


def _retry_at(facts: Facts, number: int) -> datetime | None:
    error = facts.attempt_errors.get(number)
    if error is None:
        return None  # a killed run: nothing speaks against going on at once
    ended_so = sum(each is not None and each.transient == error.transient for each in _endings(facts))
    return error.at + _backoff(ended_so, seconds=30 if error.transient else 3)


def _backoff(failures: int, *, seconds: int) -> timedelta:
    return timedelta(seconds=min(seconds * 4 ** min(failures - 1, 9), 3600))


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:g} hours"


def is_open(facts: Facts, step: Step) -> bool:
    """Whether the export still stands in the way of the next scheduled one of its source."""
    return facts.receipt is None and isinstance(step, KickOff | Poll | Ingest | Busy | Hold | Reject)


def describe(facts: Facts, step: Step, now: datetime) -> tuple[str, str]:
    """State and explanation for people: (`running`, `the server works on it`)."""
    match step:
        case Damaged(names):
            return "damaged", f"cannot be read: {', '.join(names)}; restore them, nothing is done until then"
        case Tidy():
            return _describe_closed(facts, "published")
        case Closed(state):
            return _describe_closed(facts, state)
        case KickOff(number, reason, at):
            if number == 1:
                return "planned", "not asked for yet"
            when = f"; asked again at {at:%H:%M:%S} UTC" if at and at > now else "; to be asked again"
            return _kickoff_state(facts, number - 1), reason + when
        case Poll(overdue):
            return "running", "past its deadline" if overdue else "the server works on it"
        case Busy(owner, what):
            return ("requesting" if what == "kick-off" else "ingesting"), f"{what} by run {owner.run_id}"
        case Ingest(attempt, reason, _):
            return "failing", f"attempt {attempt} is next; {reason}"
        case Hold(reason):
            return "failing", f"to be held: {reason}"
        case Reject(reason, _):
            return "failing", f"to be rejected: {reason}"


def _kickoff_state(facts: Facts, number: int) -> str:
    """waiting: the server said later; failing: certainly no job; uncertain: there may be one."""
    if _was_put_off(facts, number):
        return "waiting"
    error = facts.intent_errors.get(number)
    return "failing" if error is not None and error.certain else "uncertain"


def _describe_closed(facts: Facts, state: str) -> tuple[str, str]:
    closing: ClosingFact | None = facts.closings.get(state)
    if closing is not None:
        return state, f"{closing.reason}. {closing.advice}" if closing.advice else closing.reason
    receipt = facts.receipt
    if receipt is None:
        return state, ""
    if receipt.incomplete:
        return state, "incomplete, so the watermark stays: " + "; ".join(receipt.incomplete)
    return state, "complete and verified"
