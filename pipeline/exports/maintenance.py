"""Maintenance of a source's Delta tables: retention set, old files and old commits removed, checkpoints made.

Below `current/` everything goes that is old and not in the log. Below `tables/` only what the log itself has
taken out: parts wait there to be committed, for as long as an export is held; what is left of those is for
`retention`, which asks the facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import LakeError
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pipeline.tables.upkeep import Upkeep

_TABLES, _CURRENT = "tables", "current"


@dataclass(frozen=True)
class TableMaintained:
    """One table."""

    name: str
    """`tables/patient`, `current/patient_current`."""
    upkeep: Upkeep
    bytes: int
    """Of the data files that went."""
    commits: int
    """Files of the log that went; 0 in a dry run, which does not tell them."""


@dataclass(frozen=True)
class Maintained:
    """What was done to the tables of a source; in a dry run, what would be."""

    source: str
    dry_run: bool
    tables: tuple[TableMaintained, ...]
    failed: tuple[tuple[str, LakeError], ...]
    """Tables that could not be done, and why; the others are done all the same."""

    def as_json(self) -> dict[str, object]:
        """For scripts."""
        return {
            "source": self.source,
            "dry_run": self.dry_run,
            "tables": {
                each.name: {
                    "properties_set": list(each.upkeep.properties),
                    "files": list(each.upkeep.files),
                    "bytes": each.bytes,
                    "checkpoint": each.upkeep.checkpoint,
                    "commits": each.commits,
                    "version": each.upkeep.version,
                }
                for each in self.tables
            },
            "failed": {name: error.cause for name, error in self.failed},
        }

    @property
    def error(self) -> LakeError | None:
        """Of all that could not be done."""
        if not self.failed:
            return None
        causes = "; ".join(f"{name}: {error.cause}" for name, error in self.failed)
        advice = self.failed[0][1].advice or "See the log"
        return LakeError(f"{len(self.failed)} tables of {self.source} were not maintained ({causes})", advice)


def maintain(session: Session, *, dry_run: bool = False) -> Maintained:
    """Maintains every Delta table of the source. Raises `LakeError` when they cannot be listed.

    Done twice, or killed and done again, it comes to the same; publishes may go on beside it.
    """
    done: list[TableMaintained] = []
    failed: list[tuple[str, LakeError]] = []
    for name in _names(session):
        try:
            found = _maintain(session, name, dry_run=dry_run)
        except LakeError as error:
            session.log(f"{name} was not maintained: {error}")
            failed.append((name, error))
            continue
        if found is not None:
            done.append(found)
    return Maintained(session.source.name, dry_run, tuple(done), tuple(failed))


def _names(session: Session) -> Iterator[str]:
    for folder in (_TABLES, _CURRENT):
        for name in session.lake.names(f"{session.source.name}/{folder}"):
            yield f"{folder}/{name}"


def _maintain(session: Session, name: str, *, dry_run: bool) -> TableMaintained | None:
    from pipeline.tables.delta import Conflict
    from pipeline.tables.upkeep import keep_up

    lake, place = session.lake, f"{session.source.name}/{name}"
    before = lake.sizes(place)
    try:
        upkeep = keep_up(
            lake.table_uri(place),
            _checkpointed(session, place),
            lake.storage_options,
            strays=name.startswith(f"{_CURRENT}/"),
            dry_run=dry_run,
        )
    except Conflict:
        raise LakeError("somebody else writes to it at this moment", "It is done the next time") from None
    if upkeep is None:
        return None
    after = before if dry_run else lake.sizes(f"{place}/_delta_log")
    log = "_delta_log/"
    gone = (
        [] if dry_run else [each for each in before if each.startswith(log) and each[len(log) :] not in after]
    )
    done = TableMaintained(name, upkeep, sum(before.get(path, 0) for path in upkeep.files), len(gone))
    if upkeep.files or gone:
        session.log(f"{name}: {len(upkeep.files)} data files and {len(gone)} files of the log removed")
    return done


def _checkpointed(session: Session, place: str) -> int:
    """The version of the table's last checkpoint, -1 without one; a pointer that cannot be read is none."""
    try:
        found = json.loads(session.lake.read(f"{place}/_delta_log/_last_checkpoint") or b"{}")
        return int(found.get("version", -1))
    except (ValueError, TypeError, AttributeError):
        return -1
