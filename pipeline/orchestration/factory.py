"""One source of the configuration -> everything that Dagster has to know about it."""

from __future__ import annotations

import dagster as dg

from pipeline.config import Config, Source
from pipeline.orchestration.attachment_assets import (
    build_attachment_assets,
    build_attachment_automation,
    build_attachment_job,
)
from pipeline.orchestration.current_assets import (
    build_current_assets,
    build_current_automation,
    build_current_job,
)
from pipeline.orchestration.current_checks import build_current_checks
from pipeline.orchestration.current_flat import build_current_flat
from pipeline.orchestration.failure_sensor import build_notices_sensor
from pipeline.orchestration.flat_assets import build_flat_assets
from pipeline.orchestration.flat_sensor import build_flat_sensor
from pipeline.orchestration.ingest_assets import build_manifest_asset, build_receipt_asset, build_tables
from pipeline.orchestration.jobs import build_jobs
from pipeline.orchestration.maintenance import build_maintenance_job, build_maintenance_schedules
from pipeline.orchestration.names import names_of
from pipeline.orchestration.request_asset import build_request_asset, group_spec
from pipeline.orchestration.retention import build_retention_job, build_retention_schedules
from pipeline.orchestration.schedule import build_schedules
from pipeline.orchestration.sensor import build_sensor


def build_source(
    config: Config, source: Source, executor: dg.ExecutorDefinition | None = None
) -> dg.Definitions:
    """Assets, jobs, schedules and sensors of one source. `executor` runs the ingest; any fits (design)."""
    executor = executor or _executor(config)
    request = build_request_asset(config, source)
    tables = build_tables(config, source)
    ingest = [build_manifest_asset(config, source), tables, build_receipt_asset(config, source)]
    flat = build_flat_assets(config, source, tables)
    current = build_current_assets(config, source, tables)
    attachments = build_attachment_assets(config, source)
    current_flat = build_current_flat(config, source, current)
    jobs = build_jobs(config, source, request, ingest, flat, executor)
    retention = build_retention_job(config, source)
    maintenance = build_maintenance_job(config, source)
    return dg.Definitions(
        assets=[group_spec(source), request, *ingest, *flat, *current, *current_flat, *attachments],
        asset_checks=build_current_checks(config, source),
        jobs=[
            *jobs,
            *build_current_job(source, current, executor, current_flat),
            *build_attachment_job(source, attachments, executor),
            retention,
            maintenance,
        ],
        schedules=[
            *build_schedules(config, source),
            *build_retention_schedules(config, source, retention),
            *build_maintenance_schedules(config, source, maintenance),
        ],
        sensors=[
            build_sensor(config, source, jobs),
            *filter(None, [build_notices_sensor(config, source)]),
            *build_current_automation(source, current, current_flat),
            *build_attachment_automation(source, attachments),
            *(
                build_flat_sensor(config, source, job)
                for job in jobs
                if job.name == names_of(source).flat_job
            ),
        ],
        executor=executor,  # for what is materialized by hand in the UI
    )


def build_definitions(config: Config, executor: dg.ExecutorDefinition | None = None) -> dg.Definitions:
    """Everything: a group per source. No secret is read yet, so one that is missing harms its source only."""
    return dg.Definitions.merge(*(build_source(config, source, executor) for source in config.sources))


def _executor(config: Config) -> dg.ExecutorDefinition:
    return dg.multiprocess_executor if config.executor == "multiprocess" else dg.in_process_executor
