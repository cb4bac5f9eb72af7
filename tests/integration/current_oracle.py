"""What a current table must hold, told over dicts and lists: an oracle that shares nothing with the tables.

And the small histories that are held against it: few ids, so that everything meets everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

DELETED, SOFT_DELETED, ABSENT = "deleted", "soft-deleted", "absent"
EXTENSION = "http://azurehealthcareapis.com/data-extensions/deleted-state"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MORNING = 1_767_232_800_000_000
"""2026-01-01T02:00:00Z in microseconds."""


@dataclass(frozen=True)
class Version:
    """A version of a resource, alive or gone."""

    gone: str = ""
    """How it is known that it is gone; empty while it is alive."""
    instant: int | None = None
    """Microseconds since 1970: `meta.lastUpdated`, or when it was deleted."""
    version: str | None = None
    """`meta.versionId`."""
    whole: bool = True
    """Not SUBSETTED."""


@dataclass(frozen=True)
class Line:
    """A resource that an export lists."""

    id: str | None
    what: Version
    file: str = "0001.ndjson"
    number: int = 1
    part: int = 0
    """In which Parquet part of the export it lies."""


@dataclass(frozen=True)
class Export:
    """What one export brought of one type."""

    id: str
    moment: int
    """Its transactionTime."""
    lines: tuple[Line, ...] = ()
    deletions: tuple[tuple[str, int | None], ...] = ()
    replaces_all: bool = False


@dataclass(frozen=True)
class Standing:
    """The version that stands for an id, the export that brought it, and its line where it is one."""

    what: Version
    export: str
    line: Line | None = None


State = dict[str, Standing]


def replaces(later: Version, standing: Version) -> bool:
    """Whether the later of two versions takes the place of the one that stands."""
    if not later.gone and not standing.gone and later.whole != standing.whole:
        return later.whole
    if later.instant is not None and standing.instant is not None and later.instant != standing.instant:
        return later.instant > standing.instant
    numbers = integer(later.version), integer(standing.version)
    if numbers[0] is not None and numbers[1] is not None and numbers[0] != numbers[1]:
        return numbers[0] > numbers[1]
    return not (later.gone and later.instant is None and standing.gone)


def integer(version: str | None) -> int | None:
    """A versionId as a number; None where it is opaque."""
    return int(version) if version is not None and re.fullmatch(r"[0-9]{1,18}", version) else None


def ordered(exports: Iterable[Export]) -> list[Export]:
    return sorted(exports, key=lambda export: (export.moment, export.id))


def in_order(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (line.file, line.number))


def folded(exports: Iterable[Export], before: Mapping[str, Standing] | None = None) -> State:
    """What stands after the exports, in their order."""
    state = dict(before or {})

    def compete(identifier: str, item: Standing) -> None:
        if identifier not in state or replaces(item.what, state[identifier].what):
            state[identifier] = item

    for export in ordered(exports):
        for identifier, at in export.deletions:
            if at is None:
                compete(identifier, Standing(Version(DELETED), export.id))
        if export.replaces_all:
            listed = {line.id for line in export.lines}
            for identifier in [each for each, one in state.items() if not one.what.gone]:
                if identifier not in listed:
                    compete(identifier, Standing(Version(ABSENT), export.id))
        for line in in_order(export.lines):
            if line.id is not None:
                compete(line.id, Standing(line.what, export.id, line))
        for identifier, at in export.deletions:
            if at is not None:
                compete(identifier, Standing(Version(DELETED, at), export.id))
    return state


def alive(state: State) -> dict[str, tuple[str, str, int]]:
    """Of each id that is alive the line that it stands with: export, file, number."""
    return {
        identifier: (one.export, one.line.file, one.line.number)
        for identifier, one in state.items()
        if one.line is not None and not one.what.gone
    }


def gone(state: State) -> dict[str, tuple[datetime | None, str, str]]:
    """Of each id that is gone when, how, and which export said so."""
    return {
        identifier: (moment(one.what.instant), one.what.gone, one.export)
        for identifier, one in state.items()
        if one.what.gone
    }


def moment(micros: int | None) -> datetime | None:
    return None if micros is None else EPOCH + timedelta(microseconds=micros)


# --- lines as a server writes them -------------------------------------------------------------------


def resource(line: Line) -> dict[str, Any]:
    """The resource that a line holds; nothing but its place tells it from others of that version."""
    what = line.what
    meta: dict[str, Any] = {}
    if what.instant is not None:
        meta["lastUpdated"] = written(what.instant, line.number)
    if what.version is not None:
        meta["versionId"] = what.version
    if not what.whole:
        meta["tag"] = [{"code": "HTEST"}, {"code": "SUBSETTED"}]
    if what.gone:
        meta["extension"] = [{"url": EXTENSION, "valueString": "soft-deleted"}]
    found: dict[str, Any] = {"resourceType": "Basic", "code": {"text": f"{line.file}:{line.number}"}}
    return found | ({"id": line.id} if line.id is not None else {}) | ({"meta": meta} if meta else {})


def ndjson(line: Line) -> bytes:
    return json.dumps(resource(line)).encode()


def written(micros: int, style: int) -> str:
    """The same instant in several offsets: texts do not sort as instants do."""
    offset = timezone(timedelta(minutes=(0, 120, -330)[style % 3]))
    text = (EPOCH + timedelta(microseconds=micros)).astimezone(offset).isoformat()
    return text.replace("+00:00", "Z")


# --- histories ---------------------------------------------------------------------------------------

IDS = ("a", "b", "c")
INSTANTS = (MORNING, MORNING + 1, MORNING + 1_000_000, MORNING + 3_600_000_000)
VERSIONS = ("1", "2", "10", "007", "9" * 18, "9" * 19, "W/1", "1a", "-1")
FILES = ("0001.ndjson", "0002.ndjson", "0010.ndjson")


def versions() -> st.SearchStrategy[Version]:
    """Any version that a line can hold, however its members contradict those of others."""
    return st.builds(
        Version,
        gone=st.sampled_from(["", "", "", SOFT_DELETED]),
        instant=st.none() | st.sampled_from(INSTANTS),
        version=st.none() | st.sampled_from(VERSIONS),
        whole=st.sampled_from([True, True, False]),
    )


def served(instants: bool, numbers: bool) -> st.SearchStrategy[Version]:
    """Versions of a server that does not contradict itself: what is newer has a greater number, and what it
    deletes stays a version. Whether it sends instants, and integers, is the same all the time."""
    return st.tuples(st.integers(0, 3), st.booleans()).map(
        lambda drawn: Version(
            gone=SOFT_DELETED if drawn[1] and instants else "",
            instant=INSTANTS[drawn[0]] if instants else None,
            version=str(drawn[0] + 8) if numbers else f"W/{drawn[0]}",
        )
    )


@st.composite
def histories(
    draw: st.DrawFn, whats: st.SearchStrategy[Version] | None = None, most: int = 5
) -> list[Export]:
    """Exports in the order of their ids, which need not be that of their transactionTimes."""
    whats = versions() if whats is None else whats
    places = st.tuples(st.sampled_from(FILES), st.integers(1, 12))
    found = []
    for number in range(draw(st.integers(1, most))):
        where = draw(st.lists(places, max_size=5, unique=True))
        lines = [
            Line(
                draw(st.sampled_from([*IDS, *IDS, None])),
                draw(whats),
                file,
                position,
                draw(st.integers(0, 2)),
            )
            for file, position in where
        ]
        deletions = st.tuples(st.sampled_from(IDS), st.none() | st.sampled_from(INSTANTS))
        found.append(
            Export(
                f"2026010{number + 1}T020000Z",
                MORNING + draw(st.integers(0, 3)),
                tuple(lines),
                tuple(draw(st.lists(deletions, max_size=2))),
                draw(st.sampled_from([False, False, True])),
            )
        )
    return found


@st.composite
def orderly_histories(draw: st.DrawFn, most: int = 5) -> list[Export]:
    """Of a server that does not contradict itself."""
    return draw(histories(served(draw(st.booleans()), draw(st.booleans())), most))


def parts_of(export: Export) -> list[Sequence[Line]]:
    """The lines of each part, in any order."""
    numbers = sorted({line.part for line in export.lines})
    return [[line for line in export.lines if line.part == number] for number in numbers]
