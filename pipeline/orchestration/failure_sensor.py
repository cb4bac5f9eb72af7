"""The notices sensor: tells people of failed runs, and of exports that need somebody.

Not Dagster's `run_failure_sensor`: that one goes past a run whose notice could not be sent and never comes
back, begins with the failures after its own start, and tells every failure of a night anew (read in 1.13.27,
run_status_sensor_definition.py). Here each tick looks at what failed of late and at the facts, and tells what
was not told yet.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter
from dagster_shared.error import SerializableErrorInfo

from pipeline import errors
from pipeline.config import Config, Source
from pipeline.errors import ConfigError, ExportError, LakeError
from pipeline.exports.ledger import Facts
from pipeline.exports.overview import ExportSummary, summary
from pipeline.exports.session import Session
from pipeline.exports.state import Closed
from pipeline.notify.notice import Notice
from pipeline.notify.occasions import notice_of
from pipeline.orchestration.names import SOURCE_TAG, WORK_TAG
from pipeline.orchestration.runs import session_in_daemon

if TYPE_CHECKING:
    from pipeline.notify.delivery import Delivery

LATELY = timedelta(days=3)
"""What is older is not told any more: a notifier that is new, or was down, tells nothing of last year."""
_EVERY_SECONDS = 30
_LOOK_SECONDS = 5.0
_NEWEST = 60
"""Exports that are looked at, and failed runs."""
_NUMBERS = re.compile(r"\d+")
"""Seconds to wait, bytes that came: they make no other failure."""


def build_notices_sensor(config: Config, source: Source) -> dg.SensorDefinition | None:
    """RUNNING from the start; None where nobody is to be told."""
    if not config.notify:
        return None
    from pipeline.notify.delivery import Delivery
    from pipeline.notify.kinds import addressees

    try:
        delivery = Delivery(source.name, addressees(config))
        trouble = ""
    except ConfigError as error:
        delivery, trouble = Delivery(source.name, ()), str(error)
    known = _Known()

    @dg.sensor(
        name=f"{source.name}_notices",
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Tells people of failed runs of {source.name}, and of exports that need somebody.",
    )
    def notices_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        session = session_in_daemon(config, source, context.instance)
        look = _Look(context, session, known, delivery)
        notices = list(look.notices())
        notes = [trouble] if trouble else []
        try:
            notes += delivery.tell(session.lake, notices, context.log.warning)
        except ExportError as error:  # a lake that cannot even be opened
            notes.append(str(error))
        for note in notes:
            context.log.warning(note)
        return dg.SkipReason("; ".join(notes) or "nothing to tell")

    return notices_sensor


@dataclass
class _Known:
    """What is not read again while the code server lives."""

    settled: set[str] = field(default_factory=set)
    """Exports that are over, with everybody told."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By failed run."""


class _Look:
    """What there is to tell at one tick."""

    def __init__(
        self,
        context: dg.SensorEvaluationContext,
        session: Session,
        known: _Known,
        delivery: Delivery,
    ) -> None:
        self.instance = context.instance
        self.log = context.log
        self.session = session
        self.known = known
        self.delivery = delivery
        self.since = session.now() - LATELY

    def notices(self) -> Iterator[Notice]:
        """Oldest export first, then failed runs."""
        summaries: dict[str, ExportSummary] = {}
        try:
            yield from self._of_exports(summaries)
        except ExportError as error:
            self.log.warning(str(error))
        yield from self._of_runs(summaries)

    def _of_exports(self, summaries: dict[str, ExportSummary]) -> Iterator[Notice]:
        begun = time.monotonic()
        for export_id in self.session.ledger.export_ids()[-_NEWEST:]:
            if export_id in self.known.settled:
                continue
            if time.monotonic() - begun > _LOOK_SECONDS:
                return  # the rest at the next tick
            facts = self.session.ledger.read(export_id)
            found = summaries[export_id] = summary(self.session, facts)
            notice = notice_of(facts, found)
            told = notice is None or notice.at < self.since
            if notice is not None and not told:
                yield notice
                told = self.delivery.has_told(self.session.lake, notice)
            if told and found.state != "held" and self._is_over(facts):
                self.known.settled.add(export_id)

    def _is_over(self, facts: Facts) -> bool:
        return isinstance(self.session.next_step(facts), Closed)

    def _of_runs(self, summaries: dict[str, ExportSummary]) -> Iterator[Notice]:
        wanted = RunsFilter(
            statuses=[DagsterRunStatus.FAILURE],
            tags={SOURCE_TAG: self.session.source.name},
            updated_after=self.since,
        )
        for record in reversed(self.instance.get_run_records(wanted, limit=_NEWEST)):
            run = record.dagster_run
            if run.remote_job_origin is None:
                continue  # of a command line: somebody is looking
            ended = record.end_time or self.session.now().timestamp()
            export_id = _export_of(run)
            if run.run_id not in self.known.reasons:
                self.known.reasons[run.run_id] = reason_of(self.instance, run.run_id)
            reason = self.known.reasons[run.run_id]
            yield Notice(
                event="run-failed",
                source=self.session.source.name,
                export_id=export_id,
                state="failed",
                reason=reason,
                next_step=self._next_of(export_id, summaries),
                at=datetime.fromtimestamp(ended, self.since.tzinfo),
                run_id=run.run_id,
                job=run.job_name,
                # The same failure of the same export is told once, however often it is tried again.
                instance=f"{run.job_name}\n{_NUMBERS.sub('#', reason)}",
            )

    def _next_of(self, export_id: str | None, summaries: dict[str, ExportSummary]) -> str:
        if export_id is None:
            return ""
        if export_id not in summaries:
            try:
                facts = self.session.ledger.read(export_id)
                summaries[export_id] = summary(self.session, facts)
            except LakeError:
                return "mend the lake"
        found = summaries[export_id]
        return f"{found.next_step} (the export is {found.state})"


def _export_of(run: dg.DagsterRun) -> str | None:
    """By its partition, else by the work that it was asked for."""
    parts = run.tags.get(WORK_TAG, "").split(":")
    return run.tags.get("dagster/partition") or (parts[1] if len(parts) > 2 else None)


def reason_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """Why a run failed, in words that may leave the house: our errors', or of Dagster's monitoring."""
    failures = instance.all_logs(run_id, of_type=DagsterEventType.STEP_FAILURE)
    for entry in failures:
        event = entry.dagster_event
        error = event.step_failure_data.error if event is not None else None
        if error is not None:
            return f"{entry.step_key}: {_in_words(error)}"
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE):
        event = entry.dagster_event
        data = event.job_failure_data if event is not None else None
        if data is not None and data.error is not None:
            return _in_words(data.error)
        if event is not None and event.message:
            return event.message
    return "the run ended without a word"


def _in_words(error: SerializableErrorInfo) -> str:
    chain = list(_causes(error))
    for each in chain:
        if each.cls_name in _OURS:
            return each.message.partition(": ")[2].strip() or each.cls_name
    # The text of a foreign error may hold anything, content and secrets too.
    return f"unexpected {chain[-1].cls_name or 'error'}"


def _causes(error: SerializableErrorInfo) -> Sequence[SerializableErrorInfo]:
    found: list[SerializableErrorInfo] = []
    next_one: SerializableErrorInfo | None = error
    while next_one is not None and len(found) < 20:
        found.append(next_one)
        next_one = next_one.cause or next_one.context
    return found


_OURS = frozenset(
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ExportError)
)
