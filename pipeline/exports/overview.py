"""Export runs for people: how far each one is, why, and what is next. Reads facts, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline.config import Config, Source
from pipeline.errors import ConfigError
from pipeline.exports.facts import TableCounts
from pipeline.exports.flattening import standing, wanted_names
from pipeline.exports.identity import require_export_id
from pipeline.exports.ledger import Facts, Ledger
from pipeline.exports.owner import Owner, this_process
from pipeline.exports.session import Session
from pipeline.exports.state import (
    Busy,
    Closed,
    Damaged,
    Hold,
    Ingest,
    KickOff,
    Poll,
    Reject,
    Step,
    Tidy,
    describe,
)

_NEW_RUN = "nothing; a new export run asks for everything again"
_AFTER_CLOSING = {
    "published": "nothing",
    "withdrawn": "nothing",
    "held": "remove the cause, then materialize its partition again; the schedule goes on without it",
    "gone": _NEW_RUN,
    "rejected": _NEW_RUN,
    "cancelled": _NEW_RUN,
}
_SHOWN_PARAMETERS = ("level", "group", "types", "since", "until", "elements")


@dataclass(frozen=True)
class ExportSummary:
    """One export run in a list."""

    source: str
    export_id: str
    state: str
    reason: str
    next_step: str
    age: timedelta
    """Since the moment that its id names."""
    tables: Mapping[str, TableCounts] = field(default_factory=dict)
    """Of the receipt that counts; empty without one."""
    quarantined: int = 0
    """Bad lines in the receipt that counts, those of no table included."""

    @property
    def label(self) -> str:
        return f"{self.source}/{self.export_id}"

    @property
    def rows(self) -> int | None:
        """None while nothing is published."""
        return sum(table.rows for table in self.tables.values()) if self.tables else None

    def as_json(self) -> dict[str, object]:
        """JSON members; `age_seconds` whole, `rows` null while nothing is published."""
        return {
            "source": self.source,
            "export_id": self.export_id,
            "state": self.state,
            "reason": self.reason,
            "next_step": self.next_step,
            "age_seconds": int(self.age.total_seconds()),
            "rows": self.rows,
            "quarantined": self.quarantined,
            "tables": {name: table.rows for name, table in sorted(self.tables.items())},
        }


@dataclass(frozen=True)
class Event:
    """Something that happened to an export run."""

    at: datetime
    what: str


@dataclass(frozen=True)
class ExportDetails:
    """All that is known of one export run and may be shown: no URL with a query, no content."""

    summary: ExportSummary
    parameters: Mapping[str, object]
    """What was asked for, as far as it names no patients."""
    since_reason: str | None
    transaction_time: str | None
    watermark: str | None
    files: int | None
    deleted: int | None
    error_entries: Mapping[str, int]
    quarantine: tuple[str, ...]
    """The files that name the bad lines, from the lake's root."""
    flat: Mapping[str, int | None]
    """Rows by flat table, of those that the configuration wants; None where it is missing or stale."""
    history: tuple[Event, ...]
    folder: str
    """Where its facts lie, from the lake's root."""

    def as_json(self) -> dict[str, object]:
        """The summary's members and more; `tables` with all counts here."""
        return {
            **self.summary.as_json(),
            "tables": {name: each.model_dump() for name, each in sorted(self.summary.tables.items())},
            "parameters": dict(self.parameters),
            "since_reason": self.since_reason,
            "transaction_time": self.transaction_time,
            "watermark": self.watermark,
            "files": self.files,
            "deleted": self.deleted,
            "error_entries": dict(self.error_entries),
            "quarantine": list(self.quarantine),
            "flat_tables": dict(sorted(self.flat.items())),
            "history": [{"at": event.at.isoformat(), "what": event.what} for event in self.history],
            "folder": self.folder,
        }


def watching_session(
    config: Config, source: Source, is_dead: Callable[[Owner], bool] = Owner.process_is_dead
) -> Session:
    """A session that only looks."""
    return Session(config, source, this_process("look"), is_dead=is_dead)


def summaries(session: Session, limit: int | None = None) -> list[ExportSummary]:
    """The export runs of a source, newest first, at most `limit`. Raises `LakeError`."""
    newest = session.ledger.export_ids()[::-1]
    return [summary(session, session.ledger.read(export_id)) for export_id in newest[:limit]]


def summary(session: Session, facts: Facts) -> ExportSummary:
    """What the rules say of one export run at this moment."""
    now = session.now()
    step = session.next_step(facts)
    state, reason = describe(facts, step, now)
    return ExportSummary(
        source=facts.source,
        export_id=facts.export_id,
        state=state,
        reason=reason,
        next_step=in_words(step, now),
        age=max(now - _moment_of(facts.export_id), timedelta(0)),
        tables=facts.receipt.tables if facts.receipt else {},
        quarantined=facts.receipt.quarantined if facts.receipt else 0,
    )


