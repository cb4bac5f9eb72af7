"""What the UI shows of a materialized table (facts/dagster.md 19)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline.exports.facts import TableCounts
from pipeline.orchestration.names import Names

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.bulkdata.manifest import Manifest
    from pipeline.exports.attempt import Attempt
    from pipeline.exports.session import Session

LINEAGE_COLUMNS = ("_export_id", "_source_file", "_source_line", "_unmapped")


def table_metadata(
    session: Session, names: Names, attempt: Attempt, manifest: Manifest, table: str, counts: TableCounts
) -> dict[str, Any]:
    """Counts, columns, where it lies, and which export it came from."""
    from pipeline.tables.delta import table_schema, total_rows

    uri, options = session.table_uri(table), session.lake.storage_options
    schema = table_schema(uri, options)
    described = _columns(schema, names, counts.resource_type) if schema is not None else {}
    return {
        **described,
        "dagster/partition_row_count": counts.rows,
        "dagster/row_count": total_rows(uri, options),
        "dagster/table_name": f"{session.source.name}.{table}",
        "dagster/uri": f"{session.table_place(table)}/export_id={attempt.export_id}",
        "export_id": attempt.export_id,
        "transactionTime": manifest.transaction_time,
        "files": counts.files,
        "parquet_bytes": counts.bytes,
        "parquet_parts": counts.parts,
        "quarantined": counts.quarantined,
        "delta_version": counts.version,
        "attempt": attempt.number,
    }


def _columns(schema: pa.Schema, names: Names, resource_type: str) -> dict[str, Any]:
    from pipeline.tables.schema import describe

    columns = [
        dg.TableColumn(
            name=name,
            type=kind,
            description=description,
            constraints=dg.TableColumnConstraints(nullable=nullable),
        )
        for name, kind, description, nullable in describe(schema, resource_type)
    ]
    origin: Mapping[str, list[dg.TableColumnDep]] = {
        column.name: [dg.TableColumnDep(names.origin, f"{resource_type}.{column.name}")]
        for column in columns
        if column.name not in LINEAGE_COLUMNS
    }
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/column_lineage": dg.TableColumnLineage(deps_by_column=origin),
    }
