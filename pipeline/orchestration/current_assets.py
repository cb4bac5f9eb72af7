"""The current tables: an unpartitioned asset each, downstream of the partitions of its table.

Declarative automation asks for them when a table was published; `run --wait` has the same job run in its own
process. One step folds all types that are asked for, one after the other.
"""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.config import Config, Source
from pipeline.errors import ExportError
from pipeline.exports.current import CURRENT, CurrentTable, current_types, update_current, wants_current
from pipeline.orchestration.known_types import static_types
from pipeline.orchestration.names import Names, names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.tables.definitions import table_name
from pipeline.unexpected import contained

_SECONDS = 12 * 3600
_EVERY_SECONDS = 30


def build_current_assets(
    config: Config, source: Source, tables: dg.AssetsDefinition
) -> list[dg.AssetsDefinition]:
    """The step that brings the current tables up to date; none where the configuration wants none."""
    names = names_of(source)
    specs = list(_specs(source, names, tables))
    if not specs:
        return []

    @dg.multi_asset(
        name=current_step(source),
        specs=specs,
        can_subset=True,
        pool=f"{source.name}_current",
        description="Folds new exports into the current tables; the server is not asked.",
    )
    @contained
    def current(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        session = session_in_step(config, source, context.op_execution_context)
        selected = context.selected_asset_keys
        there = current_types(session)
        static = {names.key(_name(each)): each for each in static_types(source)}
        failures: list[tuple[str, ExportError]] = []
        for resource_type in there:
            key = names.key(_name(resource_type))
            if key in static and key not in selected:
                continue
            try:
                table = update_current(session, resource_type)
            except ExportError as error:
                session.log(f"{key.path[-1]} could not be brought up to date: {error}")
                failures.append((resource_type, error))
                continue
            metadata = _metadata(session, table)
            if key in selected:
                yield dg.MaterializeResult(asset_key=key, metadata=metadata)
            elif table.merged is not None:  # a type that is no asset yet
                context.log_event(dg.AssetMaterialization(key, metadata=metadata))
        if failures:
            first = failures[0][1]
            causes = "; ".join(f"{kind}: {error.cause}" for kind, error in failures)
            raise type(first)(
                f"{len(failures)} current tables are not up to date ({causes})",
                f"{first.advice or 'See the log'}. The exports are published all the same",
            )
        for key in selected:
            if static[key] not in there:  # no table yet, so nothing is true of this type
                yield dg.MaterializeResult(asset_key=key, metadata={"dagster/row_count": 0})

    return [current]


def current_step(source: Source) -> str:
    """The step's key in runs."""
    return f"{source.name}__current"


def build_current_job(
    source: Source,
    current: list[dg.AssetsDefinition],
    executor: dg.ExecutorDefinition,
    after: Sequence[dg.AssetsDefinition] = (),
) -> list[UnresolvedAssetJobDefinition]:
    """The job that the command line runs, and that anyone may start by hand; `after`: steps behind it."""
    names = names_of(source)
    return [
        dg.define_asset_job(
            names.current_job,
            selection=[step, *after],
            description="Brings the current tables up to date with all published exports.",
            run_tags={**names.tags, "dagster/max_runtime": str(_SECONDS)},
            executor_def=executor,
        )
        for step in current
    ]


def build_current_automation(
    source: Source, current: list[dg.AssetsDefinition], after: Sequence[dg.AssetsDefinition] = ()
) -> list[dg.AutomationConditionSensorDefinition]:
    """Looks twice a minute whether a table was published since its current one was made."""
    names = names_of(source)
    return [
        dg.AutomationConditionSensorDefinition(
            names.current_sensor,
            target=dg.AssetSelection.assets(*(key for each in (step, *after) for key in each.keys)),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=_EVERY_SECONDS,
            run_tags={**names.tags, "dagster/max_runtime": str(_SECONDS)},
            description=f"Has the current tables of {source.name} brought up to date after each export.",
        )
        for step in current
    ]


def published_since() -> dg.AutomationCondition[Any]:
    """Something that it is made from was published, or published again, since the last look.

    Not `eager`: an export that failed leaves a partition missing for good, and `eager` would wait for it. Not
    `since_last_handled` either, nor only where no run is on its way: what was published while one ran, or
    between two looks, counts as handled then, and stays away until the next night (measured). A run too many
    finds nothing to do.
    """
    return dg.AutomationCondition.any_deps_updated()


def _name(resource_type: str) -> str:
    return f"{table_name(resource_type)}{CURRENT}"


def _specs(source: Source, names: Names, tables: dg.AssetsDefinition) -> Iterator[dg.AssetSpec]:
    deep = {spec.key: spec for spec in tables.specs}
    for resource_type in static_types(source):
        if not wants_current(source, resource_type):
            continue
        key = names.key(table_name(resource_type))
        yield dg.AssetSpec(
            names.key(_name(resource_type)),
            deps=[dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping())],
            group_name=f"{source.name}_current",
            kinds={"parquet", "deltalake"},
            description=f"Each {resource_type} as it is now: its newest version, without what was deleted.",
            automation_condition=published_since(),
            freshness_policy=deep[key].freshness_policy,
        )


def _metadata(session: Any, table: CurrentTable) -> dict[str, Any]:
    merged = table.merged
    return {
        "dagster/row_count": table.rows,
        "dagster/table_name": f"{session.source.name}.{table.name}",
        "dagster/uri": f"{session.lake.place}/{session.source.name}/current/{table.name}",
        "deleted": table.deleted,
        "exports": ", ".join(table.exports) or "none since the last time",
        **({"made_again": table.anew} if table.anew else {}),
        **(
            {
                "rows_in": merged.added,
                "rows_out": merged.removed,
                "chunks_in": merged.chunks_in,
                "chunks_out": merged.chunks_out,
                "delta_version": merged.version,
            }
            if merged
            else {}
        ),
    }
