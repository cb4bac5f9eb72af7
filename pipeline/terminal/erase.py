"""`erase` on the terminal: what goes or went, by place, and the proof. The id itself is never printed."""

from __future__ import annotations

from pipeline.config import Config, Source
from pipeline.exports.erasing import Erased, erase
from pipeline.exports.erasing.proof import in_words
from pipeline.terminal.repairing import session_at_terminal
from pipeline.terminal.screen import give_json, give_table, number, say

_OUT_OF_REACH = (
    "Not reached: the server itself (its next full export brings the patient again unless it has erased them "
    "too), backups, snapshots and soft-deleted blobs of the storage, and files made by as-of and to-ndjson"
)


def erase_patient(config: Config, source: Source, patient_id: str, *, dry_run: bool) -> Erased:
    """Raises `StillRunning`, `ConfigError`, `LakeError`."""
    return erase(session_at_terminal(config, source), patient_id, dry_run=dry_run)


def show_erased(erased: Erased, *, as_json: bool) -> None:
    """Numbers by place on standard output, the verdict on standard error."""
    if as_json:
        give_json(erased.as_json())
    else:
        rows = [(place, number(count)) for place, count in sorted(erased.rows.items()) if count]
        rows += [("raw lines", number(erased.raw_lines))] if erased.raw_lines else []
        rows += [("quarantine records", number(erased.quarantine))] if erased.quarantine else []
        rows += [("attachments", number(erased.attachments))] if erased.attachments else []
        rows += [("files that nothing refers to", number(erased.removed))] if erased.removed else []
        if rows:
            header = "to be erased" if erased.dry_run else "erased"
            give_table(("what", header), rows, (header,))
        else:
            say("nothing of that patient is in the lake")
    if mentions := in_words(erased.mentions.items()):
        say(f"rows and lines that name the patient and stay, for they are others', too: {mentions}")
    if erased.dry_run:
        say("a dry run: nothing was changed. --yes erases; it cannot be taken back")
        return
    if erased.unread:
        say(f"{len(erased.unread)} files could not be read, {erased.unread[0]} for one")
    if erased.in_use:
        say(f"{erased.in_use} runs at work, or files in spools of running processes, which were not read")
    left = in_words(erased.left.items())
    verdict = f"still there: {left}" if left else "nothing of the patient is left"
    say(f"{erased.read:,} files read again: {verdict}")
    say(_OUT_OF_REACH)
