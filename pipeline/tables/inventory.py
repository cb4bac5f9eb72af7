"""What a Delta table's log says is there, for somebody who compares it with what is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import LakeError
from pipeline.tables.delta import StagedPart, StorageOptions, erased_rows
from pipeline.tables.schema import PARTITION_COLUMN

if TYPE_CHECKING:
    from deltalake import DeltaTable

_COMMIT = re.compile(r"^_delta_log/(\d{20})\.json$")
_CHECKPOINT = re.compile(r"^_delta_log/(\d{20})\.checkpoint.*\.parquet$")


@dataclass(frozen=True)
class Inventory:
    """The live files of a table at its newest version, by export."""

    version: int
    parts: dict[str, list[StagedPart]] = field(default_factory=dict)
    table: DeltaTable | None = None

    def erased(self, export_id: str) -> int:
        """Rows that `erase` took out of an export since it was published."""
        return 0 if self.table is None else erased_rows(self.table, export_id)

    def rows(self, export_id: str) -> int:
        return sum(part.rows for part in self.parts.get(export_id, ()))


def inventory(uri: str, storage_options: StorageOptions = None) -> Inventory:
    """Reads the log alone. Raises `LakeError` for one that cannot be read, or that is not there."""
    import pyarrow as pa
    from deltalake import DeltaTable

    try:
        table = DeltaTable(uri, storage_options=storage_options)
        rows = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    except Exception as error:  # noqa: BLE001 - delta-rs panics too, and its texts quote whole URLs
        raise LakeError(f"the log of the table cannot be read ({type(error).__name__})") from None
    found = Inventory(table.version(), table=table)
    for row in rows:
        part = StagedPart(row["path"], row["size_bytes"], row["num_records"] or 0)
        found.parts.setdefault(str(row.get(f"partition.{PARTITION_COLUMN}")), []).append(part)
    return found


def missing_versions(names: Iterable[str]) -> list[int]:
    """Versions that must be in `_delta_log` and are not: `names` are the table's files, from its root.

    Those before the newest checkpoint may be gone.
    """
    listed = list(names)
    versions = {int(match[1]) for name in listed if (match := _COMMIT.match(name))}
    if not versions:
        return []
    checkpoints = [int(match[1]) for name in listed if (match := _CHECKPOINT.match(name))]
    first = max(checkpoints, default=-1) + 1
    return [each for each in range(first, max(versions) + 1) if each not in versions]
