"""The current tables of a source: what is true now, and what was true as of an export.

`<lake>/<source>/current/<type>_current` and `<type>_deleted` are made from the export partitions and from
`_deletes` alone. An export counts when `_exports` lists it. One that is later than all that is in a
current table is folded in alone; one that comes late, was ingested again or was withdrawn has the table made
again from the partitions, in one commit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Source
from pipeline.errors import ConfigError, LakeError
from pipeline.exports.counting import Exports, rows_lost, rules_number
from pipeline.exports.new_folders import filling, require_new
from pipeline.exports.session import Session
from pipeline.exports.watermark import supplements
from pipeline.tables.definitions import table_name, type_of_table

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.tables.current.chunks import ChunkTable
    from pipeline.tables.current.shares import Merged, Places, Share
    from pipeline.tables.delta import StagedPart

CURRENT, DELETED = "_current", "_deleted"
MAX_TRIES = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class CurrentTable:
    """One type's current table, as it is after it was looked at."""

    name: str
    resource_type: str
    rows: int
    deleted: int
    exports: tuple[str, ...]
    """That were folded in now."""
    anew: str
    """Why the table was made again from all exports; empty where it was not."""
    merged: Merged | None
    """What was changed now; None: it was current already."""


@dataclass(frozen=True)
class _Due:
    """What a current table lacks."""

    numbers: Mapping[str, int]
    """Export that counts for this type -> number of its commit."""
    pending: tuple[str, ...]
    over: tuple[str, ...]
    """In the table, and count no more."""
    anew: str


def wants_current(source: Source, resource_type: str) -> bool:
    """Whether the configuration asks for the current table of a type."""
    return source.current if isinstance(source.current, bool) else resource_type in source.current


def current_types(session: Session) -> list[str]:
    """Resource types that have a table in the lake and are to have a current one. Raises `LakeError`."""
    found = (type_of_table(name) for name in session.lake.names(f"{session.source.name}/tables"))
    return [each for each in found if each is not None and wants_current(session.source, each)]


def places_of(session: Session, resource_type: str) -> Places:
    """Where the two tables of a type lie, from the lake's root."""
    from pipeline.tables.current.shares import Places

    folder = f"{session.source.name}/current/{table_name(resource_type)}"
    return Places(f"{folder}{CURRENT}", f"{folder}{DELETED}")


