"""Runs as owners of work: which are alive, which are dead, and what they witnessed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg
import psutil
from dagster import AssetRecordsFilter, DagsterEventType, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import PARTITION_NAME_TAG

from pipeline.config import Config, Source
from pipeline.exports.owner import Owner, process_of_run, this_process
from pipeline.exports.session import Session, utc_now
from pipeline.orchestration.half_made import complete
from pipeline.orchestration.names import PROCESS_TAG, SOURCE_TAG, WORK_TAG, Names, names_of
from pipeline.orchestration.orphan_steps import end_with

_STATUS_URL = "status_url"
_INTENT = "intent"
_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def is_dead_in(instance: dg.DagsterInstance) -> Callable[[Owner], bool]:
    """Tells whether the run of an owner is over, by this instance and by its process.

    A run that the instance does not know (its database was lost, or another instance's) counts as over unless
    its process lives on this machine: publishing stays safe by the tables' own transactions.
    """

    def is_dead(owner: Owner) -> bool:
        run = instance.get_run_by_id(owner.run_id)
        if run is None:
            return not owner.process_is_alive()
        return run.is_finished or owner.process_is_dead()

    return is_dead


@dataclass(frozen=True)
class EventLogWitness:
    """The event log as the second place that remembers an accepted kick-off (facts/dagster.md 6)."""

    instance: dg.DagsterInstance
    names: Names
    log_event: Callable[[dg.AssetObservation], None] | None = None

    def accepted(self, export_id: str, intent: int, status_url: str, /) -> None:
        if self.log_event is None:
            return
        observation = dg.AssetObservation(
            asset_key=self.names.key("export_request"),
            partition=export_id,
            description="kick-off accepted",
            metadata={_STATUS_URL: dg.MetadataValue.text(status_url), _INTENT: intent},
        )
        self.log_event(observation)

    def find_accepted(self, export_id: str, /) -> tuple[int, str] | None:
        wanted = AssetRecordsFilter(asset_key=self.names.key("export_request"), asset_partitions=[export_id])
        for record in self.instance.fetch_observations(wanted, limit=100).records:
            observation = record.asset_observation
            metadata = observation.metadata if observation else {}
            if _STATUS_URL in metadata and _INTENT in metadata:
                return int(str(metadata[_INTENT].value)), str(metadata[_STATUS_URL].value)
        return None


announcement: ContextVar[Callable[[str], None] | None] = ContextVar("announcement", default=None)
"""Who else is told what a step logs: the terminal of a command-line run."""


def _log(context: dg.OpExecutionContext) -> Callable[[str], None]:
    announce = announcement.get()

    def log(text: str) -> None:
        context.log.info(text)
        if announce is not None:
            announce(text)

    return log


def session_in_step(config: Config, source: Source, context: dg.OpExecutionContext) -> Session:
    """The session of a step of a run."""
    owner = _owner(context)
    if context.run_id not in _seen:
        _seen.add(context.run_id)
        _introduce(context, names_of(source), owner)
        if owner.pid is not None:
            end_with(owner.pid)
    return Session(
        config=config,
        source=source,
        owner=owner,
        is_dead=is_dead_in(context.instance),
        witness=EventLogWitness(context.instance, names_of(source), context.log_event),
        attempt=_attempt_of(context),
        log=_log(context),
    )


_YOUNG = timedelta(minutes=1)
"""After that a run that lives has claimed its work: by the facts, which count then."""


def is_on_its_way(instance: dg.DagsterInstance, job: str, export_id: str) -> bool:
    """Whether a run for an export has been made that may not have claimed its work yet.

    Daemon and command line go by the same facts: of two runs that begin at once one would find the work
    claimed and fail, and its assets be red for nothing.
    """
    wanted = RunsFilter(
        job_name=job,
        tags={PARTITION_NAME_TAG: export_id},
        statuses=_UNFINISHED,
        created_after=utc_now() - _YOUNG,
    )
    return bool(instance.get_run_ids(wanted, limit=1))


_seen: set[str] = set()


def _introduce(context: dg.OpExecutionContext, names: Names, owner: Owner) -> None:
    """Makes a run known, also one that was started by hand: whose it is, where it lives, its partition."""
    missing = {name: value for name, value in names.tags.items() if name not in context.run.tags}
    if owner.pid is not None and not _is_of(context.run.tags.get(PROCESS_TAG), context.run_id):
        missing[PROCESS_TAG] = (
            owner.model_dump_json()
        )  # Dagster copies the tags of the run that is executed again
    if missing:
        context.instance.add_run_tags(context.run_id, missing)
    if context.has_partition_key:
        # The database may be new: partitions are rebuilt from the facts (design, Facts).
        context.instance.add_dynamic_partitions(names.partitions.name or "", [context.partition_key])


def _owner(context: dg.OpExecutionContext) -> Owner:
    """The run, and its process as far as it is on this machine."""
    if _lives_here(context):
        return this_process(context.run_id)
    worker = _run_worker(context) if context.job_def.executor_def.name == "multiprocess" else None
    return process_of_run(context.run_id, worker) if worker else this_process(context.run_id, outlived=True)


def _run_worker(context: dg.OpExecutionContext) -> int | None:
    """The process that hands out the steps: the one above this that the run's own events name."""
    above = {process.pid for process in psutil.Process().parents()}
    for record in context.instance.all_logs(context.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        event = record.dagster_event
        pid = event.engine_event_data.metadata.get("pid") if event else None
        if pid is not None and str(pid.value).isdigit() and int(str(pid.value)) in above:
            return int(str(pid.value))
    return None


def _lives_here(context: dg.OpExecutionContext) -> bool:
    """Whether the run ends when this process does: by its executor, or because the command line runs it."""
    if context.job_def.executor_def.name == dg.in_process_executor.name:
        return True
    tag = context.run.tags.get(PROCESS_TAG)
    if tag is None or not _is_of(tag, context.run_id):
        return False
    return Owner.model_validate_json(tag).pid == os.getpid()


def _attempt_of(context: dg.OpExecutionContext) -> int | None:
    """The attempt that the sensor asked this run for; a run that is executed again may take the next."""
    _, _, what = context.run.tags.get(WORK_TAG, "").rpartition(":")
    return int(what) if what.isdigit() and context.run.parent_run_id is None else None


def session_in_daemon(config: Config, source: Source, instance: dg.DagsterInstance) -> Session:
    """The session of a tick: it looks, and owns nothing."""
    complete(instance)
    return Session(
        config=config,
        source=source,
        owner=this_process("tick"),
        is_dead=is_dead_in(instance),
        witness=EventLogWitness(instance, names_of(source)),
    )


def process_tag(run_id: str) -> dict[str, str]:
    """The tag by which `reap_dead_runs` finds the process of a run that nobody else looks after."""
    return {PROCESS_TAG: this_process(run_id).model_dump_json()}


def _is_of(tag: str | None, run_id: str) -> bool:
    return tag is not None and Owner.model_validate_json(tag).run_id == run_id


def reap_dead_runs(instance: dg.DagsterInstance, source: Source) -> list[str]:
    """Fails the runs whose process was killed: the default launcher does not notice, nor does anybody else.

    Their pool slots are freed, so that a killed kick-off never blocks the next (facts/dagster.md 8).
    """
    reaped = []
    for run in dead_runs(instance, source):
        instance.report_run_failed(run, message="the process of this run ended without a word")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        reaped.append(run.run_id)
    return reaped


def dead_runs(instance: dg.DagsterInstance, source: Source) -> list[dg.DagsterRun]:
    """Unfinished runs of the source whose process on this machine is certainly gone."""
    wanted = RunsFilter(statuses=_UNFINISHED, tags={SOURCE_TAG: source.name})
    found = []
    for run in instance.get_runs(wanted, limit=50):
        tag = run.tags.get(PROCESS_TAG)
        if tag and _is_of(tag, run.run_id) and Owner.model_validate_json(tag).process_is_dead():
            found.append(run)
    return found
