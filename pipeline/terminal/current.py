"""`current`, `rebuild` and `as-of` on the terminal."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config, Source
from pipeline.errors import ConfigError
from pipeline.exports.current import CurrentTable, update_current, wants_current, write_as_of
from pipeline.exports.current_flat import (
    CurrentFlat,
    current_flat_or_why,
    flatten_as_of,
    require_new_flat,
    together,
    wants_current_flat,
)
from pipeline.exports.flattening import NotMade
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.tables.definitions import is_resource_type, type_of_table
from pipeline.terminal.screen import give, give_json, give_table, number


@dataclass(frozen=True)
class Updated:
    """A source's current tables, after they were looked at."""

    source: str
    tables: Sequence[CurrentTable]
    flat: Sequence[CurrentFlat] = ()
    not_made: Sequence[NotMade] = field(default=())
    """Flat forms that are not up to date, and why."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.source,
            "tables": {
                each.name: {
                    "rows": each.rows,
                    "deleted": each.deleted,
                    "exports": list(each.exports),
                    "made_again": each.anew or None,
                    "merged": asdict(each.merged) if each.merged else None,
                }
                for each in self.tables
            },
            "flat": {each.name: {"rows": each.rows, "made": asdict(each.made)} for each in self.flat},
            "flat_not_made": {each.resource_type: each.error.cause for each in self.not_made},
        }


def with_current(sources: Sequence[Source], say: Callable[[str], None]) -> list[Source]:
    """Those that have current tables; of the others it is said that they have none.

    Raises `ConfigError` where no source has any.
    """
    found = [each for each in sources if each.current is not False]
    if not found:
        raise _off(", ".join(each.name for each in sources))
    for each in sources:
        if each not in found:
            say(f"current tables are off for {each.name} (`current: false`)")
    return found


def chosen_types(session: Session, named: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The named resource types, or all whose current table is asked for and may be made.

    Raises `ConfigError` for one that has no table here, or whose current table is off; says why there is none
    at all.
    """
    source, exported = session.source, exported_types(session)
    there = [each for each in exported if wants_current(source, each)]
    if source.current is False:
        raise _off(source.name)
    for each in named:
        if each in exported and each not in there:
            raise _off(source.name, f" of {each}")
        if each not in there and (exported or not is_resource_type(each)):
            raise _no_type(f"{source.name} has no current table of {each}", each, there)
    if not there:
        limited = " of what `current` names" if exported else ""
        say(f"{source.name}: nothing is published yet{limited}")
        return []
    return list(dict.fromkeys(named)) or there


def exported_types(session: Session, named: Sequence[str] = ()) -> list[str]:
    """The named resource types, or all that have a table of exports. Raises `ConfigError` for one that has
    none, `LakeError`."""
    found = map(type_of_table, session.lake.names(f"{session.source.name}/tables"))
    there = [each for each in found if each is not None]
    for each in named:
        if each not in there:
            raise _no_type(f"{session.source.name} has no table of {each}", each, there)
    return list(dict.fromkeys(named)) or there


def _off(source: str, what: str = "") -> ConfigError:
    why = "`current` does not name it" if what else "`current: false`"
    return ConfigError(
        f"current tables{what} are off for {source} ({why})",
        "Set `current: true`, or name resource types; as-of needs no current tables",
    )


def _no_type(cause: str, named: str, there: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(named, there, 1, cutoff=0.6)
    return ConfigError(
        cause, f"Did you mean {near[0]}?" if near else f"There are: {', '.join(there) or 'none yet'}"
    )


def session_of(config: Config, source: Source, say: Callable[[str], None]) -> Session:
    return Session(config, source, this_process("current"), log=say)


def update(
    config: Config, source: Source, types: Sequence[str], say: Callable[[str], None], *, anew: bool = False
) -> Updated:
    """Brings current tables up to date, or makes them again; then their flat forms.

    Raises `ConfigError`, `LakeError`; never for a flat form's sake.
    """
    session = session_of(config, source, say)
    chosen = chosen_types(session, types, say)
    tables = [update_current(session, each, anew=anew) for each in chosen]
    flat: list[CurrentFlat] = []
    not_made: list[NotMade] = []
    for each in (each for each in chosen if wants_current_flat(source, each)):
        done = current_flat_or_why(session, each, anew=anew)
        if isinstance(done, NotMade):
            not_made.append(done)
        else:
            flat += done
    return Updated(source.name, tables, flat, not_made)


def show_updated(found: Sequence[Updated], *, as_json: bool) -> None:
    """What is in them now, on standard output. Raises, when that is told, the error of flat forms that could
    not be made."""
    if as_json:
        give_json([each.as_json() for each in found])
    else:
        _show(found)
    if error := together(failed for each in found for failed in each.not_made):
        raise error


def _show(found: Sequence[Updated]) -> None:
    rows = [
        (f"{each.source}.{table.name}", number(table.rows), number(table.deleted), _told(table))
        for each in found
        for table in each.tables
    ]
    rows += [
        (f"{each.source}.{table.name}", number(table.rows), "", _told_flat(table))
        for each in found
        for table in each.flat
    ]
    if rows:
        give_table(("table", "rows", "deleted", "now"), rows, ("rows", "deleted"))


def _told_flat(table: CurrentFlat) -> str:
    made = table.made
    return "current already" if made.version is None else f"{made.chunks_in} chunks flattened"


def _told(table: CurrentTable) -> str:
    merged = table.merged
    if merged is None:
        return "current already"
    if table.anew:
        return f"made again from {len(table.exports)} exports, since {table.anew}"
    return f"{number(merged.added)} in, {number(merged.removed)} out, from {', '.join(table.exports)}"


def as_of(
    config: Config,
    source: Source,
    export_id: str,
    types: Sequence[str],
    out: Path,
    say: Callable[[str], None],
    *,
    flat: bool = False,
) -> None:
    """Writes what was true as of an export; with `flat` its flat form as well.

    Raises `ConfigError`, `LakeError`, `VerificationFailed`.
    """
    session = session_of(config, source, say)
    chosen = exported_types(session, types)
    if flat:
        require_new_flat(out, chosen)
    rows = write_as_of(session, export_id, chosen, out)
    if not chosen:
        say("no resource was exported until then: nothing is written")
    for resource_type, count in rows.items():
        give(f"{resource_type}\t{count}")
    for resource_type in chosen if flat else ():
        for name, count in flatten_as_of(out, resource_type).items():
            give(f"{name}\t{count}")
