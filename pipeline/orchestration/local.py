"""A whole export from a terminal: the same jobs, in this process, through the same Dagster instance.

No daemon is needed; one that runs beside it may take over, since both go by the same facts. Whatever ended
an earlier command (SIGKILL, a full disk, a lost network), the next one goes on where the facts are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import dagster as dg

from pipeline.config import Config, Source
from pipeline.errors import (
    ExportError,
    JobGone,
    KickoffRejected,
    LakeError,
    StillRunning,
    VerificationFailed,
)
from pipeline.exports.closing import hold, reject
from pipeline.exports.facts import SUPPLEMENT, TableCounts
from pipeline.exports.identity import unscheduled_id
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import Owner
from pipeline.exports.request import asked_for
from pipeline.exports.session import Session, utc_now
from pipeline.exports.standing import OpenExport, open_exports
from pipeline.exports.state import (
    AskAgain,
    Busy,
    Closed,
    Damaged,
    Hold,
    Ingest,
    KickOff,
    Poll,
    Reject,
    Tidy,
    describe,
)
from pipeline.exports.successor import open_successor
from pipeline.exports.tidying import tidy
from pipeline.exports.watch import NotYet, look
from pipeline.orchestration.factory import build_source
from pipeline.orchestration.flat_assets import flat_step
from pipeline.orchestration.heartbeat import Watch
from pipeline.orchestration.instance import open_database
from pipeline.orchestration.jobs_here import JobsHere
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import is_on_its_way, reap_dead_runs, session_in_daemon

Say = Callable[[str], None]

_EARLIER = 10
"""Export runs that are looked at for something to give back: the newest."""

_PATIENCE = 10
"""Times that another run may be quicker, before we leave the export to it."""


@dataclass(frozen=True)
class RunOutcome:
    """How far an export run has come when the command returns."""

    export_id: str
    state: str
    tables: dict[str, int]
    quarantined: int
    reason: str
    error: ExportError | None = None
    """Why it is not further, where something went wrong; its exit code is the command's. Of a published
    export: why flat tables are missing, or current ones not up to date."""


def run_source(
    config: Config, source: Source, *, wait: bool, new: bool = False, say: Say = lambda _: None
) -> RunOutcome:
    """Goes on with the oldest open export run of the source; without one, or with `new`, opens one.

    With `wait` it is followed until it is published or over; else it is asked for, where that is next.
    Without a usable configuration or lake it raises; everything after an export is chosen is in the outcome.
    """
    with open_database(config) as instance:
        run = _Run(config, source, instance, say)
        if wait:
            run.tidy_earlier()
        found = None if new else run.oldest_open()
        if found is None:
            run.open()
            say(f"export {source.name}/{run.export_id}")
        else:
            run.take(found.export_id)
            say(
                f"going on with export {source.name}/{found.export_id}, which was open: "
                f"{found.state}, {found.reason}"
            )
        return run.follow(wait)


def follow_export(config: Config, source: Source, export_id: str, say: Say = lambda _: None) -> RunOutcome:
    """Follows one export run until it is published or over, or cannot be gone on with. Raises `LakeError`."""
    with open_database(config) as instance:
        run = _Run(config, source, instance, say)
        run.take(export_id)
        return run.follow(wait=True)


class _Run:
    def __init__(self, config: Config, source: Source, instance: dg.DagsterInstance, say: Say) -> None:
        for run_id in reap_dead_runs(instance, source):
            say(f"run {run_id} was killed; it is marked as failed")
        self.names = names_of(source)
        self.instance = instance
        self.source = source
        self.say = say
        self.jobs = JobsHere(instance, source.name, build_source(config, source), self.names.tags, say)
        self.session: Session = session_in_daemon(config, source, instance)
        self.export_id = ""
        self.supplement = ""
        """The export run that asks for what the followed one has left out, where this command opened it."""
        self.error: ExportError | None = None
        self.flat_error: ExportError | None = None
        """Why flat tables are missing although the export is published."""
        self.current_error: ExportError | None = None
        """Why current tables are not up to date, or what is wrong with them."""
        self.attachments_error: ExportError | None = None
        """Why attachments are missing."""
        self.facts_before: Facts | None = None
        self.looks = 0
        self.watch: Watch | None = None
        self.in_vain = 0
        """Times in a row that somebody else was at work, and the facts did not change."""

    def tidy_earlier(self) -> None:
        """What a command that was killed behind the receipt has not given back."""
        for export_id in self.session.ledger.export_ids()[-_EARLIER:]:
            facts = self.session.ledger.read(export_id)
            if isinstance(self.session.next_step(facts), Tidy):
                for given_back in tidy(self.session, export_id):
                    self.say(f"{facts.label}: {given_back}")

    def oldest_open(self) -> OpenExport | None:
        return next(iter(open_exports(self.session)), None)

    def open(self) -> None:
        """A new export run; a partition without facts, of one that died before its first, is taken too.

        Raises `ConfigError` before there is any for what nobody can be asked for.
        """
        asked_for(self.source, self.session.profile)
        partitions = self.names.partitions.name or ""
        taken = {*self.instance.get_dynamic_partitions(partitions), *self.session.ledger.export_ids()}
        self.take(unscheduled_id(utc_now(), taken))

    def take(self, export_id: str) -> None:
        """Goes on with that export run; Dagster's database may be new, and has the partition then too."""
        self.export_id = export_id
        self.looks = 0
        self.error = None
        self.instance.add_dynamic_partitions(self.names.partitions.name or "", [export_id])

    def follow(self, wait: bool) -> RunOutcome:
        self._go_on(wait)
        published = bool(self.session.ledger.read(self.export_id).receipt)
        outcome = self._outcome()
        while self.supplement:
            outcome = self._with_supplement(outcome)
            published = published or bool(self.session.ledger.read(self.export_id).receipt)
        if wait and published:
            self._bring_current()
            self._fetch_attachments()
            outcome = self._with_what_follows(outcome)
        return outcome

    def _with_what_follows(self, outcome: RunOutcome) -> RunOutcome:
        """Also what is wrong with tables that hold back nothing."""
        found = [
            (self.current_error, "current tables are not up to date, or not as they should be"),
            (self.attachments_error, "attachments are missing"),
        ]
        for error, words in found:
            if error is not None:
                reason = f"{outcome.reason}; but {words}"
                outcome = replace(outcome, reason=reason, error=outcome.error or error)
        return outcome

    def _go_on(self, wait: bool) -> None:
        try:
            while self._advance(wait) and not self._is_stuck():
                pass
        except LakeError as error:  # the facts could not be read or written
            self.error = error

    def _with_supplement(self, outcome: RunOutcome) -> RunOutcome:
        """Also asks for what the export's `_since` has left out; trouble there is the command's."""
        self.say(f"what its _since leaves out: export {self.source.name}/{self.supplement}")
        self.take(self.supplement)
        self.supplement = ""
        self._go_on(wait=True)
        other = self._outcome()
        reason = f"{outcome.reason}; its supplement {other.export_id} is {other.state}"
        return replace(outcome, reason=reason, error=outcome.error or other.error)

    def _bring_current(self) -> None:
        """The current tables, in a run of their own, as Dagster's automation would."""
        if self.names.current_job in self.jobs.names:
            _, self.current_error = self.jobs.run(self.names.current_job, None)

    def _fetch_attachments(self) -> None:
        """Where they are asked for, likewise."""
        if self.names.attachments_job in self.jobs.names:
            _, self.attachments_error = self.jobs.run(self.names.attachments_job, None)

    def _is_stuck(self) -> bool:
        """Whether trying again at once would not end: somebody has to look first."""
        if isinstance(self.error, LakeError) and self.flat_error is None:
            return True  # a full disk: what is landed stays, and attempts are not used up against it
        if self.error is None or self.facts_before != self.session.ledger.read(self.export_id):
            self.in_vain = 0
            return False
        if isinstance(self.error, StillRunning) and self.in_vain < _PATIENCE:
            self.in_vain += 1
            self.error = None
            self._pause(2, "another run was quicker")
            return False
        return True  # nothing could even be written down

    def _advance(self, wait: bool) -> bool:
        """Does what is next; False when there is nothing more to do here."""
        facts = self.session.ledger.read(self.export_id)
        step = self.session.next_step(facts)
        match step:
            case KickOff(_, _, not_before):
                self._pause(not_before.timestamp() - time.time() if not_before else 0, "asking again")
                if not self._execute(self.names.kickoff_job):
                    return wait
                # Before the intent was written nothing holds a new export: the error is all there is.
                known = self.session.ledger.read(self.export_id)
                return wait and bool(known.intents or known.unprepared or known.closings)
            case AskAgain(_, cause):
                return self._open_further(cause, wait, published=facts.receipt is not None)
            case _ if not wait:
                return False
            case Poll(overdue, _):
                self._poll(facts, overdue)
            case Ingest(attempt, _, not_before):
                wait_for = not_before.timestamp() - time.time() if not_before else 0
                self._pause(wait_for, f"attempt {attempt} is next")
                self._execute(self.names.ingest_job)
            case Busy(owner, what):
                self._wait_for(owner, what)
            case Hold():
                hold(self.session, self.export_id, step)
            case Reject():
                reject(self.session, self.export_id, step)
            case Tidy():
                for given_back in tidy(self.session, self.export_id):
                    self.say(given_back)
                return False
            case Closed() | Damaged():
                return False
        return True

    def _open_further(self, cause: str, wait: bool, published: bool) -> bool:
        if cause == SUPPLEMENT and wait:
            self.supplement = open_successor(self.session, self.export_id)
            return True
        if cause == SUPPLEMENT and published:
            return False  # it stands in nobody's way
        self.take(open_successor(self.session, self.export_id))
        self.say(f"asked again ({cause}): export {self.source.name}/{self.export_id}")
        return True

    def _wait_for(self, owner: Owner, what: str) -> None:
        if self.watch is None or self.watch.owner != owner:
            self.say(f"run {owner.run_id} on {owner.host} does the {what}; waiting for it")
            self.watch = Watch(self.instance, self.source.name, owner)
        if self.watch.is_silent():
            self.say(f"run {owner.run_id} has given no sign of life: {owner.host} is taken to be gone")
            self.jobs.end(owner.run_id)
        time.sleep(2)

    def _poll(self, facts: Facts, overdue: bool) -> None:
        seen = NotYet(0, None) if overdue else look(self.session, facts, self.looks)
        if overdue or not isinstance(seen, NotYet):
            self.say("the server is done")
            self._execute(self.names.ingest_job)
            return
        self.looks += 1
        self._pause(seen.wait, f"{seen.problem or seen.progress or 'the server works on it'}; looking again")

    def _pause(self, seconds: float, why: str) -> None:
        if seconds > 0:
            self.say(f"{why} (in {seconds:.0f} s)")
            time.sleep(seconds)

    def _execute(self, job: str) -> bool:
        """Runs a job here; what goes wrong is remembered, and what is next is read from the facts. False
        where somebody else is about to."""
        if is_on_its_way(self.instance, job, self.export_id):
            self._pause(2, "the daemon has just begun a run for it")
            return False
        self.facts_before = self.session.ledger.read(self.export_id)
        run_id, self.error = self.jobs.run(job, self.export_id)
        failed_flat = self.error is not None and self.jobs.failed_in(run_id, flat_step(self.source))
        self.flat_error = self.error if failed_flat else None
        return True

    def _outcome(self) -> RunOutcome:
        facts = self.session.ledger.read(self.export_id)
        step = self.session.next_step(facts)
        state, reason = describe(facts, step, self.session.now())
        counts: dict[str, TableCounts] = facts.receipt.tables if facts.receipt else {}
        if facts.receipt and self.flat_error:
            reason = f"{reason}; but flat tables are missing"
        return RunOutcome(
            export_id=self.export_id,
            state=state,
            tables={table: each.rows for table, each in counts.items()},
            quarantined=facts.receipt.quarantined if facts.receipt else 0,
            reason=reason,
            error=self.flat_error if facts.receipt else self.error or _closing_error(state, reason),
        )


def _closing_error(state: str, reason: str) -> ExportError | None:
    """The error behind a state that somebody else brought about."""
    kinds: dict[str, type[ExportError]] = {
        "held": VerificationFailed,
        "rejected": KickoffRejected,
        "gone": JobGone,
        "cancelled": JobGone,
        "withdrawing": JobGone,
        "withdrawn": JobGone,
        "ingesting": StillRunning,
        "requesting": StillRunning,
    }
    kind = kinds.get(state)
    return kind(f"the export is {state}: {reason}") if kind else None
