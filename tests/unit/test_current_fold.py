"""Which version stands, against an oracle over dicts; ids as codes; what the fold learns from parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import current_oracle as oracle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from current_oracle import Export, Line, Standing, Version
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables.convert import Converter
from pipeline.tables.current.evidence import read_evidence, read_places
from pipeline.tables.current.fold import ABSENT, NAMED, UNKNOWN, State, Versions, beats
from pipeline.tables.current.shares import Share, digits
from pipeline.tables.current.tombstones import read_tombstones, tombstone_schema, tombstones
from pipeline.tables.current.vocabulary import UNCODED, Vocabulary, gathered, shares_of

NIGHT = "20260101T020000Z"
FIRST, SECOND, THIRD = oracle.INSTANTS[:3]
CODES = {identifier: code for code, identifier in enumerate(oracle.IDS)}
KEPT = -3
"""The source of a tombstone that an earlier merge has left."""


# --- oracle's words in columns -----------------------------------------------------------------------


def columns(whats: Sequence[Version], sources: Sequence[int] | None = None) -> Versions:
    """Versions side by side; the row of each is its source once more."""
    numbers = [oracle.integer(what.version) for what in whats]
    places = list(sources if sources is not None else range(len(whats)))
    return Versions(
        updated=np.array([UNKNOWN if what.instant is None else what.instant for what in whats], np.int64),
        version=np.array([-1 if number is None else number for number in numbers], np.int64),
        whole=np.array([what.whole for what in whats], np.bool_),
        gone=np.array([bool(what.gone) for what in whats], np.bool_),
        source=np.array(places, np.int32),
        row=np.array(places, np.int64),
    )


class Columns:
    """A `State` that exports are folded into as the oracle says, and what stands in it in the oracle's words.

    Lines are known by their number among all lines of the history.
    """

    def __init__(self, history: Sequence[Export]) -> None:
        self.state = State(len(CODES))
        self.exports = list(history)
        self.lines = [line for export in history for line in export.lines]

    def begin(self, standing: Mapping[str, Standing]) -> None:
        """What a table holds already: first what is alive, then tombstones."""
        for identifier, one in sorted(standing.items(), key=lambda each: bool(each[1].what.gone)):
            source = KEPT if one.line is None or one.what.gone else self._place(one.line)
            number = self._number(one.export)
            self.state.fold(_codes([identifier]), columns([one.what], [source]), number)

    def fold(self, exports: Sequence[Export]) -> None:
        for export in oracle.ordered(exports):
            number = self._number(export.id)
            lines = [line for line in oracle.in_order(export.lines) if line.id is not None]
            self._name([each for each in export.deletions if each[1] is None], number)
            if export.replaces_all:
                there = np.zeros(len(CODES), np.bool_)
                there[_codes([line.id for line in lines if line.id])] = True
                self.state.gone_without_a_word(self.state.lacked(there), number)
            codes = _codes([line.id for line in lines if line.id])
            self.state.fold(
                codes, columns([each.what for each in lines], [self._place(each) for each in lines]), number
            )
            self._name([each for each in export.deletions if each[1] is not None], number)

    def _name(self, deletions: Sequence[tuple[str, int | None]], export: int) -> None:
        instants = np.array([UNKNOWN if at is None else at for _, at in deletions], np.int64)
        self.state.fold(_codes([each for each, _ in deletions]), Versions.gone_at(instants), export)

    def _place(self, line: Line) -> int:
        return next(place for place, each in enumerate(self.lines) if each is line)

    def _number(self, export_id: str) -> int:
        return [export.id for export in self.exports].index(export_id)

    @property
    def standing(self) -> dict[str, tuple[Any, ...]]:
        """Id -> export, instant, alive or how it is gone, and the line where there is one."""
        found: dict[str, tuple[Any, ...]] = {}
        versions = self.state.versions
        for identifier, code in CODES.items():
            if not self.state.known[code]:
                continue
            source, updated = int(versions.source[code]), int(versions.updated[code])
            how = {NAMED: oracle.DELETED, ABSENT: oracle.ABSENT}.get(source, oracle.SOFT_DELETED)
            found[identifier] = (
                self.exports[self.state.export[code]].id,
                None if updated == UNKNOWN else updated,
                how if versions.gone[code] else "",
                self.lines[source] if source >= 0 else None,
            )
            assert (source >= 0) == (versions.row[code] >= 0)
            assert bool(self.state.alive[code]) is not bool(versions.gone[code])
        return found


def told(state: oracle.State) -> dict[str, tuple[Any, ...]]:
    return {
        identifier: (one.export, one.what.instant, one.what.gone, one.line)
        for identifier, one in state.items()
    }


def _codes(ids: Sequence[str]) -> Any:
    return np.array([CODES[each] for each in ids], np.int32)


# --- two versions ------------------------------------------------------------------------------------

EVERY = [
    Version(gone, instant, version, whole)
    for gone in ("", oracle.DELETED)
    for instant in (None, FIRST, SECOND)
    for version in (None, "W/9", "1", "2", "10")
    for whole in (True, False)
]


def test_of_any_two_versions_the_one_that_the_rules_say_stands() -> None:
    """All pairs at once. Protocol fact 16 (SUBSETTED) and fact 32 (versionId, lastUpdated)."""
    pairs = list(itertools.product(EVERY, EVERY))
    found = beats(columns([later for later, _ in pairs]), columns([standing for _, standing in pairs]))
    wrong = [
        pair for pair, wins in zip(pairs, found.tolist(), strict=True) if wins is not oracle.replaces(*pair)
    ]
    assert wrong == []
    assert 0 < sum(found.tolist()) < len(pairs)


GONE = Version(oracle.DELETED)


EXAMPLES: dict[str, tuple[Version, Version, bool]] = {
    "newer but SUBSETTED": (Version(instant=SECOND, whole=False), Version(instant=FIRST), False),
    "older but whole": (Version(instant=FIRST), Version(instant=SECOND, whole=False), True),
    "older of two SUBSETTED": (
        Version(instant=FIRST, whole=False),
        Version(instant=SECOND, whole=False),
        False,
    ),
    "gone, and SUBSETTED": (
        Version(oracle.SOFT_DELETED, SECOND, whole=False),
        Version(instant=FIRST),
        True,
    ),
    "instants before numbers": (
        Version(instant=FIRST, version="9"),
        Version(instant=SECOND, version="1"),
        False,
    ),
    "a number, one instant": (Version(instant=FIRST, version="9"), Version(version="10"), False),
    "a number, no text": (Version(instant=FIRST, version="10"), Version(instant=FIRST, version="9"), True),
    "opaque, the later": (Version(version="1a"), Version(version="2"), True),
    "too long, the later": (Version(version="1"), Version(version="9" * 19), True),
    "nothing known, the later": (Version(), Version(instant=SECOND), True),
    "deleted before": (Version(oracle.DELETED, FIRST), Version(instant=SECOND), False),
    "deleted at that instant": (Version(oracle.DELETED, SECOND), Version(instant=SECOND), True),
    "stale behind a deletion": (Version(instant=FIRST), Version(oracle.DELETED, SECOND), False),
    "deleted at no instant": (GONE, Version(instant=SECOND), True),
    "when it went is kept": (GONE, Version(oracle.DELETED, FIRST), False),
    "who said it first is kept": (GONE, GONE, False),
    "when it went is learnt": (Version(oracle.DELETED, FIRST), GONE, True),
    "there again": (Version(instant=FIRST), GONE, True),
    "a number, gone at no instant": (
        Version(oracle.SOFT_DELETED, version="2"),
        Version(oracle.SOFT_DELETED, version="1"),
        True,
    ),
}


@pytest.mark.parametrize(("later", "standing", "wins"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_each_rule_by_an_example(later: Version, standing: Version, wins: bool) -> None:
    assert oracle.replaces(later, standing) is wins
    assert beats(columns([later]), columns([standing])).tolist() == [wins]


# --- histories ---------------------------------------------------------------------------------------


@given(oracle.histories())
@settings(max_examples=200)
def test_any_history_ends_as_the_oracle_says(history: list[Export]) -> None:
    """Protocol facts 16, 31 and 32: deletions, repeated and SUBSETTED resources, in any number of exports."""
    found = Columns(history)
    found.fold(history)
    assert found.standing == told(oracle.folded(history))


@given(oracle.histories(), st.integers(0, 5))
@settings(max_examples=100)
def test_a_table_and_later_exports_end_as_all_exports_together(history: list[Export], cut: int) -> None:
    """Only what stands is carried over, tombstones behind what is alive."""
    ordered = oracle.ordered(history)
    standing = oracle.folded(ordered[:cut])
    found = Columns(history)
    found.begin(standing)
    found.fold(ordered[cut:])
    kept = {each for each, one in oracle.folded(history).items() if one == standing.get(each)}
    expected = told(oracle.folded(history))
    assert found.standing.keys() == expected.keys()
    for identifier, one in found.standing.items():
        # Of a tombstone of before only how it is gone is no longer told by where it comes from.
        of = slice(0, 2) if identifier in kept and expected[identifier][2] else slice(None)
        assert one[of] == expected[identifier][of]


@given(oracle.orderly_histories())
@settings(max_examples=100)
def test_an_export_that_is_folded_again_changes_nothing(history: list[Export]) -> None:
    """The latest one, of a server that does not contradict itself."""
    found = Columns(history)
    found.fold(history)
    once = found.standing
    found.fold(oracle.ordered(history)[-1:])
    assert found.standing == once


@given(st.lists(st.tuples(st.sampled_from(oracle.IDS), oracle.versions()), max_size=12))
@settings(max_examples=60)
def test_many_at_once_are_as_one_by_one(items: list[tuple[str, Version]]) -> None:
    """An id as often as it comes, its versions in their order."""
    whats = columns([what for _, what in items])
    codes = _codes([identifier for identifier, _ in items])
    together, single = State(len(CODES)), State(len(CODES))
    together.fold(codes, whats, 7)
    for place in range(len(items)):
        single.fold(codes[place : place + 1], whats.take(np.array([place])), 7)
    assert together.known.tolist() == single.known.tolist()
    assert together.export.tolist() == single.export.tolist()
    for name in ("updated", "version", "whole", "gone", "source", "row"):
        assert getattr(together.versions, name).tolist() == getattr(single.versions, name).tolist()


def test_what_a_full_export_lacks_is_gone_once() -> None:
    """Only what was alive; the export that missed it first is the one that says so."""
    state = State(3)
    state.fold(np.array([0, 1], np.int32), columns([Version(instant=SECOND), Version(instant=FIRST)]), 1)
    for export in (2, 3):
        state.gone_without_a_word(state.lacked(np.array([True, False, False])), export)
    assert state.alive.tolist() == [True, False, False]
    assert state.known.tolist() == [True, True, False]
    assert state.export.tolist() == [1, 2, -1]
    assert state.versions.source[1] == ABSENT


def test_exports_count_by_transaction_time_and_then_by_id() -> None:
    """Protocol fact 26: not by when they were asked for."""
    shares = [Share("20260103T020000Z", 1, 5), Share("20260101T020000Z", 1, 7), Share(NIGHT, 1, 5)]
    found = [share.order for share in sorted(shares, key=lambda share: share.order)]
    assert found == [(5, 20260101020000), (5, 20260103020000), (7, 20260101020000)]
    assert digits("20261231T235959Z") == 20261231235959


# --- ids as codes ------------------------------------------------------------------------------------

TEXTS = st.lists(st.none() | st.text(max_size=12) | st.sampled_from(["a", "b", "ab", ""]), max_size=30)


def sliced(texts: Sequence[str | None], cut: int) -> pa.StringArray:
    """The same ids as a piece of a longer array."""
    return pa.array(["before", None, "x"] * 3 + list(texts) + ["behind"], pa.string()).slice(9, len(texts))[
        min(cut, len(texts)) :
    ]


@given(TEXTS, TEXTS, st.integers(0, 5))
@settings(max_examples=60)
def test_each_id_has_one_code_and_nulls_have_none(
    first: list[str | None], more: list[str | None], cut: int
) -> None:
    arrays = [sliced(first, cut), sliced(more, 0), sliced(first, 0)]
    vocabulary = gathered(arrays)
    known = vocabulary.ids.to_pylist()
    assert known == list(
        dict.fromkeys(each for array in arrays for each in array.to_pylist() if each is not None)
    )
    asked = [*first, *more, None, "never seen"]
    expected = [known.index(each) if each in known else UNCODED for each in asked]
    assert vocabulary.codes(pa.array(asked, pa.string())).tolist() == expected
    assert len(vocabulary) == len(known)


def test_an_empty_vocabulary_knows_nothing() -> None:
    assert Vocabulary().codes(pa.array(["a", None])).tolist() == [UNCODED, UNCODED]
    assert Vocabulary().codes(pa.array([], pa.string())).tolist() == []


@given(TEXTS, st.integers(0, 5), st.integers(1, 5))
@settings(max_examples=60)
def test_each_id_belongs_to_one_share_and_always_to_the_same(
    texts: list[str | None], cut: int, shares: int
) -> None:
    """Wherever it stands in an array: a row and the chunk that it replaces must meet in one pass."""
    ids = sliced(texts, cut)
    mine = [shares_of(ids, share, shares).tolist() for share in range(shares)]
    assert [sum(each) for each in zip(*mine, strict=True)] == [int(each.is_valid) for each in ids]
    alone = [shares_of(pa.array([each], pa.string()), 0, shares).tolist()[0] for each in ids.to_pylist()]
    assert mine[0] == alone


@pytest.mark.parametrize("shares", [1, 3])
def test_no_ids_belong_to_no_share(shares: int) -> None:
    for ids in (pa.array([], pa.string()), pa.array(["a"], pa.string())[1:], pa.array([None], pa.string())):
        assert not shares_of(ids, 0, shares).any()


@pytest.mark.parametrize("form", ["{}", "patient-{:08d}", "{:032x}", "{}-0000-4000-8000-000000000000"])
def test_shares_are_about_equal(form: str) -> None:
    """Numbers, padded numbers and UUIDs; of ids that end alike the share is decided by the end alone."""
    ids = pa.array([form.format(number) for number in range(6000)])
    sizes = [int(shares_of(ids, share, 3).sum()) for share in range(3)]
    assert sum(sizes) == 6000
    if not form.endswith("0"):
        assert min(sizes) > 1700


# --- what is read of parts ---------------------------------------------------------------------------


def evidence_of(folder: Path, metas: Sequence[Any]) -> tuple[list[str | None], Versions]:
    """Resources `0`, `1`, ... with these `meta` through the Converter, and what is read of them."""
    with Converter("Basic", None, NIGHT, folder) as converter:
        for number, meta in enumerate(metas, start=1):
            body = {"resourceType": "Basic", "id": str(number - 1)} | ({"meta": meta} if meta else {})
            converter.add_line(json.dumps(body).encode(), "0001.ndjson", number)
        (part,) = converter.finish()
    with pq.ParquetFile(part.path) as file:
        ids, versions = read_evidence(file, 5)
    assert versions.source.tolist() == [5] * len(metas)
    assert versions.row.tolist() == list(range(len(metas)))
    return ids.to_pylist(), versions


def test_only_up_to_eighteen_digits_are_a_number(tmp_path: Path) -> None:
    texts = ["0", "1", "007", "9" * 18, "9" * 19, "W/1", "1a", "a1", "-1", "+1", "1.0", " 1", "1 ", "1\n2"]
    texts += ["\u0661", "\uff11", "1e3", ""]
    ids, versions = evidence_of(
        tmp_path, [{"versionId": text} for text in texts] + [None, {}, {"source": "s"}]
    )
    assert ids == [str(number) for number in range(len(texts) + 3)]
    assert versions.version.tolist() == [0, 1, 7, 10**18 - 1] + [-1] * (len(texts) - 4 + 3)
    assert [-1 if (found := oracle.integer(text)) is None else found for text in texts] == versions.version[
        : len(texts)
    ].tolist()


def test_last_updated_is_read_as_an_instant(tmp_path: Path) -> None:
    texts = ["2026-01-01T02:00:00Z", "2026-01-01T04:00:00+02:00", "2025-12-31T20:30:00.000001-05:30", "soon"]
    _, versions = evidence_of(tmp_path, [{"lastUpdated": text} for text in texts] + [None])
    begin = (
        int((datetime(2026, 1, 1, 2, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 10**6
    )
    assert versions.updated.tolist() == [begin, begin, begin + 1, UNKNOWN, UNKNOWN]


def soft(url: str = oracle.EXTENSION, text: str = "soft-deleted") -> dict[str, str]:
    return {"url": url, "valueString": text}


OTHER = {"url": "http://example.org/x", "valueString": "y"}


MARKS: dict[str, tuple[Any, bool, bool]] = {
    "no meta": (None, True, False),
    "tagged": ({"tag": [{"code": "SUBSETTED"}]}, False, False),
    "second tag": ({"tag": [{"code": "HTEST"}, {"code": "SUBSETTED"}]}, False, False),
    "no code": ({"tag": [{"display": "SUBSETTED"}]}, True, False),
    "another case": ({"tag": [{"code": "subsetted"}]}, True, False),
    "longer behind": ({"tag": [{"code": "SUBSETTED-NOT"}]}, True, False),
    "longer before": ({"tag": [{"code": "UNSUBSETTED"}]}, True, False),
    "a label, no tag": ({"security": [{"code": "SUBSETTED"}]}, True, False),
    "soft-deleted": ({"extension": [soft()]}, True, True),
    "second extension": ({"extension": [OTHER, soft()]}, True, True),
    "both": ({"extension": [soft()], "tag": [{"code": "SUBSETTED"}]}, False, True),
    "another state": ({"extension": [soft(text="active")]}, True, False),
    "state, longer before": ({"extension": [soft(text="not-soft-deleted")]}, True, False),
    "url, longer behind": ({"extension": [soft(url=oracle.EXTENSION + "-x")]}, True, False),
    "another url that ends so": ({"extension": [soft(url="http://x.org/undeleted-state")]}, True, False),
    "url and state apart": ({"extension": [soft(text="x"), soft(url="http://example.org/x")]}, True, False),
}


@pytest.mark.parametrize(("meta", "whole", "gone"), MARKS.values(), ids=MARKS.keys())
def test_marks_of_a_row(tmp_path: Path, meta: Any, whole: bool, gone: bool) -> None:
    """Beside rows that have the mark and rows that have nothing, so that places are not mixed up."""
    full = {"tag": [{"code": "SUBSETTED"}] * 2, "extension": [soft()] * 2}
    _, versions = evidence_of(tmp_path, [{"tag": [], "extension": []}, full, meta, None, full])
    assert versions.whole.tolist() == [True, False, whole, True, False]
    assert versions.gone.tolist() == [False, True, gone, False, True]


def test_parts_of_other_writers_with_less_in_them(tmp_path: Path) -> None:
    """No meta at all, meta without the members that matter, no rows, several row groups."""
    bare = pa.table({"id": ["a", None, "b"]})
    poor = bare.append_column("meta", pa.array([{"source": "s"}, None, {"source": None}]))
    rich = bare.append_column(
        "meta",
        pa.array([{"versionId": "3", "tag": [{"code": "SUBSETTED"}]}, None, {"versionId": "4", "tag": None}]),
    )
    for number, (table, version, whole) in enumerate(
        [
            (bare, [-1, -1, -1], [True] * 3),
            (poor, [-1, -1, -1], [True] * 3),
            (rich, [3, -1, 4], [False, True, True]),
            (rich.slice(0, 0), [], []),
            (poor.slice(0, 0), [], []),
        ]
    ):
        pq.write_table(table, tmp_path / f"{number}", row_group_size=1)
        with pq.ParquetFile(tmp_path / f"{number}") as file:
            ids, versions = read_evidence(file, 0)
        assert ids.to_pylist() == table.column("id").to_pylist()
        assert versions.version.tolist() == version
        assert versions.whole.tolist() == whole
        assert versions.gone.tolist() == [False] * table.num_rows
        assert versions.updated.tolist() == [UNKNOWN] * table.num_rows


def test_places_are_file_and_line(tmp_path: Path) -> None:
    with Converter("Basic", None, NIGHT, tmp_path) as converter:
        for file, number in [("b", 3), ("a", 9), ("b", 10)]:
            converter.add_line(b'{"resourceType":"Basic","id":"x"}', file, number)
        (part,) = converter.finish()
    with pq.ParquetFile(part.path) as file_:
        files, numbers = read_places(file_)
    assert (files.to_pylist(), numbers.tolist()) == (["b", "a", "b"], [3, 9, 10])


def test_tombstones_come_back_as_they_went(tmp_path: Path) -> None:
    """The next merge competes with them: the instant and the number are what counts."""
    soft_deleted = replace(Version(oracle.SOFT_DELETED, FIRST), version="12")
    gone = columns([Version(oracle.DELETED, SECOND), GONE, GONE, soft_deleted], [NAMED, NAMED, ABSENT, 4])
    table = tombstones(pa.array(["a", "b", "c", "d"]), gone, np.array(["n1", "n1", "n2", "n3"]))
    assert table.schema.equals(tombstone_schema())
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("a", True, oracle.moment(SECOND), "deleted", "n1", None),
        ("b", True, None, "deleted", "n1", None),
        ("c", True, None, "absent", "n2", None),
        ("d", True, oracle.moment(FIRST), "soft-deleted", "n3", "12"),
    ]
    pq.write_table(table, tmp_path / "t", row_group_size=3)
    with pq.ParquetFile(tmp_path / "t") as file:
        ids, back = read_tombstones(file, 9)
    assert ids.to_pylist() == ["a", "b", "c", "d"]
    assert back.updated.tolist() == gone.updated.tolist()
    assert back.version.tolist() == gone.version.tolist()
    assert (back.source.tolist(), back.row.tolist()) == ([9] * 4, [0, 1, 2, 3])
    assert back.gone.all()
