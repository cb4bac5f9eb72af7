"""What the next export of a source asks for: all of it, or what changed since; and what that leaves out.

Nothing is sent here but the look at the Group. A `_since` is sent only where nothing is lost by it; in every
other case the export is full, and says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pipeline.errors import ExportError, LakeError, Unreachable
from pipeline.exports.facts import Lacks
from pipeline.exports.ledger import Facts
from pipeline.exports.lost_marks import why_full_again
from pipeline.exports.members import Member, look_up, split_digests
from pipeline.exports.session import Session
from pipeline.exports.watermark import (
    Mark,
    Since,
    complete_exports,
    covered_members,
    earliest,
    is_sound,
    last_full,
    marks_of,
    moves_a_watermark,
    supplements,
    with_overlap,
)

if TYPE_CHECKING:
    from pipeline.bulkdata.parameters import KickoffParameters
    from pipeline.config import Source

_MOST_JOINED = 5_000
"""More new members than these are asked for with everybody else: their ids are one request's body."""


@dataclass(frozen=True)
class Plan:
    """One kick-off."""

    parameters: KickoffParameters
    since: Since
    lacks: Lacks = field(default_factory=Lacks)
    members: frozenset[str] | None = None
    """Digests of the group's members, for a supplement of those that it asks for; None: nobody knows."""
    joined: frozenset[str] = frozenset()
    """Those of them whose history is not in the lake yet."""
    deletes_from: str | None = None
    """Of a full export: the mark that was reached before it."""


class NothingToAsk(Exception):
    """A supplement that is not needed any more; the text says why."""


