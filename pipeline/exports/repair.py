"""What an operator decides about an export run: to try it again, to take it as it is, or to give it up.

Withdrawing says first what it is about to do (`withdrawing.json`), so that no run ingests any more, takes
back what readers could see, and only then says that it is done: killed in between, it is done again.
"""

from __future__ import annotations

import json
from datetime import datetime

from pipeline.errors import ConfigError, LakeError, StillRunning
from pipeline.exports.closing import close
from pipeline.exports.facts import Retry
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.exports.state import Busy, Closed, Damaged, describe
from pipeline.exports.tidying import give_back

_BY_HAND = "by hand, from the command line"


def retry(session: Session, export_id: str, *, accept_partial: bool = False) -> str:
    """Lets a held export be tried again, `max_attempts` times more; returns what comes of it, in words.

    `accept_partial`: it is published although part of its data is missing. One that is published already is
    taken as it is then: later exports are measured by it, and the watermark stays where it was.
    Raises `ConfigError` for any other, with what to do; `LakeError`.
    """
    facts = session.ledger.read(export_id)
    step = session.next_step(facts)
    if isinstance(step, Damaged):
        raise LakeError(f"{facts.label} has damaged facts: {', '.join(step.names)}", "Restore them first")
    if facts.receipt and accept_partial and facts.receipt.partial:
        _write_retry(session, facts, accept_partial=True)
        return f"{facts.label} is taken as it is: later exports are measured by it. The watermark stays"
    if step != Closed("held"):
        state, _ = describe(facts, step, session.now())
        raise ConfigError(f"{facts.label} is {state}, not held", _instead(facts, state, accept_partial))
    _write_retry(session, facts, accept_partial=accept_partial)
    return f"{facts.label} is tried again{', and published as it is' if accept_partial else ''}"


def _write_retry(session: Session, facts: Facts, *, accept_partial: bool) -> None:
    number = max([1, *facts.helds, *(each + 1 for each in facts.retries)])
    fact = Retry(
        at=session.now(),
        owner=session.owner,
        after_attempt=facts.last_claim.number if facts.last_claim else 0,
        accept_partial=accept_partial,
    )
    if not session.ledger.write(facts.export_id, f"retries/{number:04d}.json", fact):
        raise StillRunning(
            f"somebody else retries {facts.label} at this moment", "`show` tells what came of it"
        )


def _instead(facts: Facts, state: str, accept_partial: bool) -> str:
    over = state in ("gone", "rejected", "cancelled", "withdrawing", "withdrawn")
    if facts.receipt and not over:
        if accept_partial:
            return "No part of its data is known to be missing: there is nothing to accept"
        tags = json.dumps({"dagster/partition": facts.export_id})
        return (
            f"To ingest it again from its raw bytes: `dagster job execute -m pipeline.definitions "
            f"-j {facts.source}_ingest --tags '{tags}'`"
        )
    if over:
        return f"Start a new export run: `fhir-export run {facts.source} --wait`"
    return f"It goes on by itself; `fhir-export show {facts.label}` tells what is next"


def withdraw(session: Session, export_id: str) -> list[str]:
    """Gives an export run up for good and takes back what it brought; returns what was done, in words.

    Its partitions of all tables are emptied, its rows of `_exports` and `_lineage` go first, the watermark
    falls back, and the job on the server is deleted (trouble there is told). Raw bytes and facts stay.
    Raises `StillRunning` while a run works on it, `ConfigError` when a later export began where it ended,
    `LakeError`. Called again it goes on where it was killed.
    """
    facts = session.ledger.read(export_id)
    _require_free(session, facts)
    if "withdrawn" in facts.closings:
        late = take_back(session, facts)  # rows that a run of then has brought since
        done = [f"{table}: the rows of this export are taken back" for table in late]
        return [*done, f"{facts.label} is withdrawn already"]
    _require_last(session, facts)
    close(session, export_id, "withdrawing", _BY_HAND)
    facts = session.ledger.read(export_id)
    _require_free(session, facts)  # a run that began meanwhile finds out before it publishes
    _require_last(session, facts)  # so does a kick-off that took its watermark meanwhile
    taken = take_back(session, facts)
    done = [f"{table}: the rows of this export are taken back" for table in taken]
    if facts.request and facts.released is None and not facts.closings.keys() & {"gone"}:
        problem = give_back(session, facts)
        done.append(
            f"the job may still run on the server: {problem.cause}"
            if problem
            else "the job on the server is deleted"
        )
    close(session, export_id, "withdrawn", _BY_HAND)
    return [*done, f"{facts.label} is withdrawn"]


def _require_free(session: Session, facts: Facts) -> None:
    if facts.damaged:
        raise LakeError(f"{facts.label} has damaged facts: {', '.join(facts.damaged)}", "Restore them first")
    claim = facts.last_claim
    step = session.next_step(facts)
    owner = step.owner if isinstance(step, Busy) else None
    # A held one may be ingested by hand: that is no step of ours.
    if claim and claim.number > facts.settled_attempt and claim.number not in facts.attempt_errors:
        owner = owner or (None if session.is_dead(claim.owner) else claim.owner)
    if owner is not None:
        raise StillRunning(
            f"run {owner.run_id} works on {facts.label}", "Stop that run, or wait for its end; then withdraw"
        )


def _require_last(session: Session, facts: Facts) -> None:
    """What came later from where this one ended has not what this one brought: it would be lost for good."""
    marks = [receipt.watermark for receipt in facts.receipts if receipt.watermark]
    if not marks:
        return
    reached = max(map(datetime.fromisoformat, marks))
    begun = min(intent.at for intent in facts.intents)
    for export_id in session.ledger.export_ids():
        later = session.ledger.read(export_id)
        over = (later.closings.keys() - {"held"} and not later.receipt) or "withdrawn" in later.closings
        if export_id == facts.export_id or over:
            continue
        asked = [each for each in later.intents if each.at >= begun or export_id > facts.export_id]
        if any(_goes_on(each.parameters.get("since") or each.deletes_from, reached) for each in asked):
            raise ConfigError(
                f"{later.label} began where {facts.label} ended",
                f"Withdraw that one first: `fhir-export withdraw {later.label}`",
            )


def _goes_on(since: object, reached: datetime) -> bool:
    """Whether an export with that `_since` relies on one that has reached that moment: only what came after
    a full export of later does not."""
    return isinstance(since, str) and datetime.fromisoformat(since) <= reached


def take_back(session: Session, facts: Facts) -> list[str]:
    """Empties what readers can see of it, the line that calls it whole first; the tables that had rows."""
    from pipeline.tables.delta import empty_partition

    attempt = max([0, *(claim.number for claim in facts.claims)]) + 1
    taken = []
    for table in _tables(session, facts):
        if empty_partition(
            session.table_uri(table),
            export_id=facts.export_id,
            attempt=attempt,
            storage_options=session.lake.storage_options,
        ):
            taken.append(table)
    return taken


def _tables(session: Session, facts: Facts) -> list[str]:
    """Every table of the source, `_exports` first: a publish that was killed has left no list of its own."""
    if not facts.claims:
        return []
    names = session.lake.names(f"{session.source.name}/tables")
    return sorted(names, key=lambda each: (each != "_exports", each[0] != "_", each))
