"""`maintain` on the terminal: what went from which table; in a dry run each data file by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.config import Config, Source
from pipeline.exports.maintenance import Maintained, TableMaintained, maintain
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.terminal.screen import give, give_json, give_table, number, say


def maintain_source(
    config: Config, source: Source, tell: Callable[[str], None], *, dry_run: bool
) -> Maintained:
    """Maintains the tables of one source. Raises `LakeError` when they cannot be listed."""
    return maintain(Session(config, source, this_process("maintain"), log=tell), dry_run=dry_run)


def show_maintained(found: Sequence[Maintained], *, as_json: bool) -> None:
    """A table of all sources on standard output. Raises, after that, the error of what was not done."""
    if as_json:
        give_json([each.as_json() for each in found])
    else:
        _show(found)
    for each in found:
        if each.error:
            raise each.error


def _show(found: Sequence[Maintained]) -> None:
    rows = [
        (f"{each.source}/{table.name}", number(len(table.upkeep.files)), number(table.bytes), _also(table))
        for each in found
        for table in each.tables
        if table.upkeep.files or _also(table)
    ]
    if rows:
        give_table(("table", "files", "bytes", "also"), rows, ("files", "bytes"))
    for each in (each for each in found if each.dry_run):
        for table in each.tables:
            for path in table.upkeep.files:
                give(f"{each.source}/{table.name}/{path}")
    if not rows:
        say("nothing to do")
    elif any(each.dry_run for each in found):
        say("a dry run: nothing was changed")


def _also(table: TableMaintained) -> str:
    said = [
        "retention set" if table.upkeep.properties else "",
        "checkpoint" if table.upkeep.checkpoint else "",
        f"{table.commits} files of the log removed" if table.commits else "",
    ]
    return ", ".join(each for each in said if each)
