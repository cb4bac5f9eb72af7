"""A whole export from a terminal: the same jobs, in this process, through the same Dagster instance.

No daemon is needed; one that runs beside it may take over, since both go by the same facts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster._core.execution.stats import StepEventStatus
from dagster._core.utils import make_new_run_id

from pipeline.config import Config, Source
from pipeline.errors import ExportError, JobGone, KickoffRejected, StillRunning, VerificationFailed
from pipeline.exports.closing import hold, reject
from pipeline.exports.facts import TableCounts
from pipeline.exports.identity import export_id_at
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session, utc_now
from pipeline.exports.state import (
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
from pipeline.exports.tidying import tidy
from pipeline.exports.watch import NotYet, look
from pipeline.orchestration.factory import build_source
from pipeline.orchestration.flat_assets import flat_step
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import announcement, process_tag, reap_dead_runs, session_in_daemon

Say = Callable[[str], None]


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
    export: why flat tables are missing."""


def open_instance(config: Config) -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME; without one, that of the configuration's folder."""
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(config.folder)
    home = Path(os.environ["DAGSTER_HOME"]).absolute()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(_QUIET, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(home)
    return dg.DagsterInstance.get()


_QUIET = """# Made by fhir-export. What belongs here: docs/operations.md of fhir-export-pipeline.
telemetry:
  enabled: false
nux:
  enabled: false
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 60
concurrency:
  pools:
    default_limit: 1
"""


def run_source(config: Config, source: Source, *, wait: bool, say: Say = lambda _: None) -> RunOutcome:
    """Kicks off an export run, and with `wait` follows it until it is published or over.

    Without a usable configuration or lake it raises; everything after an export id exists is in the outcome.
    """
    instance = open_instance(config)
    for run_id in reap_dead_runs(instance, source):
        say(f"run {run_id} was killed; it is marked as failed")
    run = _Run(config, source, instance, say)
    return run.follow(wait)


class _Run:
    def __init__(self, config: Config, source: Source, instance: dg.DagsterInstance, say: Say) -> None:
        self.names = names_of(source)
        self.instance = instance
        self.source = source
        self.say = say
        self.definitions = build_source(config, source)
        self.session: Session = session_in_daemon(config, source, instance)
        partitions = self.names.partitions.name or ""
        taken = {*instance.get_dynamic_partitions(partitions), *self.session.ledger.export_ids()}
        self.export_id = export_id_at(utc_now(), taken)
        instance.add_dynamic_partitions(partitions, [self.export_id])
        self.error: ExportError | None = None
        self.flat_error: ExportError | None = None
        """Why flat tables are missing although the export is published."""
        self.facts_before: Facts | None = None
        self.looks = 0

    def follow(self, wait: bool) -> RunOutcome:
        self.say(f"export {self.source.name}/{self.export_id}")
        while self._advance(wait):
            if self.error is not None and self.facts_before == self.session.ledger.read(self.export_id):
                break  # nothing could even be written down: trying again would not end
        return self._outcome()

    def _advance(self, wait: bool) -> bool:
        """Does what is next; False when there is nothing more to do here."""
        facts = self.session.ledger.read(self.export_id)
        step = self.session.next_step(facts)
        match step:
            case KickOff(number, _, not_before):
                if number > 1:
                    self._pause(not_before.timestamp() - time.time() if not_before else 0, "asking again")
                self._execute(self.names.kickoff_job)
                # Before the intent was written nothing holds the export: the error is all there is.
                return wait and bool(self.session.ledger.read(self.export_id).intents)
            case _ if not wait:
                return False
            case Poll(overdue, _):
                self._poll(facts, overdue)
            case Ingest(attempt, _, not_before):
                wait_for = not_before.timestamp() - time.time() if not_before else 0
                self._pause(wait_for, f"attempt {attempt} is next")
                self._execute(self.names.ingest_job)
            case Busy(owner, what):
                self._pause(2, f"run {owner.run_id} does the {what}; looking again")
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

    def _execute(self, job: str) -> None:
        """Runs a job here; what goes wrong is remembered, and what is next is read from the facts."""
        self.error = None
        self.facts_before = self.session.ledger.read(self.export_id)
        run_id = make_new_run_id()
        listening = announcement.set(self.say)
        try:
            self.definitions.resolve_job_def(job).execute_in_process(
                instance=self.instance,
                partition_key=self.export_id,
                run_id=run_id,
                tags={**self.names.tags, **process_tag(run_id)},
                # The event log has it all; the terminal belongs to `say`.
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=True,
            )
        except ExportError as error:
            self.error = error
            self.say(str(error))
        except Exception as error:  # noqa: BLE001 - the event log has the traceback, the outcome must be told
            self.error = ExportError(f"unexpected {type(error).__name__}", f"Run {run_id} shows where")
            self.say(str(self.error))
        finally:
            announcement.reset(listening)
        failed_flat = self.error is not None and self._failed_in(run_id, flat_step(self.source))
        self.flat_error = self.error if failed_flat else None

    def _failed_in(self, run_id: str, step: str) -> bool:
        stats = self.instance.get_run_step_stats(run_id, [step])
        return any(each.status == StepEventStatus.FAILURE for each in stats)

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
        "ingesting": StillRunning,
        "requesting": StillRunning,
    }
    kind = kinds.get(state)
    return kind(f"the export is {state}: {reason}") if kind else None
