"""What a Delta table needs now and then, so that neither files nor log grow for ever: for one table.

Files go by the table's own `delta.deletedFileRetentionDuration`, commits by its `delta.logRetentionDuration`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tables.delta import KEPT, Conflict, StorageOptions, open_table, unwritable

if TYPE_CHECKING:
    from deltalake import DeltaTable

FILES_KEPT = "delta.deletedFileRetentionDuration"
_INTERVAL = re.compile(r"^interval (\d+) (minute|hour|day|week)s?$")
_HOURS = {"minute": 1 / 60, "hour": 1.0, "day": 24.0, "week": 168.0}
_LEAST_HOURS = 24
"""No run that writes current tables takes longer: what is older is on its way into a table no more."""
_UNKNOWN_HOURS = 30 * 24


@dataclass(frozen=True)
class Upkeep:
    """What was done to a table; in a dry run, what would be."""

    properties: tuple[str, ...]
    """That it had not."""
    files: tuple[str, ...]
    """Data files that went, relative to the table's root."""
    checkpoint: bool
    """Whether one was made: the newest version had none."""
    version: int
    """Of the table, afterwards."""


def keep_up(
    uri: str,
    checkpointed: int,
    storage_options: StorageOptions = None,
    *,
    strays: bool,
    dry_run: bool = False,
) -> Upkeep | None:
    """Sets retention where a table has none, removes old files, makes a checkpoint, removes old commits.

    `checkpointed` is the version of its last checkpoint, -1 without one. Old files are those that the log has
    taken out; with `strays` also those of that age that it does not name: only for tables for which no file
    waits so long to be committed. None where there is no table. Raises `Conflict` when somebody else changes
    it meanwhile, LakeError.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    table = open_table(uri, storage_options)
    if table is None:
        return None
    try:
        missing = {name: value for name, value in KEPT.items() if name not in _configuration(table)}
        if missing and not dry_run:
            table.alter.set_table_properties(missing)
            table.update_incremental()
        # Before the checkpoint, which forgets what was taken out so long ago.
        kept = _configuration(table).get(FILES_KEPT, KEPT[FILES_KEPT])
        files = table.vacuum(retention_hours=hours_of(kept), dry_run=dry_run, full=strays)
        table.update_incremental()
        version = int(table.version())
        due = version > max(checkpointed, 0)
        if not dry_run:
            if due:
                table.create_checkpoint()
            table.cleanup_metadata()
    except CommitFailedError as lost:
        raise Conflict(f"upkeep: {type(lost).__name__}") from None
    except (DeltaError, OSError) as bad:
        raise unwritable(uri, bad) from None
    return Upkeep(tuple(sorted(missing)), tuple(sorted(files)), due, version)


def hours_of(interval: str) -> int:
    """The hours of a Delta interval such as `interval 7 days`, rounded up; never less than a day.

    An interval that is not understood is taken as long.
    """
    found = _INTERVAL.match(interval.strip())
    hours = int(found[1]) * _HOURS[found[2]] if found else _UNKNOWN_HOURS
    return max(_LEAST_HOURS, -int(-hours // 1))


def _configuration(table: DeltaTable) -> dict[str, str]:
    return dict(table.metadata().configuration)
