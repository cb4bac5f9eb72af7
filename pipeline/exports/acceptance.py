"""Whether an export may be published although it has bad lines: a rule, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.config import MaxQuarantined
from pipeline.exports.facts import FileRows, StagedBatch
from pipeline.exports.quarantine import UNTYPED

_NAMED = 3


@dataclass(frozen=True)
class Objection:
    """Why an export is held."""

    cause: str
    """Table or file, and numbers; no content."""
    path: str
    """A quarantine file that shows the lines, from the lake's root."""


def objections(staged: Sequence[StagedBatch], limits: MaxQuarantined) -> list[Objection]:
    """Tables with more bad lines than allowed, and files that are not empty and have no good line.

    A line that found another table than its file declares is a good one.
    """
    return [*_tables_beyond(staged, limits), *_files_without_rows(staged)]


def in_words(found: Sequence[Objection]) -> str:
    """The first few, in one sentence."""
    said = "; ".join(each.cause for each in found[:_NAMED])
    return f"{said}; and {len(found) - _NAMED} more" if len(found) > _NAMED else said


def _tables_beyond(staged: Sequence[StagedBatch], limits: MaxQuarantined) -> Iterable[Objection]:
    lines, bad = _tally(staged)
    for table, number in sorted(bad.items()):
        limit = limits.limit(lines[table])
        if number > limit:
            what = "lines without a resource type" if table == UNTYPED else table
            allowed = f"max_quarantined allows {limit} of so many"
            cause = f"{what}: {number} of {lines[table]} lines are bad, and {allowed}"
            yield Objection(cause, _first_path(staged, table))


def _tally(staged: Sequence[StagedBatch]) -> tuple[Counter[str], Counter[str]]:
    """Lines and bad lines, by table. Those of no table are measured by all lines of files without a type."""
    lines: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for batch in staged:
        for file in batch.files:
            lines.update(batch.tables_of(file))
            lines.update({table: number for table, number in file.bad.items() if table != UNTYPED})
            bad.update(file.bad)
            if batch.type == UNTYPED:
                lines[UNTYPED] += file.lines
    return lines, bad


def _files_without_rows(staged: Sequence[StagedBatch]) -> Iterable[Objection]:
    for batch in staged:
        for file in batch.files:
            if file.lines and not file.rows:
                cause = f"{batch.type}: none of the {file.lines} lines of {file.name} is a resource"
                yield Objection(cause, _path_of(batch, file))


def _path_of(batch: StagedBatch, file: FileRows) -> str:
    return next((part.path for part in batch.quarantine if part.table in file.bad), "")


def _first_path(staged: Sequence[StagedBatch], table: str) -> str:
    return next((part.path for batch in staged for part in batch.quarantine if part.table == table), "")
