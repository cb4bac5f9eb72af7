"""The flat forms of the current tables: `<lake>/<source>/current/<type>_flat_current`.

Their names are those of the flat tables of exports with `_current` behind: `claim_item_flat_current` is to
`claim_item_flat` what `claim_current` is to `claim`. They are made from the current tables alone, after them,
and what fails here leaves these as they are.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Source
from pipeline.errors import ExportError, LakeError
from pipeline.exports.current import CURRENT, MAX_TRIES, places_of, wants_current
from pipeline.exports.flattening import NotMade, flat_names, wants_flat
from pipeline.exports.new_folders import filling, require_new
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name

if TYPE_CHECKING:
    from pipeline.tables.current.flat import Flattened

_ALWAYS = ("latest", "latest-id")
"""Numbers of a current table that tell how far it has come."""


@dataclass(frozen=True)
class CurrentFlat:
    """A flat form of a current table, as it is after it was looked at."""

    name: str
    resource_type: str
    rows: int
    made: Flattened
    """What was changed now, if anything."""


def wants_current_flat(source: Source, resource_type: str) -> bool:
    """Whether the configuration asks for current tables of a type, and for flat ones."""
    return wants_current(source, resource_type) and wants_flat(source, resource_type)


def current_flat_names(resource_type: str) -> tuple[str, ...]:
    """The names of the flat forms of a current table."""
    return tuple(f"{name}{CURRENT}" for name in flat_names(resource_type))


def update_current_flat(session: Session, resource_type: str, *, anew: bool = False) -> list[CurrentFlat]:
    """Flattens what has changed in the current table of a type; with `anew` all of it.

    Nothing where there is no current table. Raises `LakeError`, `VerificationFailed`.
    """
    from pipeline.tables.delta import Conflict

    conflict = ""
    for tries in range(MAX_TRIES):
        if tries:
            time.sleep(random.uniform(0.2, 1.0) * min(10.0, 0.2 * 2**tries))  # noqa: S311
        try:
            return _update(session, resource_type, anew=anew)
        except Conflict as lost:
            conflict = str(lost)
    raise LakeError(
        f"the flat form of {table_name(resource_type)}{CURRENT} could not be committed in {MAX_TRIES} tries "
        f"({conflict})",
        "Somebody else keeps writing to it: see its history, then try again",
    )


def current_flat_or_why(
    session: Session, resource_type: str, *, anew: bool = False
) -> list[CurrentFlat] | NotMade:
    """The same, with what went wrong as a result: it must not harm what is deep."""
    try:
        return update_current_flat(session, resource_type, anew=anew)
    except ExportError as error:
        found = NotMade(resource_type, error)
    except Exception as error:  # noqa: BLE001 - told by type and place: its own text may hold content
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"unexpected {type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
        found = NotMade(resource_type, ExportError(text, "Report this"))
    session.log(f"the flat form of what is current of {resource_type} could not be made: {found.error}")
    return found


def together(failures: Iterable[NotMade]) -> ExportError | None:
    """One error for all, of the kind of the first and with its advice; None without any."""
    found = list(failures)
    if not found:
        return None
    first = found[0].error
    causes = "; ".join(f"{each.resource_type}: {each.error.cause}" for each in found)
    return type(first)(
        f"{len(found)} current tables have no flat form that is up to date ({causes})",
        f"{first.advice or 'See the log'}. The current tables themselves are not touched by it",
    )


def _update(session: Session, resource_type: str, *, anew: bool) -> list[CurrentFlat]:
    from pipeline.tables.current.flat import flatten_current

    folder = f"{session.source.name}/current"
    places = {name: f"{folder}/{name}{CURRENT}" for name in flat_names(resource_type)}
    names = [*_ALWAYS, *(f"export:{each}" for each in session.ledger.export_ids())]
    done = flatten_current(
        session.lake, resource_type, places_of(session, resource_type).current, places, names, anew=anew
    )
    for made in done:
        if made.version is not None:
            session.log(f"{made.name}{CURRENT}: {made.rows} rows, {made.chunks_in} chunks flattened")
    return [CurrentFlat(f"{each.name}{CURRENT}", resource_type, each.rows, each) for each in done]


# --- as of an export -----------------------------------------------------------------------------------


def require_new_flat(out: Path, resource_types: Iterable[str]) -> None:
    """Raises `ConfigError` when a folder that `flatten_as_of` would fill is not empty, or cannot be one."""
    require_new(out / name for resource_type in resource_types for name in flat_names(resource_type))


def flatten_as_of(out: Path, resource_type: str) -> dict[str, int]:
    """The flat form of what `write_as_of` has written, into `<out>/<flat table>/*.parquet`; name -> rows.

    Raises `ConfigError`, `LakeError`, `VerificationFailed`.
    """
    from pipeline.tables.flat import flatten

    parts = sorted((out / table_name(resource_type)).glob("*.parquet"))
    rows = {}
    with filling(out):
        for name in flat_names(resource_type):
            (out / name).mkdir(exist_ok=True)
        for name, written in flatten(resource_type, parts, out).items():
            for part in written:
                part.path.rename(out / name / part.path.name)
            rows[name] = sum(part.rows for part in written)
    return rows
