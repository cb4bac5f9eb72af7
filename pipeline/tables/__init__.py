"""FHIR resources as typed tables: the R4 definitions, schemas, conversion both ways, and the Delta commit.

Everything here works on bytes, files and Arrow data; it knows tables, not servers.
May not live here: configuration, export facts, Dagster, HTTP (nothing is imported from those layers).
Start with `convert.Converter` (NDJSON to Parquet parts), `delta.commit_export` and `ndjson.to_ndjson`.
The rules behind the columns are those of facts/tables.md.
"""