class Members:
    """The group's members, looked up once for a kick-off."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.found: dict[str, Member] | None = None
        self.why_not = ""
        source = session.source
        matter = moves_a_watermark(source, session.profile) or _full_and_to_be_compared(source)
        if source.export.level == "group" and matter:
            try:
                self.found = look_up(session)
            except ExportError as error:
                self.why_not = error.cause

    @property
    def digests(self) -> frozenset[str] | None:
        return None if self.found is None else frozenset(self.found)


def plan_export(
    session: Session, asked: KickoffParameters, facts: Facts, members: Members, line: str, fingerprint: str
) -> Plan:
    """`asked`: what the configuration asks for, without a time window.

    Raises `NothingToAsk`, `LakeError`, and for a supplement `Unreachable`.
    """
    if facts.supplement_of:
        return _supplement(session, asked, facts, members, line)
    source = session.source
    if source.export.since == "never":
        return Plan(asked, Since(None, "full: since is never"), members=members.digests)
    if source.export.since != "auto":
        wanted = source.export.since
        return Plan(replace(asked, since=wanted), Since(wanted, "the instant in the configuration"))
    if not is_sound(source, session.profile):
        reason = _unsound(source, session.profile.since_levels)
        return Plan(asked, Since(None, reason), members=members.digests)
    return _auto(session, asked, members, line, fingerprint)


def _full_and_to_be_compared(source: Source) -> bool:
    """Whether it matters who is in the group although each export is full."""
    compared = source.on_leave == "hide" or source.export.infer_deletes
    return compared and source.export.since in ("auto", "never")


def _unsound(source: Source, levels: tuple[str, ...]) -> str:
    level = source.export.level
    instead = " (at level system it does not)" if "system" in levels else ""
    return f"full: with _since at level {level} this server leaves out changes of unchanged patients{instead}"


def _auto(session: Session, asked: KickoffParameters, members: Members, line: str, fingerprint: str) -> Plan:
    def full(why: str) -> Plan:
        joined = _joined(session, marks, members) if marks else None
        return Plan(
            asked,
            Since(None, f"full: {why}"),
            members=members.digests,
            joined=joined or frozenset(),
            deletes_from=earliest(marks.values()) if marks and not inferred else None,
        )

    inferred = session.source.export.infer_deletes
    marks = marks_of(complete_exports(session, line, fingerprint), asked.types, deletes=not inferred)
    if not marks:
        return full("no complete export of the same parameters yet")
    resync = _resync_due(session, line, fingerprint)
    if resync:
        return full(resync)
    added = tuple(each for each in asked.types if each not in marks)
    refused = _refused_types(session, marks, added)
    if refused:
        return full(f"the server has refused the supplement {refused} of {', '.join(added)}")
    since = Since(_since(session, marks), "the transactionTime of the last complete export")
    if added:
        since = Since(since.value, f"{since.reason}; {', '.join(added)}: in full, by a supplement")
    going_on = replace(
        asked,
        types=tuple(each for each in asked.types if each in marks),
        type_filters=_filters_without(asked, added),
        since=since.value,
    )
    plan = Plan(going_on, since, Lacks(types=added))
    if session.source.export.level != "group":
        return plan
    why = _why_all_members(session, marks, members)
    if why:
        return full(why)
    return _for_members(session, marks, members, plan)


def _since(session: Session, marks: Mapping[str, Mark]) -> str:
    configured = session.source.export.since_overlap
    overlap = session.profile.since_overlap if configured is None else configured
    return with_overlap(earliest(marks.values()), overlap)


def _filters_without(asked: KickoffParameters, types: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in asked.type_filters if each.partition("?")[0] not in types)


def _resync_due(session: Session, line: str, fingerprint: str) -> str:
    """Why a full export is due by `full_resync`; empty: it is not."""
    from cronsim import CronSim

    cron = session.source.full_resync
    noted = bool(session.lake.names(f"{session.source.name}/resync"))
    last = last_full(complete_exports(session, line, fingerprint)) if cron or noted else None
    if noted and (why := why_full_again(session, line, last)):
        return why
    if cron is None:
        return ""
    if last is None:
        return f"full_resync ({cron}) is due: there is no complete full export"
    due = next(CronSim(cron, last.astimezone(ZoneInfo(session.source.timezone))))
    return f"full_resync ({cron}) is due" if due <= session.now() else ""


def _joined(session: Session, marks: Mapping[str, Mark], members: Members) -> frozenset[str] | None:
    covered = covered_members(session, marks.values())
    if covered is None or members.digests is None:
        return None
    return members.digests - covered


def _why_all_members(session: Session, marks: Mapping[str, Mark], members: Members) -> str:
    """Why a `_since` would lose the history of members; empty: it would not, or a supplement brings it."""
    if members.digests is None:
        return f"who is in the group cannot be told: {members.why_not}"
    joined = _joined(session, marks, members)
    if joined is None:
        return "nobody knows who was in the group at the last complete export"
    if not joined:
        return ""
    who = f"{len(joined)} of {len(members.digests)} members have joined the group since"
    if len(joined) > min(_MOST_JOINED, len(members.digests) // 2):
        return who
    if not session.profile.patient_list:
        return f"{who}, and this server takes no list of patients"
    refused = _refused_list(session, marks)
    return f"{who}, and the server has refused the list of patients of {refused}" if refused else ""


def _for_members(session: Session, marks: Mapping[str, Mark], members: Members, plan: Plan) -> Plan:
    joined = _joined(session, marks, members) or frozenset()
    if not joined:
        return replace(plan, members=members.digests)
    reason = f"{plan.since.reason}; {len(joined)} new members of the group: in full, by a supplement"
    return replace(
        plan,
        since=Since(plan.since.value, reason),
        lacks=Lacks(types=plan.lacks.types, patients=len(joined)),
        members=members.digests,
        joined=joined,
    )


def _refused_list(session: Session, marks: Mapping[str, Mark]) -> str:
    """The supplement that the server would not make, if any."""
    for each in _refused(session, marks):
        if each.intents[-1].patients is not None:
            return each.export_id
    return ""


def _refused_types(session: Session, marks: Mapping[str, Mark], added: Sequence[str]) -> str:
    """The same, of types that were added: some go together with others only."""
    for each in _refused(session, marks):
        intent = each.intents[-1]
        if intent.patients is None and {*intent.parameters.get("types", ())} & {*added}:
            return each.export_id
    return ""


def _refused(session: Session, marks: Mapping[str, Mark]) -> Iterator[Facts]:
    for mark in marks.values():
        for each in supplements(session, mark.facts):
            if "rejected" in each.closings and each.intents:
                yield each


# --- supplements -------------------------------------------------------------------------------------------


def _supplement(
    session: Session, asked: KickoffParameters, facts: Facts, members: Members, line: str
) -> Plan:
    """With the parameters of the export that it completes: the types may have changed meanwhile."""
    main, lacks = (
        session.ledger.read(facts.supplement_of),
        facts.succeeds.lacks if facts.succeeds else Lacks(),
    )
    intent = main.asked
    if intent is None:
        raise LakeError(f"{main.label} has no request that can be read", "Restore its facts")
    if main.closings.keys() & {"withdrawing", "withdrawn"}:
        raise NothingToAsk(f"{main.export_id} is withdrawn")
    if intent.line != line or not moves_a_watermark(session.source, session.profile):
        raise NothingToAsk(f"something else is exported now than in {main.export_id}: the next one is full")
    if asked.level == "group" and members.found is None:
        raise Unreachable(f"who is in the group cannot be told: {members.why_not}")
    fact = session.ledger.members(main.export_id, intent.number)
    joined = split_digests(fact.joined) if fact else set()
    there = {digest: member for digest, member in (members.found or {}).items() if digest in joined}
    if lacks.types:
        return _added_types(asked, main, lacks.types, members, frozenset(there))
    if not there:
        raise NothingToAsk("those who had joined the group have left it again")
    patients = tuple(sorted({member.patient for member in there.values()}))
    reason = f"full: {len(patients)} patients had joined the group before {main.export_id}"
    wanted = replace(_of_types(asked, intent.parameters.get("types", ())), patients=patients)
    return Plan(wanted, Since(None, reason), members=frozenset(there))


def _added_types(
    asked: KickoffParameters, main: Facts, types: tuple[str, ...], members: Members, joined: frozenset[str]
) -> Plan:
    """Of everybody; who joined at the same time comes in a supplement behind this one."""
    wanted = tuple(each for each in types if each in asked.types or not asked.types)
    if not wanted:
        raise NothingToAsk(f"{', '.join(types)}: not exported any more")
    reason = f"full: {', '.join(wanted)} came to the exports with {main.export_id}"
    return Plan(_of_types(asked, wanted), Since(None, reason), members=members.digests, joined=joined)


def _of_types(asked: KickoffParameters, types: Sequence[str]) -> KickoffParameters:
    """With the filters on those only; no types: whatever the server gives."""
    filters = [each for each in asked.type_filters if not types or each.partition("?")[0] in types]
    return replace(asked, types=tuple(types), type_filters=tuple(filters))
