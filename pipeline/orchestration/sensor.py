"""The status sensor: looks at every open export of a source and asks for the run that is next.

It only detects: the ingest run reads the status again, so that a failure becomes a red run with its reason.
One tick stays short and never fails for one export's sake (facts/dagster.md 4); its cursor holds pacing only,
so that nothing is lost with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
from dagster import RunsFilter

from pipeline.config import Config, Source
from pipeline.errors import ExportError
from pipeline.exports.closing import hold, reject
from pipeline.exports.facts import SUPPLEMENT, Lacks
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.exports.state import AskAgain, Closed, Hold, Ingest, KickOff, Poll, Reject, Tidy
from pipeline.exports.successor import open_successor
from pipeline.exports.watch import NotYet, Ready, look
from pipeline.orchestration.names import WORK_TAG, Names, names_of
from pipeline.orchestration.runs import is_on_its_way, reap_dead_runs, session_in_daemon
from pipeline.orchestration.state_observations import StateObservations
from pipeline.unexpected import contained

TICK_SECONDS = 15.0
_EVERY_SECONDS = 5
_RUNS_AT_MOST = 20
_AFRESH_SECONDS = 30
_LOOK_SECONDS = 4.0
_LOOKS_AT_ONCE = 8


def build_sensor(config: Config, source: Source, jobs: Sequence[Any]) -> dg.SensorDefinition:
    """RUNNING from the start: an export that was asked for by hand is followed too."""
    names = names_of(source)
    settled: set[str] = set()
    looks = _Looks()
    states = StateObservations(names)

    @dg.sensor(
        name=names.sensor,
        jobs=jobs,
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Polls the exports of {source.name} that run on the server, at the server's pace.",
    )
    @contained
    def status_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        reap_dead_runs(context.instance, source)
        session = session_in_daemon(config, source, context.instance)
        return _Tick(context, names, session, settled, looks, states).run()

    return status_sensor


class _Looks:
    """Looks at the status that a tick does not wait for longer than it can (facts/dagster.md 4).

    A server that takes the request and never answers costs its own export a few seconds a tick, and nobody
    else anything; an answer that comes late is there at the next tick.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="look")
        self._asked: dict[str, Future[NotYet | Ready]] = {}

    def look(self, session: Session, facts: Facts, looks: int) -> NotYet | Ready:
        asked = self._asked.get(facts.export_id)
        if asked is None:
            asked = self._asked[facts.export_id] = self._pool.submit(look, session, facts, looks)
        try:
            seen = asked.result(_LOOK_SECONDS if not asked.done() else 0)
        except TimeoutError:
            return NotYet(0, None, "the server has not answered the status request yet")
        except BaseException:
            del self._asked[facts.export_id]
            raise
        del self._asked[facts.export_id]
        return seen


