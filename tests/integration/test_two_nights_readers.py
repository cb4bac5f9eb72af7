"""Night 2 brings columns that night 1 lacked: every reader that docs/tables.md names sees both nights whole.

The expected values are written by hand (facts/tables.md, rules 2 and 3; issue 3, points 2 and 3).
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipeline.tables.convert import Converter
from pipeline.tables.delta import StagedPart, commit_export, part_path, table_schema

N1, N2 = "20260101T020000Z", "20260102T020000Z"
URL = "http://example.org/extension"
ANCHOR = "2026-01-01T00:00:00Z"


def plain(name: str) -> dict[str, Any]:
    """What both nights bring."""
    return {
        "resourceType": "Patient",
        "id": name,
        "name": [{"family": "Old"}, {"family": "New"}],
        "contact": [{"name": {"family": "Kin"}}],
        "extension": [{"url": URL, "valueString": "text"}],
    }


def new(name: str) -> dict[str, Any]:
    """Something new of each kind: at the top, in a structure in a list, deeper, an extension's value type,
    an extension of a primitive, an unknown member."""
    resource = plain(name)
    resource["contained"] = [{"resourceType": "Organization", "id": "o"}]
    resource["name"][1]["_family"] = {"extension": [{"url": URL, "valueString": "van"}]}
    resource["contact"][0]["name"]["period"] = {"start": "2020-02"}
    resource["extension"] += [
        {"url": URL, "valueDecimal": "@1.10@"},
        {"url": URL, "extension": [{"url": "inner", "valueDate": "2021"}]},
    ]
    resource["_birthDate"] = {"extension": [{"url": URL, "valueDateTime": ANCHOR}]}
    resource["favouriteColour"] = "blue"
    return resource


def line(resource: dict[str, Any]) -> bytes:
    """As NDJSON; `"@1.10@"` is a number that Python would not write."""
    return json.dumps(resource).encode().replace(b'"@', b"").replace(b'@"', b"") + b"\n"


def ingest(table: Path, export_id: str, files: dict[str, list[bytes]], rows_a_part: int = 2) -> None:
    """One export of Patient: converted, staged and committed as the pipeline does."""
    spool = table.parent / f"spool-{export_id}"
    spool.mkdir(parents=True)
    known = table_schema(str(table))
    with Converter("Patient", known, export_id, spool, max_part_rows=rows_a_part) as converter:
        for name, lines in files.items():
            converter.add(lines, name)
        parts = converter.finish()
    staged = []
    for part in parts:
        path = part_path(export_id, 1)
        (table / path).parent.mkdir(parents=True, exist_ok=True)
        part.path.rename(table / path)
        staged.append(StagedPart(path, part.bytes, part.rows))
    spool.rmdir()
    commit_export(
        str(table), export_id=export_id, attempt=1, replaces_after=0, parts=staged, schema=converter.schema
    )


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two nights: ids a-c, then d-f of which the very last line brings everything new."""
    table = tmp_path_factory.mktemp("lake") / "patient"
    ingest(table, N1, {"output-000000": [line(plain(name)) for name in "abc"]})
    last = [line(plain("e")), line(new("f"))]
    ingest(table, N2, {"output-000000": [line(plain("d"))], "output-000001": last})
    return table


START = datetime(2020, 2, 1, tzinfo=UTC)
NEW = {
    "id": "f",
    "export_id": N2,
    "contained": '[{"resourceType": "Organization", "id": "o"}]',
    "families": ["Old", "New"],
    "prefix": "van",
    "kin_start": START,
    "values": ["text", None, None],
    "digits": [None, "1.10", None],
    "numbers": [None, 1.1, None],
    "inner": "2021",
    "anchor": ANCHOR,
    "unmapped": '{"/favouriteColour":"blue"}',
}


def old(name: str, export_id: str) -> dict[str, Any]:
    return dict.fromkeys(NEW) | {
        "id": name,
        "export_id": export_id,
        "families": ["Old", "New"],
        "values": ["text"],
        "digits": [None],
        "numbers": [None],
    }


BOTH = [*(old(name, N1) for name in "abc"), *(old(name, N2) for name in "de"), NEW]
"""What each reader must see, row by row."""

SQL = """
    SELECT id, export_id, contained,
           [each.family FOR each IN name] AS families,
           "name"[2]._family.extension[1].valueString AS prefix,
           contact[1]."name".period.__start_start AS kin_start,
           [each.valueString FOR each IN extension] AS "values",
           [each.valueDecimal FOR each IN extension] AS digits,
           [each.__valueDecimal_numeric FOR each IN extension] AS numbers,
           extension[3].extension[1].valueDate AS inner,
           _birthDate.extension[1].valueDateTime AS anchor,
           _unmapped AS unmapped
"""


def by_sql(source: str) -> list[dict[str, Any]]:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    found = connection.execute(f"{SQL} FROM {source} ORDER BY id")
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_duckdb_by_the_files_that_the_log_names(patient: Path) -> None:
    files = DeltaTable(str(patient)).file_uris()
    assert by_sql(f"read_parquet({files}, union_by_name = true, hive_partitioning = true)") == BOTH


