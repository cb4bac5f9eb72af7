"""The maintenance job of a source and its schedule: Delta tables and their logs do not grow for ever."""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

import dagster as dg

from pipeline.config import Config, Source
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.unexpected import contained

_SECONDS = 6 * 3600


def build_maintenance_job(config: Config, source: Source) -> dg.JobDefinition:
    """Done twice at once, or killed and done again, it comes to the same."""
    names = names_of(source)

    @dg.op(
        name=f"{source.name}__maintenance",
        description="Removes what the Delta tables have taken out, and old commits, by their retention.",
    )
    @contained
    def maintenance(context: dg.OpExecutionContext) -> None:
        from pipeline.exports.maintenance import maintain

        done = maintain(session_in_step(config, source, context))
        files = sum(len(each.upkeep.files) for each in done.tables)
        size, commits = sum(each.bytes for each in done.tables), sum(each.commits for each in done.tables)
        removed = f"{files} data files ({size} bytes) and {commits} files of logs removed"
        context.log.info(f"{len(done.tables)} tables: {removed}")
        if done.error:
            raise done.error

    @dg.graph(name=names.maintenance_job)
    def maintaining() -> None:
        maintenance()

    return maintaining.to_job(
        description="Old files and old logs of the Delta tables, by the retention of each.",
        tags={**names.tags, "dagster/max_retries": "0", "dagster/max_runtime": str(_SECONDS)},
        executor_def=dg.in_process_executor,
    )


def build_maintenance_schedules(
    config: Config, source: Source, job: dg.JobDefinition
) -> list[dg.ScheduleDefinition]:
    """RUNNING from the start, when `retention.schedule` says; none where that is null."""
    cron = config.retention.schedule
    if cron is None:
        return []
    schedule = dg.ScheduleDefinition(
        name=names_of(source).maintenance_schedule,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Maintains the Delta tables of {source.name}, {cron} (UTC).",
    )
    return [schedule]
