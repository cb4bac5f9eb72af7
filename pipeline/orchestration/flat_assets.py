"""The flat tables: an asset each, downstream of their table, made in one step behind the publish.

One step for all of them, since a process for each would cost more than the work. It comes last in a run and
nothing waits for it: a flat table that cannot be made leaves the export published, with its receipt.
"""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline.config import Config, Source
from pipeline.errors import ExportError
from pipeline.exports.flattening import (
    FlatPartition,
    NotMade,
    flat_names,
    make_flat_tables,
    published,
    read_columns,
    wanted_names,
    wants_flat,
)
from pipeline.orchestration.known_types import static_types
from pipeline.orchestration.names import WORK_TAG, Names, names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.tables.definitions import table_name
from pipeline.unexpected import contained

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.exports.session import Session
    from pipeline.tables.flat import FlatTable


def build_flat_assets(
    config: Config, source: Source, tables: dg.AssetsDefinition
) -> list[dg.AssetsDefinition]:
    """The step that makes the flat tables of `tables`; none where the configuration wants none."""
    names = names_of(source)
    specs = list(_specs(source, names, tables))
    if not specs:
        return []

    @dg.multi_asset(
        name=flat_step(source),
        specs=specs,
        can_subset=True,
        partitions_def=names.partitions,
        # The receipt comes first, also where steps run one after the other.
        op_tags={"dagster/priority": "-1"},
        description="Makes flat tables from the published ones; the server is not asked.",
    )
    @contained
    def flat(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        session = session_in_step(config, source, context.op_execution_context)
        export_id, selected = context.partition_key, context.selected_asset_keys
        names_by_type = wanted_names(source, published(session, export_id))
        if context.job_name not in (names.ingest_job, names.flat_job):
            names_by_type = _only(names_by_type, {key.path[-1] for key in selected})
        # What nobody asked for by hand goes on where an earlier run ended; who asks for a table gets it anew.
        again = context.job_name != names.ingest_job and WORK_TAG not in context.run.tags
        told = FlatMetadata(session, names, export_id)
        failures: list[NotMade] = []
        for done in make_flat_tables(session, export_id, names_by_type, again=again):
            if isinstance(done, NotMade):
                failures.append(done)
                continue
            for made, metadata in told.metadata(done):
                if names.key(made.table) in selected:
                    yield dg.MaterializeResult(asset_key=names.key(made.table), metadata=metadata)
                else:  # a type that is no asset yet
                    _log_materialization(context, names.key(made.table), export_id, metadata)
        if failures:
            raise _together(failures, len(names_by_type))
        known = {each for tables in names_by_type.values() for each in tables}
        for key in selected:
            if key.path[-1] not in known:  # the server sent nothing of this type: no table, no rows
                nothing = {"dagster/partition_row_count": 0, "export_id": export_id}
                yield dg.MaterializeResult(asset_key=key, metadata=nothing)

    return [flat]


def flat_step(source: Source) -> str:
    """The step's key in runs."""
    return f"{source.name}__flat"


def _specs(source: Source, names: Names, tables: dg.AssetsDefinition) -> Iterator[dg.AssetSpec]:
    deep = {spec.key: spec for spec in tables.specs}
    for resource_type in static_types(source):
        if not wants_flat(source, resource_type):
            continue
        key = names.key(table_name(resource_type))
        for name in flat_names(resource_type):
            yield dg.AssetSpec(
                names.key(name),
                deps=[key],
                group_name=f"{source.name}_flat",
                kinds={"parquet", "deltalake"},
                description=_description(name, resource_type),
                freshness_policy=deep[key].freshness_policy,
            )


def _description(name: str, resource_type: str) -> str:
    rows = "one row for each item" if "_item_" in name else "one row for each resource"
    if resource_type == "Observation":
        rows += " and for each of its components"
    return f"{resource_type} with plain columns, {rows}: typed numbers and times, bare ids, codes."


def _only(names: dict[str, tuple[str, ...]], selected: set[str]) -> dict[str, tuple[str, ...]]:
    chosen = {kind: tuple(each for each in tables if each in selected) for kind, tables in names.items()}
    return {kind: tables for kind, tables in chosen.items() if tables}


def _log_materialization(
    context: dg.AssetExecutionContext, key: dg.AssetKey, export_id: str, metadata: dict[str, Any]
) -> None:
    context.log_event(dg.AssetMaterialization(key, partition=export_id, metadata=metadata))


def _together(failures: Sequence[NotMade], types: int) -> ExportError:
    """One error for all: of the kind of the first, with its advice."""
    first = failures[0].error
    causes = "; ".join(f"{each.resource_type}: {each.error.cause}" for each in failures)
    cause = f"the flat tables of {len(failures)} of {types} resource types could not be made ({causes})"
    advice = f"{first.advice}. " if first.advice else ""
    advice += "The export itself is not touched by it: materialize these flat tables again when it is mended"
    return type(first)(cause, advice)


class FlatMetadata:
    """What the UI shows of flat tables (facts/dagster.md 19)."""

    def __init__(self, session: "Session", names: Names, export_id: str) -> None:
        self.session = session
        self.names = names
        self.export_id = export_id
        manifest = session.ledger.read(export_id).manifest
        self.transaction_time = manifest.transaction_time if manifest else None

    def metadata(self, done: Sequence[FlatPartition]) -> Iterator[tuple[FlatPartition, dict[str, Any]]]:
        """For the flat tables of one resource type."""
        from pipeline.tables.delta import table_schema, total_rows
        from pipeline.tables.flat import flat_tables

        options = self.session.lake.storage_options
        tables = {table.name: table for table in flat_tables(done[0].resource_type)}
        deep = table_schema(self.session.table_uri(table_name(done[0].resource_type)), options)
        for made in done:
            uri = self.session.table_uri(made.table)
            yield (
                made,
                {
                    **self._columns(tables[made.table], deep),
                    "dagster/partition_row_count": made.rows,
                    "dagster/row_count": total_rows(uri, options),
                    "dagster/table_name": f"{self.session.source.name}.{made.table}",
                    "dagster/uri": f"{self.session.table_place(made.table)}/export_id={self.export_id}",
                    "export_id": self.export_id,
                    "transactionTime": self.transaction_time,
                    "parquet_bytes": made.bytes,
                    "parquet_parts": made.parts,
                    "attempt": made.attempt,
                    "made_now": made.made,
                    **({"delta_version": made.version} if made.made else {}),
                },
            )

    def _columns(self, table: "FlatTable", deep: "pa.Schema | None") -> dict[str, Any]:
        from pipeline.tables.schema import plain

        described = table.column_descriptions
        columns = [
            dg.TableColumn(name=field.name, type=str(field.type), description=described[field.name])
            for field in plain(table.schema)
        ]
        key = self.names.key(table_name(table.resource_type))
        read = read_columns(table, deep) if deep is not None else {}
        origin = {name: [dg.TableColumnDep(key, each) for each in of] for name, of in read.items() if of}
        return {
            "dagster/column_schema": dg.TableSchema(columns=columns),
            "dagster/column_lineage": dg.TableColumnLineage(deps_by_column=origin),
        }