def _moment_of(export_id: str) -> datetime:
    return datetime.strptime(export_id, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def details(session: Session, export_id: str) -> ExportDetails:
    """All that is known of one export run. Raises `LakeError`."""
    facts = session.ledger.read(export_id)
    intent = facts.intents[-1] if facts.intents else None
    asked = intent.parameters if intent else {}
    receipt = facts.receipt
    return ExportDetails(
        summary=summary(session, facts),
        parameters={name: asked[name] for name in _SHOWN_PARAMETERS if asked.get(name)},
        since_reason=intent.since_reason if intent else None,
        transaction_time=facts.manifest.transaction_time if facts.manifest else None,
        watermark=receipt.watermark if receipt else None,
        files=receipt.files if receipt else None,
        deleted=receipt.deleted if receipt else None,
        error_entries=receipt.error_entries if receipt else {},
        quarantine=receipt.quarantine if receipt else (),
        flat=standing(session, export_id, wanted_names(session.source, receipt.tables)) if receipt else {},
        history=history(facts),
        folder=session.ledger.folder(export_id),
    )


def history(facts: Facts) -> tuple[Event, ...]:
    """What happened, in the order of time."""
    return tuple(sorted(_events(facts), key=lambda event: event.at))


def _events(facts: Facts) -> Iterator[Event]:
    for intent in facts.intents:
        yield Event(intent.at, f"kick-off request {intent.number} by run {intent.owner.run_id}")
    for number, refused in facts.intent_errors.items():
        yield Event(refused.at, f"kick-off request {number} brought no job: {refused.reason}")
    if facts.request:
        yield Event(facts.request.at, f"accepted by the server (request {facts.request.intent})")
    if facts.manifest:
        yield Event(facts.manifest.at, f"manifest stored, transactionTime {facts.manifest.transaction_time}")
    for claim in facts.claims:
        yield Event(claim.at, f"ingest attempt {claim.number} by run {claim.owner.run_id}")
    for number, failed in facts.attempt_errors.items():
        yield Event(failed.at, f"attempt {number} failed ({failed.kind}): {failed.reason}")
    for publication in facts.publications:
        yield Event(publication.at, f"tables committed by attempt {publication.attempt}")
    for receipt in facts.receipts:
        bad = f", {receipt.quarantined} lines in quarantine" if receipt.quarantined else ""
        yield Event(receipt.at, f"receipt of attempt {receipt.attempt}: {receipt.rows} rows verified{bad}")
    for name, closing in facts.closings.items():
        yield Event(closing.at, f"{name}: {closing.reason}")
    if facts.released:
        yield Event(facts.released.at, f"released on the server: {facts.released.reason}")


def in_words(step: Step, now: datetime) -> str:
    """What is next, in words for the person on duty."""
    match step:
        case Damaged():
            return "restore the damaged facts from a backup"
        case KickOff(number, _, at):
            return f"kick-off request {number}{_when(at, now)}"
        case Poll(overdue):
            return "ask the server once more, then cancel" if overdue else "ask the server how far it is"
        case Busy(owner, what):
            return f"wait for run {owner.run_id} ({what})"
        case Ingest(attempt, _, at):
            return f"ingest, attempt {attempt}{_when(at, now)}"
        case Hold():
            return "hold it, so that the schedule goes on"
        case Reject(_, advice):
            return f"give it up. {advice}" if advice else "give it up"
        case Tidy(release, drop_raw):
            work = ["release the job on the server"] * release + ["drop the raw bytes"] * drop_raw
            return " and ".join(work)
        case Closed(state):
            return _AFTER_CLOSING.get(state, "nothing")


def _when(at: datetime | None, now: datetime) -> str:
    return f" at {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if at is not None and at > now else ""


def find_export(config: Config, text: str) -> tuple[Source, str]:
    """The export run that EXPORT names: `SOURCE/ID`, or an ID that only one source has.

    Raises `ConfigError` naming the candidates, `LakeError`.
    """
    name, slash, export_id = text.rpartition("/")
    if slash:
        source = config.source(name)
        if require_export_id(export_id) not in _ids(config, source):
            raise ConfigError(
                f"{source.name} has no export run {export_id}",
                f"`fhir-export exports {source.name}` lists them",
            )
        return source, export_id
    require_export_id(text)
    having = [source for source in config.sources if text in _ids(config, source)]
    if len(having) == 1:
        return having[0], text
    if having:
        names = ", ".join(f"{source.name}/{text}" for source in having)
        raise ConfigError(f"{len(having)} sources have an export run {text}", f"Name one of: {names}")
    raise ConfigError(f"no source has an export run {text}", "`fhir-export exports` lists them")


def _ids(config: Config, source: Source) -> list[str]:
    return Ledger(watching_session(config, source).lake, source.name).export_ids()
