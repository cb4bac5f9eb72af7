"""What is next for an export run that the server has not accepted yet: rules, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from pipeline.exports.facts import Succeeds, Unprepared
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import Owner
from pipeline.exports.steps import Busy, KickOff, Policy, Reject, Step

MAX_KICKOFF_FAILURES = 5
"""Tries that ended neither in an answer nor in a 'later': then an operator has to look."""


def before_request(facts: Facts, now: datetime, policy: Policy, is_dead: Callable[[Owner], bool]) -> Step:
    """A request, now or later, or the end where it cannot be done."""
    asked = facts.intents[-1].number if facts.intents else 0
    in_vain = [each for each in facts.unprepared if each.intent > asked]
    if in_vain or not asked:
        return _before_intent(facts, in_vain, asked + 1, now, policy)
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
    failed = sum(1 for each in facts.intents if not was_put_off(facts, each.number))
    reason = error.reason if error else "the request was sent, perhaps, and no answer was recorded"
    if failed >= MAX_KICKOFF_FAILURES or now > first + policy.deadline:
        advice = (error.advice if error else "") or "`fhir-export check` finds the cause"
        return Reject(f"{failed} kick-off requests failed; the last one: {reason}", advice)
    return KickOff(intent.number + 1, reason, intent.at + backoff(failed, seconds=5))


def _before_intent(
    facts: Facts, in_vain: Sequence[Unprepared], number: int, now: datetime, policy: Policy
) -> Step:
    """`in_vain`: how often what is to be asked for could not be told, since the last request."""
    begun = min((each.at for each in [*facts.intents, *facts.unprepared, *_opened(facts)]), default=now)
    if in_vain:
        last = in_vain[-1]
        if len(in_vain) >= MAX_KICKOFF_FAILURES or now > begun + policy.deadline:
            reason = f"the request could not be prepared {len(in_vain)} times; the last time: {last.reason}"
            return Reject(reason, last.advice or "`fhir-export check` finds the cause")
        return KickOff(number, last.reason, last.at + backoff(len(in_vain), seconds=5))
    if facts.succeeds is None:
        return KickOff(number, "new")
    if now > begun + policy.deadline:
        return Reject(
            f"nobody asked for it within {_hours(policy.deadline)}", "The next export makes up for it"
        )
    how = "supplement" if facts.supplement_of else "asked again"
    return KickOff(number, f"{how}: {facts.succeeds.reason}")


def _opened(facts: Facts) -> tuple[Succeeds, ...]:
    return (facts.succeeds,) if facts.succeeds else ()


def was_put_off(facts: Facts, number: int) -> bool:
    """Whether the server said 'later' to that request."""
    error = facts.intent_errors.get(number)
    return error is not None and error.retry_at is not None


def backoff(failures: int, *, seconds: int) -> timedelta:
    """The pause after so many failures: `seconds` after the first, four times as long after each more."""
    return timedelta(seconds=min(seconds * 4 ** min(failures - 1, 9), 3600))


def _hours(span: timedelta) -> str:
    return f"{span.total_seconds() / 3600:g} hours"
