"""Flat tables from Parquet that has hardly a column: the floor alone, and less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables import definitions
from pipeline.tables.flat import flat_tables, flatten
from pipeline.tables.flat.flattening import connect, select_sql
from pipeline.tables.schema import floor_schema

BY_HAND = [
    *("AllergyIntolerance", "Claim", "Condition", "Coverage", "DiagnosticReport", "DocumentReference"),
    *("Encounter", "ExplanationOfBenefit", "Immunization", "MedicationRequest", "Observation", "Patient"),
    "Procedure",
]


def spelled(duckdb_type: object) -> str:
    return str(duckdb_type).replace('"', "").replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect("1GB", 1, tmp_path_factory.mktemp("spill")) as opened:
        yield opened


@pytest.mark.parametrize("resource_type", definitions.RESOURCE_TYPES)
def test_the_floor_alone_is_enough_for_every_type(
    connection: duckdb.DuckDBPyConnection, resource_type: str
) -> None:
    """tables fact 2: presence is the floor and what was seen, so anything beyond the floor may be missing."""
    floor = floor_schema(resource_type)
    row = pa.Table.from_pylist([dict.fromkeys(floor.names)], schema=floor)
    connection.register("floor_rows", row)
    for table in flat_tables(resource_type):
        for branch in table.branches:
            if sql := select_sql(branch, floor, "floor_rows"):
                found = connection.sql(sql)
                assert found.columns == table.schema.names
                assert list(map(spelled, found.types)) == [spelled(c.type.sql) for c in table.columns]


@pytest.mark.parametrize("resource_type", BY_HAND)
def test_parquet_with_nothing_but_an_id_is_enough(tmp_path: Path, resource_type: str) -> None:
    """Any column may be missing from an older export; the flat table has all of its own anyway."""
    source = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"id": ["1"], "_source_line": [3]}), source)
    main, *items = flatten(resource_type, [source], tmp_path).values()
    (part,) = main
    (row,) = pq.read_table(part.path).to_pylist()
    assert part.schema.equals(flat_tables(resource_type)[0].schema)
    assert {name: value for name, value in row.items() if value is not None} == {"id": "1", "_source_line": 3}
    assert items in ([], [[]])
