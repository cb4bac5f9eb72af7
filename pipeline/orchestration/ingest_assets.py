"""`export_manifest`, the tables, `export_receipt`: from a finished export to published tables.

The tables are one graph of static steps: a stage per type (or shard of it), then one step that publishes all.
No `DynamicOut`: a worker killed in a fan-out would lose the steps that had not started (facts/dagster.md 1).
"""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import dagster as dg
from cronsim import CronSim

from pipeline.config import Config, Source
from pipeline.errors import ExportError
from pipeline.exports.attempt import claim_attempt, recorded
from pipeline.exports.evidence import TableEvidence, find_evidence
from pipeline.exports.publishing import publish
from pipeline.orchestration.asset_metadata import manifest_metadata, published_metadata, receipt_metadata
from pipeline.orchestration.known_types import remember_types, static_types
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.orchestration.table_checks import failed, results, specs_for
from pipeline.unexpected import contained

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest
    from pipeline.exports.attempt import Attempt
    from pipeline.exports.session import Session

Event = dg.Output[None] | dg.AssetCheckResult


def build_manifest_asset(config: Config, source: Source) -> dg.AssetsDefinition:
    """The asset that claims an attempt and reads the manifest."""
    names = names_of(source)

    @dg.asset(
        key=names.key("export_manifest"),
        deps=[names.key("export_request")],
        partitions_def=names.partitions,
        group_name=source.name,
        kinds={"fhir"},
        description="The manifest of the finished export: which files, of which type, how many lines.",
    )
    @contained
    def export_manifest(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from pipeline.exports.manifests import open_manifest

        session = session_in_step(config, source, context.op_execution_context)
        attempt = claim_attempt(session, context.partition_key)
        with recorded(session, attempt):
            manifest = open_manifest(session, attempt)
        return dg.MaterializeResult(metadata=manifest_metadata(attempt, manifest))

    return export_manifest


def build_tables(config: Config, source: Source) -> dg.AssetsDefinition:
    """The graph of staging steps and the one publish step, with an asset per table."""
    from pipeline.tables.definitions import table_name

    names = names_of(source)
    tables = {table_name(each): each for each in static_types(source)}
    stages = _stages(config, source, tables)
    publishing = _publish_op(config, source, tables)
    checks = [spec for table in tables for spec in specs_for(names.key(table))]

    def compose(manifest: Any) -> dict[str, Any]:
        published = publishing(staged=[stage(manifest) for stage in stages])
        outputs = [*tables, *(spec.get_python_identifier() for spec in checks)]
        return {name: getattr(published, name) for name in outputs}

    graph = dg.graph_multi_asset(
        name=f"{source.name}_tables",
        ins={"manifest": dg.AssetIn(key=names.key("export_manifest"), dagster_type=dg.Nothing)},
        outs={
            table: dg.AssetOut(
                key=names.key(table),
                dagster_type=dg.Nothing,
                description=f"Every {resource_type} of each export, a partition an export run.",
                kinds={"parquet", "deltalake"},
            )
            for table, resource_type in tables.items()
        },
        partitions_def=names.partitions,
        group_name=source.name,
        check_specs=checks,
    )(compose)
    policy = _freshness(source)
    return graph.map_asset_specs(lambda spec: dg.apply_freshness_policy(spec, policy))


_TICKS = 40
"""Enough to meet the longest pause of a weekly or working-day schedule."""


def _freshness(source: Source) -> dg.FreshnessPolicy:
    """Stale when the longest pause of the schedule, and the time an export may take, have gone by.

    Not `FreshnessPolicy.cron`: its window is the shortest pause, so that a working-day schedule would be red
    each Monday.
    """
    ticks = list(islice(CronSim(source.schedule, datetime.now(ZoneInfo(source.timezone))), _TICKS))
    pause = max(after - before for before, after in pairwise(ticks))
    return dg.FreshnessPolicy.time_window(fail_window=pause + timedelta(hours=source.deadline_hours))


def build_receipt_asset(config: Config, source: Source) -> dg.AssetsDefinition:
    """The asset that verifies once more, writes the receipt and gives the job back to the server."""
    from pipeline.tables.definitions import table_name

    names = names_of(source)

    @dg.asset(
        key=names.key("export_receipt"),
        deps=[names.key(table_name(each)) for each in static_types(source)],
        partitions_def=names.partitions,
        group_name=source.name,
        kinds={"json"},
        description="All of it is published and verified: the watermark may move, the server's copy may go.",
    )
    @contained
    def export_receipt(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from pipeline.exports.manifests import stored_manifest
        from pipeline.exports.receipt import write_receipt
        from pipeline.exports.tidying import release

        session = session_in_step(config, source, context.op_execution_context)
        attempt = claim_attempt(session, context.partition_key)
        with recorded(session, attempt):
            receipt = write_receipt(session, attempt, stored_manifest(session, attempt.export_id))
        released = release(session, attempt.export_id)
        return dg.MaterializeResult(metadata=receipt_metadata(attempt.export_id, receipt, released))

    return export_receipt


def _stages(config: Config, source: Source, tables: dict[str, str]) -> list[dg.OpDefinition]:
    """One step per type or shard, one for other types and untyped files, one for the rest."""
    stages = []
    for table, resource_type in tables.items():
        shards = source.shards.get(resource_type, 1)
        for shard in range(shards):
            suffix = f"_{shard + 1}of{shards}" if shards > 1 else ""
            stages.append(_stage_op(config, source, f"{table}{suffix}", _one(table, shard, shards)))
    stages.append(_stage_op(config, source, "other_types", _others(tables)))
    stages.append(_stage_op(config, source, "deleted_and_errors", _sidecars))
    return stages


Staging = Callable[["Session", "Attempt", "Manifest"], dict[str, int]]


def _stage_op(config: Config, source: Source, name: str, work: Staging) -> dg.OpDefinition:
    @dg.op(
        name=f"{source.name}__stage_{name}",
        ins={"manifest": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        description="Lands the files' bytes, verifies and converts them; no reader sees anything yet.",
    )
    @contained
    def stage(context: dg.OpExecutionContext) -> None:
        from pipeline.exports.manifests import stored_manifest

        session = session_in_step(config, source, context)
        attempt = claim_attempt(session, context.partition_key)
        with recorded(session, attempt):
            numbers = work(session, attempt, stored_manifest(session, attempt.export_id))
        context.log.info(", ".join(f"{value} {what}" for what, value in numbers.items()))

    return stage


def _one(table: str, shard: int, shards: int) -> Staging:
    def work(session: "Session", attempt: "Attempt", manifest: "Manifest") -> dict[str, int]:
        from pipeline.exports.staging import stage_type

        staged = stage_type(session, attempt, manifest, table, shard, shards)
        return {"files": staged.files, "rows": staged.rows, "quarantined": staged.quarantined}

    return work


def _others(tables: dict[str, str]) -> Staging:
    def work(session: "Session", attempt: "Attempt", manifest: "Manifest") -> dict[str, int]:
        from pipeline.exports.staging import groups_of, stage_type

        others = [group for group in groups_of(manifest) if group not in tables]
        staged = [stage_type(session, attempt, manifest, group) for group in others]
        return {
            "types beyond the static ones, or none": len(others),
            "files": sum(each.files for each in staged),
            "rows": sum(each.rows for each in staged),
            "quarantined": sum(each.quarantined for each in staged),
        }

    return work


def _sidecars(session: "Session", attempt: "Attempt", manifest: "Manifest") -> dict[str, int]:
    from pipeline.exports.staging import land_sidecars

    batches = land_sidecars(session, attempt, manifest)
    return {"files": sum(len(batch.files) for batch in batches)}


def _publish_op(config: Config, source: Source, tables: dict[str, str]) -> dg.OpDefinition:
    names = names_of(source)
    checks = [spec for table in tables for spec in specs_for(names.key(table))]
    outs = {table: dg.Out(dg.Nothing) for table in tables}
    outs |= {spec.get_python_identifier(): dg.Out(dg.Nothing) for spec in checks}

    @dg.op(
        name=f"{source.name}__publish",
        ins={"staged": dg.In(dg.Nothing)},
        out=outs,
        description="Checks everything against the manifest, then commits every table, each once.",
    )
    @contained
    def publish_tables(context: dg.OpExecutionContext) -> Iterator[Event]:
        from pipeline.exports.manifests import stored_manifest

        session = session_in_step(config, source, context)
        attempt = claim_attempt(session, context.partition_key)
        manifest = stored_manifest(session, attempt.export_id)
        try:
            with recorded(session, attempt):
                done = publish(session, attempt, manifest, source.export.types or ())
        except ExportError as error:
            for table in tables:
                yield from failed(names.key(table), error.cause)
            raise
        others = sorted(done.tables.keys() - tables.keys())
        remember_types(source, (done.tables[table].resource_type for table in others))
        evidence = find_evidence(session, attempt, manifest, done)
        for table in tables:
            yield from results(names.key(table), evidence.get(table, _NOTHING))
            yield dg.Output(
                None,
                table,
                metadata=published_metadata(session, names, attempt, manifest, table, done.tables),
            )
        for table in others:
            context.log_event(
                dg.AssetMaterialization(
                    names.key(table),
                    partition=attempt.export_id,
                    metadata=published_metadata(session, names, attempt, manifest, table, done.tables),
                )
            )

    return publish_tables


_NOTHING = TableEvidence()
