"""The schedule: opens an export run at its time, unless one of the source is still open."""

from __future__ import annotations

import dagster as dg

from pipeline.config import Config, Source
from pipeline.exports.identity import export_id_at
from pipeline.exports.standing import open_exports
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import reap_dead_runs, session_in_daemon
from pipeline.unexpected import contained


def build_schedule(config: Config, source: Source) -> dg.ScheduleDefinition:
    """STOPPED until an operator starts it. A tick that is done again opens the same export run."""
    names = names_of(source)

    @dg.schedule(
        name=names.schedule,
        job_name=names.kickoff_job,
        cron_schedule=source.schedule,
        execution_timezone=source.timezone,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Kicks off an export of {source.name}, {source.schedule} ({source.timezone}).",
    )
    @contained
    def export_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        reap_dead_runs(context.instance, source)
        export_id = export_id_at(context.scheduled_execution_time)
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
