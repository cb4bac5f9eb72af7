"""`attachments` on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.bulkdata.attachment_rules import STATES
from pipeline.config import Config, Source
from pipeline.errors import ConfigError
from pipeline.exports.attachments.linking import Linked
from pipeline.exports.attachments.run import link_attachments
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.terminal.screen import give_json, give_table, number, say


def fetch(config: Config, source: Source, export: str | None, say: Callable[[str], None]) -> list[Linked]:
    """Fetches and links what is missing, or makes the links of one export again (ID or SOURCE/ID).

    Raises `ConfigError` and what `link_attachments` raises.
    """
    named, _, export_id = (export or "").rpartition("/")
    if named not in ("", source.name):
        raise ConfigError(f"{export} is no export run of {source.name}")
    session = Session(config, source, this_process("attachments"), log=say)
    return list(link_attachments(session, export_id or None))


def show(source: Source, found: Sequence[Linked], *, as_json: bool) -> None:
    """What became of them, on standard output."""
    if as_json:
        exports = {
            each.export_id: {
                "attachments": each.attachments,
                "states": each.states,
                "fetched": each.fetched,
                "fetched_bytes": each.fetched_bytes,
            }
            for each in found
        }
        give_json({"source": source.name, "exports": exports})
        return
    shown = [state for state in STATES if any(each.states.get(state) for each in found)]
    headers = ("export", *shown, "fetched now", "bytes")
    rows = [
        (
            f"{source.name}/{each.export_id}",
            *(number(each.states.get(state, 0)) for state in shown),
            number(each.fetched),
            number(each.fetched_bytes),
        )
        for each in found
    ]
    if rows:
        give_table(headers, rows, headers[1:])
    else:
        say("nothing is missing: what the configuration wants of published exports is stored and linked")
