"""References between current tables: how many there are at each path, and how many lead nowhere.

Looked at are references to types of the same source that have a current table: `Patient/1`, with or without
`/_history/2`, and the same behind the server's base URL (protocol fact 32). Whatever else a reference may be
(contained, `urn:`, conditional, of another server, of a type that is not exported) is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pipeline.exports.current import current_types, places_of
from pipeline.exports.current_scan import IDS, Scan, scanning
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.tables.current.chunks import Chunk

REFERENCE = "reference"
"""The text of a Reference; there are also uris of that name, such as `Immunization.education.reference`."""
_BATCH_ROWS = 32 * 1024
_INSERT = "INSERT INTO pointing SELECT path, type, id, number FROM batch"


@dataclass(frozen=True)
class Pointing:
    """The references at one path to one type."""

    path: str
    """Such as `participant.individual`."""
    target: str
    references: int
    dangling: int
    """To what the target's current table does not have."""
    deleted: int
    """Of these, to what is among the target's deleted."""


@dataclass(frozen=True)
class Counted:
    """The references of a current table."""

    by_path: tuple[Pointing, ...]
    elsewhere: int
    """How many are not judged."""


class References:
    """Counts for one current table after the other; the ids of a type that is pointed to are read once."""

    def __init__(self, session: Session, scan: Scan) -> None:
        self._session = session
        self._scan = scan
        self._targets = [each for each in current_types(session) if self._chunks(each)[0] is not None]
        self._elsewhere = 0
        self._form = form_of(session.source.fhir_url, self._targets)

    def of(self, resource_type: str) -> Counted:
        """The references of a type's current table, by path and target. Raises LakeError."""
        self._elsewhere = 0
        table, folder, _ = self._chunks(resource_type)
        self._scan.make(
            "pointing", {"path": "VARCHAR", "type": "VARCHAR", "id": "VARCHAR", "number": "BIGINT"}
        )
        self._scan.ask("DELETE FROM pointing")
        for chunk in table or ():
            self._read(resource_type, f"{folder}/{chunk.path}")
        pointed = [each for (each,) in self._scan.ask("SELECT DISTINCT type FROM pointing ORDER BY type")]
        by_path = [pointing for target in pointed for pointing in self._count(target)]
        return Counted(tuple(by_path), self._elsewhere)

    def _chunks(self, resource_type: str) -> tuple[list[Chunk] | None, str, str]:
        """Those of the current table (None: there is no table), and where it and the deleted lie."""
        from pipeline.tables.current.chunks import ChunkTable

        places = places_of(self._session, resource_type)
        lake = self._session.lake
        table = ChunkTable.at(lake.table_uri(places.current), lake.storage_options)
        return (None if table.version is None else table.chunks), places.current, places.deleted

    def _read(self, resource_type: str, path: str) -> None:
        from pipeline.tables.parts import open_part
        from pipeline.tables.sparse_reading import held_columns

        with self._session.lake.open(path) as file, open_part(file) as part:
            for group, columns in enumerate(held_columns(file)):
                wanted = [each for each in columns if is_reference_text(resource_type, each)]
                if not wanted:
                    continue
                for batch in part.iter_batches(
                    _BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False
                ):
                    for name, column in zip(batch.schema.names, batch.columns, strict=True):
                        for steps, texts in reference_texts(column, (name,)):
                            self._add(".".join(steps), texts)

    def _add(self, path: str, texts: pa.StringArray) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        counts = pc.value_counts(texts.drop_null())
        parts = pc.extract_regex(counts.field("values"), self._form)
        judged = parts.is_valid()
        self._elsewhere += pc.sum(counts.field("counts").filter(pc.invert(judged))).as_py() or 0
        rows = pa.table(
            {
                "path": pa.repeat(path, len(counts)),
                "type": pc.struct_field(parts, "type"),
                "id": pc.struct_field(parts, "id"),
                "number": counts.field("counts"),
            }
        ).filter(judged)
        if rows.num_rows:
            self._scan.add(_INSERT, rows)

    def _count(self, target: str) -> Iterator[Pointing]:
        from pipeline.tables.current.chunks import ChunkTable

        name = table_name(target)
        alive, gone = f"alive_{name}", f"gone_{name}"
        if self._scan.make(alive, IDS) and self._scan.make(gone, IDS):
            chunks, current, deleted = self._chunks(target)
            self._scan.load(alive, [f"{current}/{chunk.path}" for chunk in chunks or ()], IDS)
            lake = self._session.lake
            tombs = ChunkTable.at(lake.table_uri(deleted), lake.storage_options)
            self._scan.load(gone, [f"{deleted}/{chunk.path}" for chunk in tombs.chunks], IDS)
        rows = self._scan.ask(
            "WITH each AS (SELECT path, id, sum(number) AS n"  # noqa: S608 - names of ours
            " FROM pointing WHERE type = ? GROUP BY ALL),"
            " judged AS (SELECT path, n,"
            f" EXISTS (SELECT 1 FROM {alive} a WHERE a.id = each.id) AS there,"
            f" EXISTS (SELECT 1 FROM {gone} g WHERE g.id = each.id) AS buried FROM each)"
            " SELECT path, sum(n), sum(n) FILTER (NOT there), sum(n) FILTER (NOT there AND buried)"
            " FROM judged GROUP BY path ORDER BY path",
            [target],
        )
        for path, references, dangling, buried in rows:
            yield Pointing(path, target, int(references), int(dangling or 0), int(buried or 0))


@contextmanager
def counting_references(session: Session) -> Iterator[References]:
    """A `References`, whose memory and spilled files are given back at the end. Raises LakeError."""
    with scanning(session.lake) as scan:
        yield References(session, scan)


def form_of(base: str, types: Sequence[str]) -> str:
    """The regular expression of a reference to one of these types on that server: `type` and `id`."""
    named = "|".join(types)
    return rf"^(?:{re.escape(base)}/)?(?P<type>{named})/(?P<id>[A-Za-z0-9\-.]+)(?:/_history/[^/]+)?$"


@cache
def is_reference_text(resource_type: str, column: str) -> bool:
    """Whether a Parquet column (`a.list.element.b`) of a type's table is `Reference.reference`, by R4."""
    from pipeline.tables.shape import Structure, members

    structure = Structure(resource_type)
    steps = column.split(".")
    while len(steps) > 1:
        member = members(structure).get(steps[0])
        if member is None or member.structure is None:
            return False
        structure, steps = member.structure, steps[3 if member.many else 1 :]
    return structure.type == "Reference" and steps == [REFERENCE]


def reference_texts(
    column: pa.Array, steps: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], pa.StringArray]]:
    """The texts of all References in a column: the FHIR path of each Reference, and what is there."""
    import pyarrow as pa

    if pa.types.is_list(column.type):
        yield from reference_texts(column.flatten(), steps)
    elif pa.types.is_struct(column.type):
        for field, inner in zip(column.type.fields, column.flatten(), strict=True):
            yield from reference_texts(inner, (*steps, field.name))
    elif steps[-1] == REFERENCE and pa.types.is_string(column.type):
        yield tuple(steps[:-1]), column
