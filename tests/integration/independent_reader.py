"""The oracle: the server's own resources against the tables, read by DuckDB. No code of the pipeline."""

from __future__ import annotations

import json
from typing import Any

import duckdb

LINEAGE = {"export_id", "_export_id", "_source_file", "_source_line"}


class Lexeme(str):
    """A number as it was written."""


def parse(line: bytes | str) -> Any:
    return json.loads(line, parse_float=Lexeme, parse_int=Lexeme)


def rows(files: list[str]) -> list[dict[str, Any]]:
    """Every row of Parquet files, nulls and derived columns (`__birthDate_start`) left out at every depth."""
    if not files:
        return []
    found = duckdb.sql(f"select * from read_parquet({files}, hive_partitioning = false)")
    names = found.columns
    return [_pruned(dict(zip(names, row, strict=True))) for row in found.fetchall()]


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        members = {name: each for name, each in value.items() if each is not None}
        return {name: _pruned(each) for name, each in members.items() if not name.startswith("__")}
    if isinstance(value, list):
        return [_pruned(each) for each in value]
    return value


def differences(table: dict[str, Any], source: dict[str, Any]) -> list[str]:
    """Top-level elements that are not the same in the table's row as in the server's resource."""
    kept = {name: value for name, value in table.items() if name not in LINEAGE}
    unequal = [name for name in source if not same(kept.get(name), source[name])]
    return [*unequal, *(f"+{name}" for name in kept.keys() - source.keys())]


def same(table: Any, source: Any) -> bool:
    """Equal, numbers by how they are written; JSON text in the table stands for what it spells."""
    if isinstance(source, Lexeme):
        return not isinstance(table, bool) and str(table) == source
    if isinstance(source, dict):
        if isinstance(table, str):
            return _equal(parse(table), source)
        return (
            isinstance(table, dict)
            and table.keys() == source.keys()
            and all(same(table[name], source[name]) for name in source)
        )
    if isinstance(source, list):
        if isinstance(table, str):
            return _equal(parse(table), source)
        return (
            isinstance(table, list)
            and len(table) == len(source)
            and all(same(a, b) for a, b in zip(table, source, strict=True))
        )
    return type(table) is type(source) and table == source


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b
