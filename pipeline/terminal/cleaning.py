"""`clean` on the terminal: what goes, by kind; in a dry run each file by name."""

from __future__ import annotations

from pipeline.config import Config, Source
from pipeline.exports.owner import this_process
from pipeline.exports.retention import Cleaned, clean
from pipeline.exports.session import Session
from pipeline.terminal.screen import give, give_table, number, say


def clean_source(config: Config, source: Source, *, dry_run: bool) -> Cleaned:
    """Cleans one source. Only a run that is certainly over counts as over. Raises `LakeError`."""
    return clean(Session(config, source, this_process("clean"), log=say), dry_run=dry_run)


def show_cleaned(cleaned: list[Cleaned]) -> None:
    """A table of all sources on standard output, doubts on standard error."""
    rows = [
        (each.source, kind, number(files), number(size))
        for each in cleaned
        for kind, (files, size) in sorted(each.kinds().items())
    ]
    if rows:
        give_table(("source", "what", "files", "bytes"), rows, ("files", "bytes"))
    for each in cleaned:
        if each.dry_run:
            for orphan in each.orphans:
                give(orphan.path)
            for old in each.old_raw:
                give(f"{each.source}/raw/{old.export_id}/ ({old.files} files)")
        for doubt in each.left_alone:
            say(f"{each.source}: left alone: {doubt}")
    if not rows:
        say("nothing to remove")
    elif any(each.dry_run for each in cleaned):
        say("a dry run: nothing was removed")