@dataclass
class _Tick:
    context: dg.SensorEvaluationContext
    names: Names
    session: Session
    settled: set[str]
    """Exports that are closed, remembered while the code server lives: they are not read again."""
    looks: _Looks
    states: StateObservations
    requests: list[dg.RunRequest] = field(default_factory=list)
    observations: list[dg.AssetObservation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Every export run, oldest first."""

    def run(self) -> dg.SensorResult:
        begun = time.monotonic()
        pacing = _read_cursor(self.context.cursor)
        self.ids = self.session.ledger.export_ids()
        ids = [each for each in self.ids if each not in self.settled]
        # Those that have waited longest come first, so that a short tick is fair over several.
        for export_id in sorted(ids, key=lambda each: pacing.get(each, {}).get("next", "")):
            if time.monotonic() - begun > TICK_SECONDS:
                self.notes.append("the rest is looked at in the next tick")
                break
            try:
                self._attend(export_id, pacing)
            except Exception as error:  # noqa: BLE001 - one export's trouble must not stop the others
                text = str(error) if isinstance(error, ExportError) else f"unexpected {type(error).__name__}"
                self.context.log.warning(f"{export_id}: {text}")
                self.notes.append(f"{export_id}: {text}")
        kept = {each: pace for each, pace in pacing.items() if each in ids and each not in self.settled}
        return dg.SensorResult(
            run_requests=self.requests,
            skip_reason=None if self.requests else "; ".join(self.notes) or "no export is open",
            cursor=json.dumps(kept, sort_keys=True),
            asset_events=self.observations,
        )

    def _attend(self, export_id: str, pacing: dict[str, dict[str, Any]]) -> None:
        facts = self.session.ledger.read(export_id)
        self.observations += self.states.observe(self.context.instance, self.session, facts)
        step = self.session.next_step(facts)
        match step:
            case Closed(state):
                self._settle(facts, state)
            case KickOff(number, _, not_before):
                self._when_due(not_before, export_id, self.names.kickoff_job, f"kickoff:{number}")
            case Ingest(attempt, _, not_before):
                self._when_due(not_before, export_id, self.names.ingest_job, str(attempt))
            case Poll():
                self._poll(facts, step, pacing)
            case Hold():
                hold(self.session, export_id, step)
                self.context.log.error(f"{export_id} is held: {step.reason}")
            case Reject():
                reject(self.session, export_id, step)
                self.context.log.error(f"{export_id} is rejected: {step.reason}")
            case AskAgain(_, cause):
                successor = open_successor(self.session, export_id)
                self.notes.append(
                    f"{export_id} left out something on purpose: {successor} asks for it"
                    if cause == SUPPLEMENT
                    else f"{export_id} ended without data ({cause}): {successor} asks again"
                )
            case Tidy():
                hour = f"{self.session.now():%Y%m%dT%H}"
                self._request(export_id, self.names.tidy_job, f"tidy:{hour}", partitioned=False)
            case _:
                self.notes.append(f"{export_id}: {type(step).__name__.lower()}")

    def _settle(self, facts: Facts, state: str) -> None:
        """Over, and not read again; but a held one may still be repaired, and one that is incomplete be
        ingested again and have a supplement then, unless a later one has found out itself what is lacking."""
        export_id = facts.export_id
        partitions = self.names.partitions.name or ""
        if not self.context.instance.has_dynamic_partition(partitions, export_id):
            # The database may be new: partitions are rebuilt from the facts (design, Facts).
            self.context.instance.add_dynamic_partitions(partitions, [export_id])
        lacking = facts.asked is not None and facts.asked.lacks != Lacks() and facts.successor is None
        if state != "held" and not (lacking and export_id == self.ids[-1]):
            self.settled.add(export_id)

    def _poll(self, facts: Facts, step: Poll, pacing: dict[str, dict[str, Any]]) -> None:
        export_id, now = facts.export_id, self.session.now()
        paced = pacing.setdefault(export_id, {"next": "", "looks": 0, "progress": None})
        if step.overdue:
            self._request(export_id, self.names.ingest_job, str(step.attempt))
            return
        if paced["next"] and now < datetime.fromisoformat(paced["next"]):
            self.notes.append(f"{export_id}: {paced['progress'] or 'running'}, asked again {paced['next']}")
            return
        seen = self.looks.look(self.session, facts, paced["looks"])
        if not isinstance(seen, NotYet):
            self._request(export_id, self.names.ingest_job, str(step.attempt))
            return
        if seen.problem:
            self.context.log.warning(f"{export_id}: {seen.problem}")
        if seen.progress and seen.progress != paced["progress"]:
            self._observe(export_id, seen.progress)
        paced["next"] = (now + timedelta(seconds=seen.wait)).isoformat(timespec="seconds")
        paced["looks"] += 1
        paced["progress"] = seen.progress or seen.problem
        self.notes.append(f"{export_id}: {paced['progress'] or 'running'}")

    def _observe(self, export_id: str, progress: str) -> None:
        self.observations.append(
            dg.AssetObservation(
                self.names.key("export_request"),
                partition=export_id,
                description="progress on the server",
                metadata={"X-Progress": progress},
            )
        )

    def _when_due(self, not_before: datetime | None, export_id: str, job: str, what: str) -> None:
        if not_before is not None and self.session.now() < not_before:
            self.notes.append(f"{export_id}: {what} not before {not_before:%H:%M:%S}")
            return
        self._request(export_id, job, what)

    def _request(self, export_id: str, job: str, what: str, *, partitioned: bool = True) -> None:
        work = f"{self.names.source}:{export_id}:{what}"
        key = _free_run_key(self.context.instance, work, self.session.now(), once=not partitioned)
        if key is None or (partitioned and is_on_its_way(self.context.instance, job, export_id)):
            self.notes.append(f"{export_id}: a run for {what} is on its way, or has just ended")
            return
        ops = {f"{self.names.source}__tidy": {"config": {"export_id": export_id}}}
        self.requests.append(
            dg.RunRequest(
                job_name=job,
                run_key=key,
                partition_key=export_id if partitioned else None,
                run_config={} if partitioned else {"ops": ops},
                tags={WORK_TAG: work},
            )
        )
        if partitioned:
            self.context.instance.add_dynamic_partitions(self.names.partitions.name or "", [export_id])


def _free_run_key(instance: dg.DagsterInstance, work: str, now: datetime, *, once: bool) -> str | None:
    """The run key for a piece of work; None while a run for it is on its way.

    A run that ended before it wrote its claim would block its key for ever (facts/dagster.md 5): the next one
    gets another key, after a while that grows with their number. `once`: there is no next one.
    """
    records = instance.get_run_records(RunsFilter(tags={WORK_TAG: work}), limit=_RUNS_AT_MOST)
    if len(records) == _RUNS_AT_MOST:
        return None  # it is no use: an operator has to look at these runs
    if not records:
        return work
    if once or any(not record.dagster_run.is_finished for record in records):
        return None
    last = max(record.end_time or 0.0 for record in records)
    return f"{work}.{len(records)}" if now.timestamp() > last + _AFRESH_SECONDS * len(records) else None


def _read_cursor(text: str | None) -> dict[str, dict[str, Any]]:
    try:
        cursor = json.loads(text or "{}")
    except ValueError:
        return {}
    return cursor if isinstance(cursor, dict) else {}