def update_current(session: Session, resource_type: str, *, anew: bool = False) -> CurrentTable:
    """Brings one type's current table up to all exports that count; with `anew` from nothing.

    Raises `LakeError`, `VerificationFailed`.
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
        f"{table_name(resource_type)}{CURRENT} could not be committed in {MAX_TRIES} tries ({conflict})",
        "Somebody else keeps writing to it: see its history, then try again",
    )


def is_current(session: Session, resource_type: str) -> bool:
    """Whether its current table holds all exports that count, and no other. Raises `LakeError`."""
    from pipeline.tables.current.chunks import ChunkTable

    places, lake = places_of(session, resource_type), session.lake
    current, buried = (
        ChunkTable.at(lake.table_uri(each), lake.storage_options) for each in (places.current, places.deleted)
    )
    exports = Exports(session)
    due = _due(exports, current, buried, _parts(session, resource_type), "")
    return not due.anew and not due.pending


def _update(session: Session, resource_type: str, *, anew: bool) -> CurrentTable:
    from pipeline.tables.current.chunks import ChunkTable
    from pipeline.tables.current.merging import merge
    from pipeline.tables.current.shares import latest_of

    places, options = places_of(session, resource_type), session.lake.storage_options
    # In this order, and merged only if the two are still the same: what others do meanwhile is not undone.
    current = ChunkTable.at(session.lake.table_uri(places.current), options)
    buried = ChunkTable.at(session.lake.table_uri(places.deleted), options)
    exports = Exports(session)
    parts = _parts(session, resource_type)
    due = _due(exports, current, buried, parts, "it was asked for" if anew else "")
    shares = [_share(exports, resource_type, each, due, parts) for each in due.pending]
    latest = latest_of(current)
    late = [share.export_id for share in shares if share.order <= latest]
    if late and not due.anew:
        due = _due(exports, current, buried, parts, f"{late[0]} is earlier than what was in it")
        shares = [_share(exports, resource_type, each, due, parts) for each in due.pending]
    name = f"{table_name(resource_type)}{CURRENT}"
    schema = _schema(session, resource_type)
    if schema is None and (current.rows or buried.rows):
        raise rows_lost(session, table_name(resource_type), f"{name} has {current.rows}")
    if schema is None or due.anew:
        exports.require_rows(resource_type, parts, exports.whole)
    # What was exported and has no row yet has a current table too: readers find it, and nothing in it.
    first = current.version is None and schema is not None and bool(exports.whole)
    if not due.anew and not due.pending and not first:
        return CurrentTable(name, resource_type, current.rows, buried.rows, (), "", None)
    merged = merge(
        session.lake,
        places,
        _floor(resource_type) if schema is None else schema,
        shares,
        anew=bool(due.anew),
        without=due.over,
        rules=rules_number(session.source),
        seen=(current.version, buried.version),
    )
    how = f" made again, since {due.anew}:" if due.anew else ""
    counts = f"{merged.rows} rows, {merged.deleted} deleted; {merged.added} versions taken in"
    session.log(f"{name}:{how} {counts}")
    merged_exports = tuple(share.export_id for share in shares)
    return CurrentTable(name, resource_type, merged.rows, merged.deleted, merged_exports, due.anew, merged)


def _due(
    exports: Exports,
    current: ChunkTable,
    buried: ChunkTable,
    parts: Mapping[str, tuple[int, tuple[StagedPart, ...]]],
    anew: str,
) -> _Due:
    from pipeline.tables.current.chunks import NEVER
    from pipeline.tables.current.shares import number_of, rules_of, torn

    if rules_of(current) not in (NEVER, rules_number(exports.session.source)):
        anew = anew or "on_leave, export.infer_deletes or our rules are others now"
    numbers = {
        export_id: attempt
        for export_id, (attempt, _) in exports.whole.items()
        if any(export_id in each for each in (parts, exports.deleting, exports.grouped))
        or exports.infers(export_id)
    }
    over = []
    for export_id in {*exports.session.ledger.export_ids(), *exports.whole}:
        there, wanted = number_of(current, export_id), numbers.get(export_id, NEVER)
        if there not in (NEVER, wanted):
            anew = anew or f"{export_id} was {'taken back' if wanted == NEVER else 'ingested again'}"
            over += [export_id] if wanted == NEVER else []
    if torn(current, buried):
        anew = anew or "its last merge was not finished"
    pending = [each for each in numbers if anew or number_of(current, each) == NEVER]
    return _Due(numbers, tuple(sorted(pending)), tuple(sorted(over)), anew)


def _parts(session: Session, resource_type: str) -> dict[str, tuple[int, tuple[StagedPart, ...]]]:
    from pipeline.tables.delta import published_parts

    return published_parts(session.table_uri(table_name(resource_type)), session.lake.storage_options)


def _schema(session: Session, resource_type: str) -> pa.Schema | None:
    """None where the type has no table yet, or its log is gone."""
    from pipeline.tables.delta import table_schema

    return table_schema(session.table_uri(table_name(resource_type)), session.lake.storage_options)


def _floor(resource_type: str) -> pa.Schema:
    from pipeline.tables.schema import floor_schema

    return floor_schema(resource_type)


def _share(
    exports: Exports,
    resource_type: str,
    export_id: str,
    due: _Due,
    parts: Mapping[str, tuple[int, tuple[StagedPart, ...]]],
) -> Share:
    from pipeline.tables.current.shares import Share

    folder = exports.session.table(table_name(resource_type))
    _, own = parts.get(export_id, (0, ()))
    named = [
        (identifier, None if at is None else _micros(at), exact)
        for identifier, at, exact in exports.deletes(export_id, resource_type)
    ]
    replaces_all = exports.infers(export_id) and exports.asked_for(export_id, resource_type)
    return Share(
        export_id=export_id,
        number=due.numbers[export_id],
        moment=_micros(exports.moment(export_id)),
        parts=tuple(sorted(f"{folder}/{part.path}" for part in own)),
        deletions=tuple((each, at) for each, at, exact in named if exact or at is None),
        deletions_until=tuple((each, at) for each, at, exact in named if at is not None and not exact),
        speaks_of=partial(exports.asked_alike, export_id),
        listed=lambda: [
            f"{folder}/{part.path}"
            for each in exports.alike_before(export_id, resource_type)
            for part in parts.get(each, (0, ()))[1]
        ],
        replaces_all=replaces_all,
        until=_micros(until) if replaces_all and (until := exports.until(export_id)) else None,
        members=exports.members_only(export_id) if replaces_all else frozenset(),
        renewed=exports.renewed(export_id, resource_type),
        left=exports.left(export_id),
        resource_type=resource_type,
    )


def _micros(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


# --- as of an export -----------------------------------------------------------------------------------


def write_as_of(session: Session, export_id: str, resource_types: Iterable[str], out: Path) -> dict[str, int]:
    """What was true as of an export, into `<out>/<type>/*.parquet`; type -> rows.

    From the partitions of that export, of the supplements that complete it, and of all that were before it by
    transactionTime; others and the current tables are not looked at. Raises `ConfigError` when the export is
    not published, and before anything is written when a folder is not empty or cannot be one; `LakeError`,
    `VerificationFailed`.
    """
    from pipeline.tables.current.merging import choose

    resource_types = list(dict.fromkeys(resource_types))
    require_new(out / table_name(each) for each in resource_types)
    exports = Exports(session)
    whole = {each: number for each, (number, _) in exports.whole.items()}
    if export_id not in whole:
        raise ConfigError(
            f"{session.source.name}/{export_id} is not published",
            f"`fhir-export exports {session.source.name}` lists those that are",
        )
    family = {each.export_id for each in supplements(session, exports.facts(export_id))}
    last = (exports.moment(export_id), export_id)
    before = [each for each in whole if (exports.moment(each), each) <= last or each in family]
    rows = {}
    for resource_type in resource_types:
        parts = _parts(session, resource_type)
        exports.require_rows(resource_type, parts, before)
        due = _Due({each: whole[each] for each in before}, tuple(before), (), "as of")
        shares = [_share(exports, resource_type, each, due, parts) for each in before]
        folder = out / table_name(resource_type)
        schema = _schema(session, resource_type) or _floor(resource_type)
        with filling(folder):
            rows[resource_type] = choose(session.lake, shares, schema, folder)
        session.log(f"{table_name(resource_type)}: {rows[resource_type]} rows as of {export_id}")
    return rows