def test_duckdb_by_the_partition_folders(patient: Path) -> None:
    pattern = f"{patient}/export_id=*/*.parquet"
    assert by_sql(f"read_parquet('{pattern}', union_by_name = true, hive_partitioning = true)") == BOTH


def test_duckdb_without_union_by_name_is_what_the_documentation_warns_of(patient: Path) -> None:
    """If this ever changes, the warning in docs/tables.md may go."""
    first, *_ = sorted(patient.glob(f"export_id={N1}/*.parquet"))
    files = [str(first), *map(str, sorted(patient.glob(f"export_id={N2}/*.parquet")))]
    with pytest.raises(duckdb.Error, match=r"contained|_birthDate|_unmapped|valueDecimal|_family"):
        by_sql(f"read_parquet({files}, hive_partitioning = true)")


def asked(row: dict[str, Any]) -> dict[str, Any]:
    """The same as SQL asks, of a row whose lists and structures are Python's."""

    def inside(value: Any, *path: str | int) -> Any:
        for step in path:
            if value is None or (isinstance(step, int) and len(value) <= step):
                return None
            value = value[step]
        return value

    extensions = row["extension"]
    return {
        "id": row["id"],
        "export_id": row["export_id"],
        "contained": row["contained"],
        "families": [each["family"] for each in row["name"]],
        "prefix": inside(row["name"], 1, "_family", "extension", 0, "valueString"),
        "kin_start": inside(row["contact"], 0, "name", "period", "__start_start"),
        "values": [each["valueString"] for each in extensions],
        "digits": [each["valueDecimal"] for each in extensions],
        "numbers": [each["__valueDecimal_numeric"] for each in extensions],
        "inner": inside(extensions, 2, "extension", 0, "valueDate"),
        "anchor": inside(row["_birthDate"], "extension", 0, "valueDateTime"),
        "unmapped": row["_unmapped"],
    }


def test_polars_scan_delta(patient: Path) -> None:
    frame = pl.scan_delta(str(patient)).sort("id").collect()
    assert [asked(row) for row in frame.to_dicts()] == BOTH
    later = pl.scan_delta(str(patient)).filter(pl.col("_unmapped").is_not_null()).select("id").collect()
    assert later["id"].to_list() == ["f"]


def test_pandas_by_deltalake(patient: Path) -> None:
    table = DeltaTable(str(patient)).to_pyarrow_table()
    assert [asked(row) for row in sorted(table.to_pylist(), key=lambda row: str(row["id"]))] == BOTH
    frame = DeltaTable(str(patient)).to_pandas().sort_values("id").set_index("id")
    assert len(frame) == 6
    assert frame["contained"].isna().tolist() == [True] * 5 + [False]
    assert frame["_birthDate"]["f"]["extension"][0]["valueDateTime"] == ANCHOR
    assert frame["contact"]["a"][0]["name"]["period"] is None


def test_pandas_by_deltalake_of_one_night(patient: Path) -> None:
    """A filtered read of the first night has the columns of the second."""
    table = DeltaTable(str(patient))
    frame = table.to_pandas(filters=[("export_id", "=", N1)], columns=["id", "contained", "_birthDate"])
    assert sorted(frame["id"]) == ["a", "b", "c"]
    assert frame["contained"].isna().all() and frame["_birthDate"].isna().all()


def test_a_column_of_the_last_line_is_in_every_part_of_its_export(patient: Path) -> None:
    """Read without `union_by_name`: all parts of one export have one schema."""
    files = sorted(patient.glob(f"export_id={N2}/*.parquet"))
    assert len(files) == 2
    schemas = [pq.read_schema(file) for file in files]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    for order in (files, files[::-1]):
        listed = [str(file) for file in order]
        assert by_sql(f"read_parquet({listed}, union_by_name = false, hive_partitioning = true)") == BOTH[3:]
    first_part = [file for file in files if pq.read_metadata(file).num_rows == 2]
    names = {row["id"] for row in by_sql(f"read_parquet({list(map(str, first_part))})")}
    assert "f" not in names, "the part written first has the columns of the last line"


def test_night_one_has_the_columns_of_the_floor_and_no_more(patient: Path) -> None:
    (first, *_) = sorted(patient.glob(f"export_id={N1}/*.parquet"))
    names = pq.read_schema(first).names
    assert {"birthDate", "__birthDate_start", "deceasedBoolean", "photo"} <= set(names)
    assert not {"contained", "_birthDate", "_unmapped"} & set(names)


def test_dates_and_numbers_of_both_nights_compute(patient: Path) -> None:
    frame = pl.scan_delta(str(patient)).sort("id").collect()
    starts = frame["contact"].list.first().struct.field("name").struct.field("period")
    assert starts.struct.field("__start_start").dt.date().to_list() == [None] * 5 + [date(2020, 2, 1)]
