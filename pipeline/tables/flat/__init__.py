"""Flat tables: one row a resource with plain columns, made from the Parquet of an export alone.

    for table in flat_tables("Observation"):
        print(table.name, table.column_descriptions)
    written = flatten("Observation", parts, out_dir)      # {"observation_flat": [LocalPart, ...]}

The columns of a flat table depend on the R4 definitions and the rules here, never on the data: every export
has the same. Thirteen types have hand-chosen columns, the others get theirs by rule (`generic`). Nothing here
imports pyarrow or DuckDB before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tables import definitions
from pipeline.tables.flat.column import Branch, FlatColumn, FlatTable

if TYPE_CHECKING:
    from pipeline.tables.parts import LocalPart

FLAT_SUFFIX = "_flat"

_WITH_ITEMS = ("Claim", "ExplanationOfBenefit")


@cache
def flat_tables(resource_type: str) -> tuple[FlatTable, ...]:
    """The flat tables of a resource type: `observation_flat`; `claim_item_flat` beside `claim_flat`.

    Cheap: columns and schema are made when they are asked for. Raises ConfigError for what is no R4 type.
    """
    definitions.elements(resource_type)
    name = definitions.table_name(resource_type)
    rows = f"One row for each {resource_type}"
    if resource_type == "Observation":
        rows += ", and one for each of its components (component_index is not NULL)"
    found = [FlatTable(f"{name}{FLAT_SUFFIX}", resource_type, rows, partial(_branches, resource_type))]
    if resource_type in _WITH_ITEMS:
        items = partial(_item_branches, resource_type)
        text = f"One row for each item of a {resource_type}, joined by {name}_id"
        found.append(FlatTable(f"{name}_item{FLAT_SUFFIX}", resource_type, text, items))
    return tuple(found)


def flatten(
    resource_type: str,
    parts: Sequence[Path | str],
    out_dir: Path,
    *,
    max_part_rows: int = 1_000_000,
    max_part_bytes: int = 256 * 1024 * 1024,
    memory_limit: str = "1GB",
    threads: int = 1,
    temp_dir: Path | None = None,
) -> dict[str, list[LocalPart]]:
    """Make the flat tables of one export partition from its Parquet parts.

    `parts` are local files of the deep table of `resource_type`; they need not have the same columns.
    `out_dir` must exist; the parts there are called `<flat table>-00000.parquet` and so on. `temp_dir`
    (default `out_dir`) takes what DuckDB spills, and is left as it was. Returns the parts by flat table name,
    an empty list where there are no rows. On an exception every file that was written is gone. Raises
    LakeError when a part cannot be read or memory does not suffice, VerificationFailed when rows went
    missing, ConfigError for what is no R4 type.
    """
    from pipeline.tables.flat.flattening import flatten_tables

    return flatten_tables(
        flat_tables(resource_type),
        parts,
        out_dir,
        max_part_rows=max_part_rows,
        max_part_bytes=max_part_bytes,
        memory_limit=memory_limit,
        threads=threads,
        temp_dir=temp_dir,
    )


def _branches(resource_type: str) -> tuple[Branch, ...]:
    from pipeline.tables.flat import clinical, financial, generic, patient

    if resource_type == "Observation":
        return clinical.observation_branches()
    if resource_type == "ExplanationOfBenefit":
        return financial.explanation_branches()
    by_hand: dict[str, Callable[[], tuple[FlatColumn, ...]]] = {
        "Patient": patient.patient_columns,
        "Claim": financial.claim_columns,
        "Coverage": financial.coverage_columns,
    }
    if resource_type in by_hand:
        return (Branch(by_hand[resource_type]()),)
    columns = clinical.clinical_columns(resource_type)
    return (Branch(generic.generic_columns(resource_type) if columns is None else columns),)


def _item_branches(resource_type: str) -> tuple[Branch, ...]:
    from pipeline.tables.flat import financial

    return financial.item_branches(resource_type)


__all__ = ["FLAT_SUFFIX", "FlatColumn", "FlatTable", "flat_tables", "flatten"]
