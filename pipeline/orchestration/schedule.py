"""The schedule: opens an export run at its time, unless one of the source is still open."""

from __future__ import annotations

import dagster as dg
from dagster._core.storage.tags import RUN_KEY_TAG, SCHEDULE_NAME_TAG

from pipeline.config import Config, Source
from pipeline.exports.identity import export_id_at
from pipeline.exports.standing import open_exports
from pipeline.orchestration.names import Names, names_of
from pipeline.orchestration.runs import reap_dead_runs, session_in_daemon
from pipeline.unexpected import contained


def build_schedules(config: Config, source: Source) -> list[dg.ScheduleDefinition]:
    """The nightly one, and that of `full_resync` where there is one: an export that is kicked off after its
    time is full by itself, so one that was skipped is made up for by the next night."""
    names = names_of(source)
    nightly = _schedule(config, source, names.schedule, source.schedule, "Kicks off an export of")
    if source.full_resync is None:
        return [nightly]
    return [
        nightly,
        _schedule(config, source, names.resync_schedule, source.full_resync, "Kicks off a full export of"),
    ]


def _schedule(config: Config, source: Source, name: str, cron: str, does: str) -> dg.ScheduleDefinition:
    """STOPPED until an operator starts it. A tick that is done again opens the same export run."""
    names = names_of(source)

    @dg.schedule(
        name=name,
        job_name=names.kickoff_job,
        cron_schedule=cron,
        execution_timezone=source.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"{does} {source.name}, {cron} ({source.timezone}).",
    )
    @contained
    def export_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        reap_dead_runs(context.instance, source)
        export_id = export_id_at(context.scheduled_execution_time)
        if _is_taken(context.instance, names, export_id, name):
            return dg.SkipReason(f"another schedule has begun {export_id} at this moment")
        still_open = [
            each
            for each in open_exports(session_in_daemon(config, source, context.instance))
            if each.export_id != export_id
        ]
        if still_open:
            first = still_open[0]
            return dg.SkipReason(f"export {first.export_id} is still open: {first.state}, {first.reason}")
        context.instance.add_dynamic_partitions(names.partitions.name or "", [export_id])
        return dg.RunRequest(run_key=export_id, partition_key=export_id)

    return export_schedule


def _is_taken(instance: dg.DagsterInstance, names: Names, export_id: str, schedule: str) -> bool:
    """Whether the source's other schedule has the same moment, and was quicker.

    The key alone says nothing: exports of all sources that begin at this moment have the same.
    """
    begun = dg.RunsFilter(job_name=names.kickoff_job, tags={RUN_KEY_TAG: export_id})
    return any(run.tags.get(SCHEDULE_NAME_TAG, schedule) != schedule for run in instance.get_runs(begun))
