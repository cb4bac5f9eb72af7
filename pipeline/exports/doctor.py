"""The doctor: contradictions between the facts, the files and the tables of one source. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from pipeline.errors import ExportError
from pipeline.exports import doctor_permissions, doctor_tables
from pipeline.exports.facts import Receipt
from pipeline.exports.finding import Finding, Findings
from pipeline.exports.ledger import Facts
from pipeline.exports.overview import summary
from pipeline.exports.session import Session
from pipeline.exports.state import Closed, Damaged, Poll

_RESTORE = "restore it from a backup of the lake"
_RELEASE_AFTER = timedelta(days=2, hours=1)
_ENDED = ("gone", "cancelled")


def examine_lake(session: Session) -> list[Finding]:
    """Every contradiction that can be seen in the lake, the worst first. Raises nothing for broken things."""
    found = Findings()
    source = session.source.name
    found.look("permissions", source, lambda: doctor_permissions.examine(session, found))
    exports: dict[str, Facts] = {}
    found.look("exports-unreadable", f"{source}/exports", lambda: exports.update(_read_all(session, found)))
    raw: dict[str, int] = {}
    found.look("raw-unreadable", f"{source}/raw", lambda: raw.update(session.lake.sizes(f"{source}/raw")))
    for facts in exports.values():
        found.look("export", facts.label, lambda facts=facts: _examine(session, facts, raw, found))  # type: ignore[misc]
    found.look("watermark", source, lambda: _watermarks(list(exports.values()), found))
    found.look("owners", source, lambda: _hosts(source, list(exports.values()), found))
    found.look("tables", f"{source}/tables", lambda: doctor_tables.examine(session, exports, found))
    return found.in_order()


def _read_all(session: Session, found: Findings) -> dict[str, Facts]:
    facts = {}
    for export_id in session.ledger.export_ids():
        try:
            facts[export_id] = session.ledger.read(export_id)
        except ExportError as error:
            found.add(
                "error", "export-unreadable", f"{session.source.name}/{export_id}", error.cause, _RESTORE
            )
    return facts


def _examine(session: Session, facts: Facts, raw: Mapping[str, int], found: Findings) -> None:
    _facts_alone(session, facts, found)
    look = summary(session, facts)
    step = session.next_step(facts)
    claim = facts.last_claim
    if isinstance(step, Damaged):
        names = ", ".join(facts.damaged)
        where = session.ledger.folder(facts.export_id)
        found.add("error", "facts-damaged", where, f"cannot be read: {names}", f"{_RESTORE}; never delete it")
    elif look.state == "held":
        found.add("warning", "held", facts.label, look.reason, look.next_step)
    elif isinstance(step, Poll) and step.overdue:
        what = f"open since {facts.export_id}, past its deadline of {session.source.deadline_hours:g} h"
        mend = "the next tick ends it: see that the daemon runs, or `fhir-export cancel` it"
        found.add("warning", "overdue", facts.label, what, mend)
    elif (
        claim is not None
        and claim.number > facts.settled_attempt
        and claim.number not in facts.attempt_errors
        and session.is_dead(claim.owner)
        and not isinstance(step, Closed)
    ):
        what = f"run {claim.owner.run_id} holds attempt {claim.number} and is dead"
        found.add("note", "claim-of-the-dead", facts.label, what, f"nothing: {look.next_step}")
    _released(session, facts, found)
    found.look("manifest-pages", facts.label, lambda: _pages(session, facts))
    found.look("landed-damaged", facts.label, lambda: _landed(session, facts, raw, found))


def _facts_alone(session: Session, facts: Facts, found: Findings) -> None:
    where = session.ledger.folder(facts.export_id)
    mend = f"{_RESTORE}: without it nothing goes on"
    if facts.request and all(each.number != facts.request.intent for each in facts.intents):
        what = f"request.json is there, and its intent {facts.request.intent} is not"
        found.add("error", "request-without-intent", where, what, mend)
    if facts.manifest and facts.request is None:
        found.add("error", "manifest-without-request", where, "a manifest without request.json", mend)
    for receipt in facts.receipts:
        if all(each.attempt != receipt.attempt for each in facts.publications) and not any(
            each.tables == receipt.tables for each in facts.publications
        ):
            what = f"the receipt of attempt {receipt.attempt} names a publication that is not there"
            found.add("error", "receipt-without-publication", where, what, _RESTORE)
    numbers = [claim.number for claim in facts.claims]
    if numbers != list(range(1, len(numbers) + 1)) and not facts.damaged:
        what = f"attempts {', '.join(map(str, numbers))} are there: some are missing"
        found.add("error", "claims-missing", where, what, _RESTORE)


def _released(session: Session, facts: Facts, found: Findings) -> None:
    receipt = facts.receipt
    if receipt is None or not session.policy.release or facts.released is not None:
        return
    if any(each in facts.closings for each in (*_ENDED, "withdrawn")):
        return
    if session.now() > receipt.at + _RELEASE_AFTER:
        what = "published, and the job on the server was never given back"
        mend = "it expires there by itself; a server with one export at a time may answer 429 until then"
        found.add("note", "not-released", facts.label, what, mend)


def _pages(session: Session, facts: Facts) -> None:
    if facts.manifest is not None:
        session.ledger.manifest_pages(facts.export_id)


def _landed(session: Session, facts: Facts, raw: Mapping[str, int], found: Findings) -> None:
    """Raw files that facts speak of, and those that none speaks of."""
    named: set[str] = set()
    root = f"{session.source.name}/raw/"
    needed = not facts.raw_dropped and "withdrawn" not in facts.closings
    for batch in session.ledger.landed(facts.export_id):
        path = batch.raw.removeprefix(root)
        named.add(path)
        end = max((file.offset + file.length for file in batch.files), default=0)
        if not needed or not batch.files or raw.get(path, -1) >= end:
            continue
        what = "is missing" if path not in raw else f"has {raw[path]} bytes, facts speak of {end}"
        published = facts.receipt is not None
        mend = (
            f"{_RESTORE}; the tables are whole, but this export cannot be ingested again without it"
            if published
            else f"{_RESTORE}, or `fhir-export withdraw {facts.label}` and run a new export"
        )
        found.add("warning" if published else "error", "raw-missing", batch.raw, what, mend)
    if facts.last_claim is not None and not session.is_dead(facts.last_claim.owner):
        return  # a run is at work: its files come before its facts
    prefix = f"{facts.export_id}/"
    orphans = [name for name in raw if name.startswith(prefix) and name not in named]
    if orphans and not facts.damaged:
        what = f"{len(orphans)} raw files that no fact names, {orphans[0]} for one"
        found.add(
            "note", "raw-orphans", f"{root}{facts.export_id}", what, "nothing: the retention job removes them"
        )


def _watermarks(exports: Sequence[Facts], found: Findings) -> None:
    """In the order of the kick-offs, of the same parameters, the watermark never goes back."""
    last: dict[str, tuple[datetime, Receipt, str]] = {}
    for facts in exports:
        receipt = facts.receipt
        if receipt is None or receipt.watermark is None or "withdrawn" in facts.closings:
            continue
        mark = datetime.fromisoformat(receipt.watermark)
        before = last.get(receipt.fingerprint)
        if before is not None and mark < before[0]:
            what = f"its transactionTime {receipt.watermark} is earlier than that of {before[2]}"
            mend = (
                "ask the server's operator whether its clock was set, or its database restored; the next "
                "_since is not later than what it said last, or there is none"
            )
            found.add("warning", "watermark-back", facts.label, what, mend)
        if before is None or mark > before[0]:
            last[receipt.fingerprint] = (mark, receipt, facts.export_id)


def _hosts(source: str, exports: Sequence[Facts], found: Findings) -> None:
    """A machine that comes back after another one: two installations may write here."""
    owners = [(each.at, each.owner.host) for facts in exports for each in facts.intents]
    owners += [(each.at, each.owner.host) for facts in exports for each in facts.claims]
    seen: list[str] = []
    for _, host in sorted(owners)[-200:]:
        if seen and seen[-1] == host:
            continue
        if host in seen:
            what = f"{host} and {seen[-1]} take turns at this source"
            mend = "see that only one installation, with one daemon, works on this lake and this source"
            found.add("warning", "two-installations", source, what, mend)
            return
        seen.append(host)
