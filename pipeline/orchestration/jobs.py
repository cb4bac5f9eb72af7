"""The jobs of a source: kick-off, ingest, flat tables again, and giving back what is no longer needed."""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.config import Config, Source
from pipeline.orchestration.names import names_of
from pipeline.orchestration.request_asset import KICKOFF_SECONDS
from pipeline.orchestration.runs import session_in_step
from pipeline.unexpected import contained

# The sensor is the one retry authority (design, Facts); a kick-off asked twice may start two exports.
_NO_RETRIES = {"dagster/max_retries": "0"}
_INGEST_SECONDS = 24 * 3600


def build_jobs(
    config: Config,
    source: Source,
    request: dg.AssetsDefinition,
    ingest: Sequence[dg.AssetsDefinition],
    flat: Sequence[dg.AssetsDefinition],
    executor: dg.ExecutorDefinition,
) -> list[dg.JobDefinition | UnresolvedAssetJobDefinition]:
    """Kick-off is short by its `max_runtime`; ingest may take as long as the data needs."""
    names = names_of(source)
    kickoff = dg.define_asset_job(
        names.kickoff_job,
        selection=[request],
        description="Signs in and kicks off the export.",
        run_tags={**names.tags, **_NO_RETRIES, "dagster/max_runtime": str(KICKOFF_SECONDS)},
        executor_def=dg.in_process_executor,
    )
    ingesting = dg.define_asset_job(
        names.ingest_job,
        selection=[*ingest, *flat],
        description="Reads the manifest, lands and converts the files, publishes the tables; then flat ones.",
        run_tags={**names.tags, **_NO_RETRIES, "dagster/max_runtime": str(_INGEST_SECONDS)},
        executor_def=executor,
    )
    flattening = [
        dg.define_asset_job(
            names.flat_job,
            selection=[step],
            description="Makes the flat tables of a published export again, from its tables alone.",
            run_tags={**names.tags, "dagster/max_runtime": str(_INGEST_SECONDS)},
            executor_def=executor,
        )
        for step in flat
    ]
    return [kickoff, ingesting, *flattening, _tidy_job(config, source)]


def _tidy_job(config: Config, source: Source) -> dg.JobDefinition:
    names = names_of(source)

    @dg.op(
        name=f"{source.name}__tidy",
        config_schema={"export_id": str},
        description="Deletes the job on the server, and the raw bytes where they are not kept.",
    )
    @contained
    def tidy(context: dg.OpExecutionContext) -> None:
        from pipeline.exports import tidying

        session = session_in_step(config, source, context)
        for what in tidying.tidy(session, context.op_config["export_id"]):
            context.log.info(what)

    @dg.graph(name=names.tidy_job)
    def tidying() -> None:
        tidy()

    return tidying.to_job(
        description="After the receipt: gives back what the export still holds.",
        tags={**names.tags, **_NO_RETRIES, "dagster/max_runtime": str(KICKOFF_SECONDS)},
        executor_def=dg.in_process_executor,
    )
