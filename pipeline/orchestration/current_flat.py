"""The flat forms of the current tables: assets of their own, made in a step behind that of the current ones.

A step of its own, so that one that fails leaves the current tables materialized, checked and green.
"""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline.config import Config, Source
from pipeline.exports.current import CURRENT, current_types
from pipeline.exports.current_flat import (
    CurrentFlat,
    current_flat_names,
    current_flat_or_why,
    together,
    wants_current_flat,
)
from pipeline.exports.flattening import NotMade
from pipeline.orchestration.current_assets import published_since
from pipeline.orchestration.known_types import static_types
from pipeline.orchestration.names import Names, names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.tables.definitions import table_name
from pipeline.unexpected import contained

if TYPE_CHECKING:
    from pipeline.exports.session import Session


def build_current_flat(
    config: Config, source: Source, current: list[dg.AssetsDefinition]
) -> list[dg.AssetsDefinition]:
    """The step that flattens what `current` makes; none where the configuration wants none."""
    names = names_of(source)
    specs = [spec for step in current for spec in _specs(source, names, step)]
    if not specs:
        return []

    @dg.multi_asset(
        name=current_flat_step(source),
        specs=specs,
        can_subset=True,
        pool=f"{source.name}_current_flat",
        description="Flattens what has changed in the current tables; the server is not asked.",
    )
    @contained
    def current_flat(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        session = session_in_step(config, source, context.op_execution_context)
        selected = context.selected_asset_keys
        static = set(static_types(source))
        left = set(selected)
        failures: list[NotMade] = []
        for resource_type in current_types(session):
            keys = {names.key(each) for each in current_flat_names(resource_type)}
            if not wants_current_flat(source, resource_type):
                continue
            if resource_type in static and not keys & selected:
                continue
            left -= keys
            done = current_flat_or_why(session, resource_type)
            if isinstance(done, NotMade):
                failures.append(done)
                continue
            for table in done:
                key = names.key(table.name)
                metadata = _metadata(session, table)
                if key in selected:
                    yield dg.MaterializeResult(asset_key=key, metadata=metadata)
                elif (
                    resource_type not in static and table.made.version is not None
                ):  # a type that is no asset yet
                    context.log_event(dg.AssetMaterialization(key, metadata=metadata))
        if error := together(failures):
            raise error
        for key in left:  # no table yet, so nothing is true of this type
            yield dg.MaterializeResult(asset_key=key, metadata={"dagster/row_count": 0})

    return [current_flat]


def current_flat_step(source: Source) -> str:
    """The step's key in runs."""
    return f"{source.name}__current_flat"


def _specs(source: Source, names: Names, current: dg.AssetsDefinition) -> Iterator[dg.AssetSpec]:
    deep = {spec.key: spec for spec in current.specs}
    # In the run that makes the current table, or, after one by hand, in a run of their own.
    for resource_type in static_types(source):
        key = names.key(f"{table_name(resource_type)}{CURRENT}")
        if key not in deep or not wants_current_flat(source, resource_type):
            continue
        for name in current_flat_names(resource_type):
            yield dg.AssetSpec(
                names.key(name),
                deps=[key],
                group_name=f"{source.name}_current",
                kinds={"parquet", "deltalake"},
                description=f"{key.path[-1]} with the plain columns of {name.removesuffix(CURRENT)}.",
                automation_condition=published_since(),
                freshness_policy=deep[key].freshness_policy,
            )


def _metadata(session: "Session", table: CurrentFlat) -> dict[str, Any]:
    from pipeline.tables.flat import flat_tables
    from pipeline.tables.schema import plain

    flat = next(each for each in flat_tables(table.resource_type) if each.name == table.made.name)
    described = flat.column_descriptions
    columns = [
        dg.TableColumn(name=column.name, type=str(column.type), description=described[column.name])
        for column in plain(flat.schema)
    ]
    made = table.made
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/row_count": table.rows,
        "dagster/table_name": f"{session.source.name}.{table.name}",
        "dagster/uri": f"{session.lake.place}/{session.source.name}/current/{table.name}",
        "chunks_in": made.chunks_in,
        "chunks_out": made.chunks_out,
        **({} if made.version is None else {"delta_version": made.version}),
    }
