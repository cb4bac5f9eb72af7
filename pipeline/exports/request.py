"""The kick-off: intent first, then the request, then what came of it (design, Facts)."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.config import Source
from pipeline.errors import (
    ConfigError,
    ExportError,
    KickoffRejected,
    LakeError,
    StillRunning,
    Unreachable,
)
from pipeline.exports.closing import reject
from pipeline.exports.connection import profile_of
from pipeline.exports.facts import Intent, IntentError, MembersFact, Request, Unprepared
from pipeline.exports.identity import require_export_id
from pipeline.exports.ledger import Facts
from pipeline.exports.members import joined_digests
from pipeline.exports.planning import Members, NothingToAsk, Plan, plan_export
from pipeline.exports.session import Session
from pipeline.exports.state import Busy, Closed, KickOff, Reject
from pipeline.exports.watermark import moves_a_watermark

if TYPE_CHECKING:
    from pipeline.bulkdata.parameters import KickoffParameters
    from pipeline.bulkdata.profiles import Profile

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 300.0
_NOTHING = "Nothing is to be done"
"""Seconds between two kick-off requests, each of which leaves its facts: a day has some hundreds at most."""


def request_export(session: Session, export_id: str, patience: timedelta = timedelta(minutes=2)) -> Facts:
    """Kicks the export off, once, and returns its facts; one that was accepted before is left as it is.

    Waits up to `patience` when the server wants to be asked again later; beyond that the sensor asks again.
    Raises `KickoffRejected`, `AuthError`, `ConfigError`, `Unreachable`, `StillRunning`, `LakeError`.
    """
    require_export_id(export_id)
    give_up = session.now() + patience
    while True:
        facts = session.ledger.read(export_id)
        if facts.request or _adopt(session, facts):
            return session.ledger.read(export_id)
        step = _kickoff_step(session, facts)
        pause = (step.not_before - session.now()).total_seconds() if step.not_before else 0
        if pause > 0:
            if session.now() + timedelta(seconds=pause) > give_up:
                raise Unreachable(
                    f"{facts.label} is not accepted yet: {step.reason}", "It is asked again later", pause
                )
            session.log(f"asking again in {pause:.0f} s: {step.reason}")
            time.sleep(pause)
        try:
            return _ask(session, facts, step.number)
        except Unreachable as error:
            session.log(str(error))
            if session.now() >= give_up:
                raise


def _kickoff_step(session: Session, facts: Facts) -> KickOff:
    step = session.next_step(facts)
    match step:
        case KickOff():
            return step
        case Busy(owner, _) if owner != session.owner:
            raise StillRunning(f"run {owner.run_id} is asking for {facts.label} at this moment")
        case Busy():  # our own last try, which brought no answer
            last = facts.intents[-1]
            return KickOff(last.number + 1, "no answer", last.at + timedelta(seconds=5 * len(facts.intents)))
        case Reject(reason, advice):
            reject(session, facts.export_id, step)
            raise KickoffRejected(reason, advice)
        case Closed(state):
            raise KickoffRejected(
                f"{facts.label} is {state}; it is not asked for again", "Start a new export run"
            )
        case _:
            raise LakeError(f"{facts.label} has damaged facts: {', '.join(facts.damaged)}", "Restore them")


def asked_for(source: Source, profile: Profile) -> KickoffParameters:
    """What the configuration asks for, without a time window. Raises `ConfigError`."""
    from pipeline.bulkdata.parameters import KickoffParameters

    export = source.export
    _require_known_types(export.types or ())
    return KickoffParameters(
        level=export.level,
        group=export.group,
        types=export.types or (),
        type_filters=export.type_filters,
        elements=export.elements,
        output_format=profile.output_format,
        include_associated_data=("_deleted",) if profile.ask_for_deleted and not export.type_filters else (),
    )


def _require_known_types(types: tuple[str, ...]) -> None:
    from pipeline.tables.definitions import is_resource_type, resource_types

    for each in types:
        if not is_resource_type(each):
            near = difflib.get_close_matches(each, resource_types(), 1, cutoff=0.7)
            meant = f"Write {near[0]} in export.types" if near else "Correct export.types"
            raise ConfigError(f"{each!r} is not a resource type of FHIR R4", meant)


def plan_kickoff(session: Session, facts: Facts, members: Members | None = None) -> Plan:
    """The next kick-off of this export run, `_since` and the end of the window included.

    `members`: who is in the group, where that was looked up. Raises `ConfigError`, `NothingToAsk`,
    `LakeError`, and for a supplement `Unreachable`.
    """
    asked = asked_for(session.source, session.profile)
    line, wanted = line_of(session.source, asked), fingerprint(session.source, asked)
    plan = plan_export(session, asked, facts, members or Members(session), line, wanted)
    if plan.parameters.patients:
        return plan  # no later export begins there
    until = _until(session, plan.since.value)
    return replace(plan, parameters=replace(plan.parameters, until=until))


def _until(session: Session, since: str | None) -> str | None:
    """The end of the time window, for servers that may miss what is written while they export.

    Microsoft's `transactionTime` is the job's creation (azure-and-aidbox D): data that is being written at
    that moment may be visible only later, with an earlier `lastUpdated`.
    """
    lag = session.profile.until_lag
    if lag is None or not moves_a_watermark(session.source, session.profile):
        return None  # no later export begins there: an end would only leave out what is newest
    until = (session.now() - timedelta(seconds=lag)).replace(microsecond=0)
    if since is not None and datetime.fromisoformat(since) >= until:
        return None
    return until.isoformat().replace("+00:00", "Z")


def fingerprint(source: Source, parameters: KickoffParameters) -> str:
    """What exports must have in common to share a watermark: server, who asks, what for, and from when.

    An export from a configured instant on has not what was before it.
    """
    since = source.export.since if source.export.since not in ("auto", "never") else None
    auth = source.auth
    # What was not granted then is not in the exports before, and `_since` would leave it out for ever.
    granted = [auth.client_id, auth.scope or profile_of(source).scope] if auth.kind == "smart" else []
    parts = [source.fhir_url, source.tenant, since, parameters.fingerprint(), *granted]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def line_of(source: Source, asked: KickoffParameters) -> str:
    """What exports have in common that go on from each other: everything but the types."""
    return fingerprint(source, replace(asked, types=(), patients=()))


def _intend(session: Session, facts: Facts, number: int) -> KickoffParameters:
    """Plans the kick-off and writes the intent down; nothing is asked for yet."""
    export_id = facts.export_id
    try:
        members = Members(session)
        plan = plan_kickoff(session, facts, members)
    except NothingToAsk as nothing:
        reject(session, export_id, Reject(str(nothing), _NOTHING))
        raise KickoffRejected(f"{facts.label}: {nothing}", _NOTHING) from None
    except Exception as error:
        _note_unprepared(session, facts, number, error)
        raise
    parameters = plan.parameters
    line = line_of(session.source, asked_for(session.source, session.profile))
    intent = Intent(
        at=session.now(),
        number=number,
        owner=session.owner,
        # Who they are is nobody's business who reads the facts.
        parameters=asdict(replace(parameters, patients=())),
        fingerprint=fingerprint(session.source, parameters),
        since_reason=plan.since.reason,
        line=line,
        lacks=plan.lacks,
        patients=len(parameters.patients) or None,
        deletes_from=plan.deletes_from,
    )
    name = "intent.json" if number == 1 else f"intent-{number:04d}.json"
    if not session.ledger.write(export_id, name, intent):
        raise StillRunning(f"another run is asking for {facts.label} at this moment")
    _remember_members(session, export_id, number, plan)
    # Withdrawn since: it would leave a hole. Or it has become a supplement.
    if not _is_so_still(session, facts, members, plan):
        moved = Unreachable("the watermark moved while the request was prepared", "It is asked again")
        _note(session, export_id, number, moved)
        raise moved
    return parameters


def _ask(session: Session, facts: Facts, number: int) -> Facts:
    from pipeline.bulkdata.answers import Throttled

    export_id = facts.export_id
    parameters = _intend(session, facts, number)
    try:
        session.connection.sign_in()
    except ConfigError as error:  # asking again changes nothing
        _note(session, export_id, number, error)
        reject(session, export_id, Reject(error.cause, error.advice))
        raise
    except ExportError as error:  # nothing was asked for: certainly no job
        _note(session, export_id, number, error)
        raise
    try:
        answer = session.client.kick_off(parameters)
    except KickoffRejected as error:
        _note(session, export_id, number, error)
        reject(session, export_id, Reject(error.cause, error.advice))
        raise
    except Unreachable as error:
        _note(session, export_id, number, error, certain=False)
        raise
    except ExportError as error:
        _note(session, export_id, number, error)
        raise
    if isinstance(answer, Throttled):
        orphan = any(_unanswered(facts, each) for each in facts.intents)
        advice = (
            "An earlier request brought no answer: the job that keeps the server busy may be its orphan"
            if orphan
            else ""
        )
        again = _again(session, number, answer.retry_after)
        reason = f"the server takes no export now ({answer.reason})"
        fact = IntentError(at=session.now(), reason=reason, advice=advice, retry_at=again)
        session.ledger.write(export_id, f"intent-{number:04d}.error.json", fact)
        raise Unreachable(reason, advice, answer.retry_after)
    _accept(session, export_id, number, answer.status_url)
    return session.ledger.read(export_id)


def _is_so_still(session: Session, facts: Facts, members: Members, plan: Plan) -> bool:
    now = session.ledger.read(facts.export_id)
    try:
        again = plan_kickoff(session, now, members)
    except (ExportError, NothingToAsk):
        return False
    return now.supplement_of == facts.supplement_of and _left_out(again) == _left_out(plan)


def _left_out(plan: Plan) -> tuple[object, ...]:
    return plan.parameters.since, plan.parameters.types, plan.joined, plan.deletes_from


def _remember_members(session: Session, export_id: str, number: int, plan: Plan) -> None:
    if plan.members is not None:
        fact = MembersFact(
            at=session.now(), digests=joined_digests(plan.members), joined=joined_digests(plan.joined)
        )
        session.ledger.write(export_id, f"members-{number:04d}.json", fact)


def _again(session: Session, number: int, retry_after: float) -> datetime:
    """When the server wants to be asked again; who says 'at once' over and over is asked less and less."""
    least = min(_FIRST_PAUSE * 2 ** min(number - 1, 32), _LONGEST_PAUSE)
    return session.now() + timedelta(seconds=max(retry_after, least))


def _unanswered(facts: Facts, intent: Intent) -> bool:
    error = facts.intent_errors.get(intent.number)
    return error is None or not error.certain


def _note(session: Session, export_id: str, number: int, error: ExportError, *, certain: bool = True) -> None:
    again = None
    if isinstance(error, Unreachable) and error.retry_after:
        again = _again(session, number, error.retry_after)
    fact = IntentError(
        at=session.now(), reason=error.cause, advice=error.advice, retry_at=again, certain=certain
    )
    session.ledger.write(export_id, f"intent-{number:04d}.error.json", fact)


def _note_unprepared(session: Session, facts: Facts, number: int, error: Exception) -> None:
    """For one that others know of: it must neither be tried for ever nor stand in the schedule's way."""
    if facts.succeeds is None and not facts.intents:
        return  # nobody will try it again: the error is all there is
    known = error if isinstance(error, ExportError) else ExportError(f"unexpected {type(error).__name__}")
    fact = Unprepared(at=session.now(), intent=number, reason=known.cause, advice=known.advice)
    session.ledger.write(facts.export_id, f"unprepared-{len(facts.unprepared) + 1:04d}.json", fact)


def _accept(session: Session, export_id: str, number: int, status_url: str) -> None:
    """Remembers the status URL in two places, the second also when the first fails."""
    try:
        session.witness.accepted(export_id, number, status_url)
    except Exception as error:  # noqa: BLE001 - whatever failed there must not lose the status URL
        session.log(f"the accepted kick-off could not be observed: {type(error).__name__}")
    request = Request(at=session.now(), intent=number, status_url=status_url, owner=session.owner)
    session.ledger.write(export_id, "request.json", request)


def _adopt(session: Session, facts: Facts) -> bool:
    """Finds a job that was accepted although the fact could not be written."""
    if not facts.intents:
        return False
    found = session.witness.find_accepted(facts.export_id)
    if found is None:
        return False
    number, status_url = found
    request = Request(at=session.now(), intent=number, status_url=status_url, owner=session.owner)
    session.ledger.write(facts.export_id, "request.json", request)
    session.log("adopted the job that an earlier run had been given")
    return True


def require_request(facts: Facts) -> Request:
    """The accepted request. Raises `ConfigError` when this export was never kicked off."""
    if facts.request is None:
        raise ConfigError(
            f"{facts.label} has no accepted kick-off", "Materialize export_request of this partition first"
        )
    return facts.request
