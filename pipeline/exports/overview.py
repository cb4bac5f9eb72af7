"""Export runs for people: how far each one is, why, and what is next. Reads facts, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline.config import Config, Source
from pipeline.errors import ConfigError
from pipeline.exports.advice import in_words
from pipeline.exports.facts import SUPPLEMENT, TableCounts
from pipeline.exports.flattening import standing, wanted_names
from pipeline.exports.history import Event, history
from pipeline.exports.identity import require_export_id
from pipeline.exports.ledger import Facts, Ledger
from pipeline.exports.owner import Owner, this_process
from pipeline.exports.session import Session
from pipeline.exports.state import describe

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
    error_codes: tuple[str, ...]
    """The first few different issue codes in the server's error files."""
    chain: tuple[str, ...]
    """The export run that this one asks again for, and the one that asks again for it."""
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
            "error_codes": list(self.error_codes),
            "chain": list(self.chain),
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
        next_step=in_words(step, now, facts),
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
        error_codes=receipt.error_codes if receipt else (),
        chain=tuple(_chain(facts)),
        quarantine=receipt.quarantine if receipt else (),
        flat=standing(session, export_id, wanted_names(session.source, receipt.tables)) if receipt else {},
        history=history(facts),
        folder=session.ledger.folder(export_id),
    )


def _chain(facts: Facts) -> Iterator[str]:
    if facts.succeeds:
        what = f"a supplement of {facts.supplement_of}; " if facts.supplement_of else ""
        if not facts.supplement_of or facts.succeeds.number > 1:
            what += f"asks again for {facts.succeeds.export_id}, number {facts.succeeds.number} in a row"
        yield what.rstrip("; ")
    if facts.successor:
        completes = facts.receipt or facts.successor.cause == SUPPLEMENT
        yield f"{'completed' if completes else 'asked again'} by {facts.successor.export_id}"


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
