"""The retention job of a source and its schedule: removes what nothing refers to."""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

import dagster as dg

from pipeline.config import Config, Source
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.unexpected import contained

_SECONDS = 6 * 3600


def build_retention_job(config: Config, source: Source) -> dg.JobDefinition:
    """Done twice at once, or killed and done again, it comes to the same."""
    names = names_of(source)

    @dg.op(
        name=f"{source.name}__retention",
        description="Removes files that no fact and no table names, and raw bytes whose time is over.",
    )
    @contained
    def retention(context: dg.OpExecutionContext) -> None:
        from pipeline.exports.retention import clean

        cleaned = clean(session_in_step(config, source, context))
        for kind, (files, size) in sorted(cleaned.kinds().items()):
            context.log.info(f"{kind}: {files} files removed, {size} bytes")
        for doubt in cleaned.left_alone:
            context.log.warning(f"left alone: {doubt}")
        if not cleaned.kinds():
            context.log.info("nothing to remove")

    @dg.graph(name=names.retention_job)
    def cleaning() -> None:
        retention()

    return cleaning.to_job(
        description="Removes what kills and repeated attempts have left, older than retention.orphans_days.",
        tags={**names.tags, "dagster/max_retries": "0", "dagster/max_runtime": str(_SECONDS)},
        executor_def=dg.in_process_executor,
    )


def build_retention_schedules(
    config: Config, source: Source, job: dg.JobDefinition
) -> list[dg.ScheduleDefinition]:
    """RUNNING from the start; none where `retention.schedule` is null."""
    cron = config.retention.schedule
    if cron is None:
        return []
    schedule = dg.ScheduleDefinition(
        name=names_of(source).retention_schedule,
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Cleans up after {source.name}, {cron} (UTC).",
    )
    return [schedule]
