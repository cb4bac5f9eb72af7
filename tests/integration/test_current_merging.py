"""Exports merged into current tables on a disk, against the oracle; torn, overtaken and repeated merges.

What a table holds is read by deltalake alone, and each row is held against the row of the export's part.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import current_oracle as oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from current_oracle import EXTENSION, INSTANTS, Export, Line, Version
from deltalake import DeltaTable
from generated_resources import lines_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lake.lake import open_lake
from pipeline.tables import schema as schemas
from pipeline.tables.convert import Converter
from pipeline.tables.current import chunks, deciding, merging
from pipeline.tables.current.chunks import NEVER, Chunk, ChunkTable, new_chunk
from pipeline.tables.current.merging import choose, merge
from pipeline.tables.current.shares import Merged, Places, Share, digits, latest_of, number_of, torn
from pipeline.tables.delta import Conflict, widen_table
from pipeline.tables.parts import PartWriter
from pipeline.tables.thinning import UnfitForThinning

Row = dict[str, Any]
Origin = tuple[str, str, int]
"""Export, source file and line."""

N1, N2, N3, N4 = (f"2026010{day}T020000Z" for day in range(1, 5))
EARLY, MIDDLE, LATE, LAST = INSTANTS


@dataclass(frozen=True)
class Tables:
    """What the two tables of a type hold."""

    alive: dict[str, Origin]
    gone: dict[str, tuple[Any, ...]]


class Site:
    """A lake on a disk with the parts of some exports."""

    def __init__(self, folder: Path, resource_type: str = "Basic") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lake = open_lake(str(folder), folder)
        self.resource_type = resource_type
        self.schema = schemas.floor_schema(resource_type)
        self.rows: dict[Origin, Row] = {}
        """The rows of all parts, as they were written."""

    # --- exports ---

    def share(self, export: Export, number: int = 1) -> Share:
        """Writes the export's parts."""
        parts = [
            path
            for lines in oracle.parts_of(export)
            for path in self.parts(
                export.id, [(oracle.ndjson(line), line.file, line.number) for line in lines]
            )
        ]
        return Share(
            export.id,
            number,
            export.moment,
            parts=tuple(parts),
            deletions=export.deletions,
            replaces_all=export.replaces_all,
        )

    def parts(self, export_id: str, lines: Sequence[tuple[bytes, str, int]], **limits: Any) -> list[str]:
        """Parts of their own, with the columns that these lines need."""
        folder = self.folder / "parts" / str(len(list(self.folder.glob("parts/*"))))
        folder.mkdir(parents=True)
        with Converter(self.resource_type, None, export_id, folder, **limits) as converter:
            for line, file, number in lines:
                converter.add_line(line, file, number)
            parts = converter.finish()
        self.schema = schemas.union(self.schema, converter.schema, self.resource_type)
        for part in parts:
            for row in pq.read_table(part.path).to_pylist():
                self.rows[export_id, row["_source_file"], row["_source_line"]] = row
        return [str(part.path.relative_to(self.folder)) for part in parts]

    # --- tables ---

    def merge(self, shares: Sequence[Share], name: str = "places", **options: Any) -> Merged:
        return merge(self.lake, self.places(name), self.schema, shares, **options)

    def finish(self, shares: Sequence[Share], pending: int = 1) -> bool:
        """As `update_current` does it: the last ones are merged, or all anew where the tables are torn."""
        current, deleted = (ChunkTable.at(self.lake.table_uri(each)) for each in self.roots())
        tears = torn(current, deleted)
        if tears:
            with pytest.raises(Conflict):
                self.merge(shares[-pending:])
        self.merge(shares if tears else shares[-pending:], anew=tears)
        return tears

    def roots(self) -> tuple[str, str]:
        return self.places().current, self.places().deleted

    def places(self, name: str = "places") -> Places:
        return Places(f"current/{name}.current", f"current/{name}.deleted")

    def current(self, name: str = "places") -> DeltaTable:
        return DeltaTable(self.lake.table_uri(self.places(name).current))

    def deleted(self, name: str = "places") -> DeltaTable:
        return DeltaTable(self.lake.table_uri(self.places(name).deleted))

    def chunks(self, name: str = "places") -> dict[str, list[str]]:
        """Of each chunk of the current table the ids in it."""
        found: dict[str, list[str]] = {}
        for row in self.current(name).to_pyarrow_table(columns=["_chunk", "id"]).to_pylist():
            found.setdefault(row["_chunk"], []).append(row["id"])
        return found

    def tables(self, name: str = "places") -> Tables:
        """No id twice, no id in both, each row in all its columns that of the part that it came from."""
        alive: dict[str, Origin] = {}
        table = self.current(name).to_pyarrow_table()
        for row in table.to_pylist():
            origin = (row["_export_id"], row["_source_file"], row["_source_line"])
            del row["_chunk"]
            assert row["id"] is not None
            assert row["id"] not in alive
            alive[row["id"]] = origin
            assert row == {
                field.name: filled(self.rows[origin].get(field.name), field.type)
                for field in table.schema
                if field.name != "_chunk"
            }
        gone = {}
        for row in self.deleted(name).to_pyarrow_table().to_pylist():
            assert row["_deleted"] is True
            assert row["id"] not in gone
            gone[row["id"]] = (row["_deleted_at"], row["_deleted_how"], row["_deleted_by"])
        assert not set(alive) & set(gone)
        return Tables(alive, gone)


def filled(value: Any, kind: pa.DataType) -> Any:
    """The value as a wider type has it: a structure has every member, absent ones null."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: filled(value.get(field.name), field.type) for field in kind.fields}
    if pa.types.is_list(kind):
        return [filled(each, kind.value_type) for each in value]
    return value


def expected(history: Sequence[Export]) -> Tables:
    state = oracle.folded(history)
    return Tables(oracle.alive(state), oracle.gone(state))


def line(identifier: str, instant: int | None = None, **others: Any) -> Line:
    """A line of its own: number and file may be given, and what a `Version` has."""
    place = {name: others.pop(name) for name in ("file", "number", "part") if name in others}
    return Line(identifier, Version(instant=instant, **others), **place)


def export(export_id: str, *lines: Line, **others: Any) -> Export:
    """Exports count in the order of their ids here."""
    return Export(export_id, digits(export_id), tuple(lines), **others)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "lake")


# --- the same, however it is merged ------------------------------------------------------------------


@given(
    oracle.histories(most=4),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4, 1000]),
    st.sampled_from([1, 2, 1000]),
)
@settings(max_examples=10)
def test_night_by_night_together_and_anew_give_the_tables_that_the_oracle_says(
    history: list[Export], cut: int, chunk_rows: int, pass_ids: int
) -> None:
    """Protocol facts 16, 26, 31, 32: in chunks of any size, decided in any number of passes."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(deciding, "PASS_IDS", pass_ids)
        site = Site(Path(folder))
        shares = {each.id: site.share(each) for each in history}
        nights = oracle.ordered(history)
        for night in range(len(nights)):
            merged = site.merge([shares[nights[night].id]], "nightly", chunk_rows=chunk_rows)
            found = site.tables("nightly")
            assert found == expected(nights[: night + 1])
            assert (merged.rows, merged.deleted) == (len(found.alive), len(found.gone))
            assert merged.version == site.current("nightly").version()
        whole = expected(history)
        for some in (nights[:cut], nights[cut:]):
            if some:
                # Whatever their order: `merge` sorts them.
                site.merge([shares[each.id] for each in reversed(some)], "several", chunk_rows=chunk_rows)
        assert site.tables("several") == whole
        site.merge(list(shares.values()), "nightly", anew=True, chunk_rows=chunk_rows)
        assert site.tables("nightly") == whole
        out = Path(folder, "out")
        out.mkdir()
        assert choose(site.lake, list(shares.values()), site.schema, out) == len(whole.alive)
        chosen = [row for path in out.iterdir() for row in pq.read_table(path).to_pylist()]
        assert {
            row["id"]: (row["_export_id"], row["_source_file"], row["_source_line"]) for row in chosen
        } == whole.alive


@given(oracle.orderly_histories(most=3))
@settings(max_examples=4)
def test_the_same_export_again_changes_no_rows(history: list[Export]) -> None:
    """Of a server that does not contradict itself."""
    with TemporaryDirectory() as folder:
        site = Site(Path(folder))
        shares = [site.share(each) for each in oracle.ordered(history)]
        site.merge(shares)
        before = site.tables()
        for _ in range(2):
            merged = site.merge(shares[-1:])
            assert site.tables() == before
        assert merged.added == merged.removed


def test_a_merge_without_anything_new_keeps_every_chunk(site: Site) -> None:
    """An export that brought nothing of this type is written down, and no row is touched."""
    site.merge([site.share(export(N1, line("a", EARLY), deletions=(("b", None),)))])
    before, files = site.tables(), (site.current().file_uris(), site.deleted().file_uris())
    merged = site.merge([site.share(export(N2))])
    assert (site.current().file_uris(), site.deleted().file_uris()) == files
    assert site.tables() == before
    assert (merged.added, merged.removed, merged.chunks_in, merged.chunks_out) == (0, 0, 0, 0)
    assert number_of(ChunkTable.at(site.lake.table_uri(site.places().current)), N2) == 1


def test_an_export_made_anew_without_another_forgets_it(site: Site) -> None:
    """An export that was withdrawn, of which rows and deletions had counted."""
    first = export(N1, line("a", EARLY), line("b", EARLY, number=2))
    second = export(N2, line("a", LATE), line("c", LATE, number=2), deletions=(("b", None),))
    shares = [site.share(first), site.share(second)]
    site.merge(shares)
    assert site.tables() == expected([first, second])
    merged = site.merge(shares[:1], anew=True, without=[N2])
    assert site.tables() == expected([first])
    assert (merged.added, merged.removed, merged.rows, merged.deleted) == (2, 2, 2, 0)


def test_what_was_merged_is_counted(site: Site) -> None:
    """Rows that were replaced, are new, or are gone."""
    site.merge([site.share(export(N1, *(line(each, EARLY, number=n) for n, each in enumerate("abcd"))))])
    share = site.share(export(N2, line("a", LATE), line("e", LATE, number=2), deletions=(("b", LATE),)))
    merged = site.merge([share], chunk_rows=1000)
    assert (merged.added, merged.removed, merged.rows, merged.deleted) == (2, 2, 4, 1)
    assert (merged.chunks_in, merged.chunks_out) == (1, 1)


def test_ids_that_are_null_are_ignored_and_a_full_export_may_have_nothing(site: Site) -> None:
    """Protocol fact 15 names why only a full export may say that something is gone."""
    nameless = [Line(None, Version(instant=LATE), number=n) for n in (2, 3)]
    first = export(N1, line("a", EARLY), *nameless)
    second = export(N2, *nameless, replaces_all=True)
    third = export(N3, line("a", EARLY))
    for count, each in enumerate([first, second, third], start=1):
        site.merge([site.share(each)])
        assert site.tables() == expected([first, second, third][:count])
    assert site.tables() == Tables({"a": (N3, "0001.ndjson", 1)}, {})


def test_what_a_full_export_marks_as_soft_deleted_is_not_absent(site: Site) -> None:
    """It has a row of it, which says when."""
    history = [
        export(N1, line("a", EARLY), line("b", EARLY, number=2)),
        export(N2, line("a", LATE, gone="soft-deleted"), replaces_all=True),
    ]
    site.merge([site.share(each) for each in history])
    assert site.tables() == expected(history)
    assert site.tables().gone == {
        "a": (oracle.moment(LATE), "soft-deleted", N2),
        "b": (None, "absent", N2),
    }


def test_a_deletion_before_some_moment_yields_to_what_the_export_lists(site: Site) -> None:
    """`deletions_until`: deleted then or before, so that a row of the same export is there again."""
    site.merge([site.share(export(N1, *(line(each, EARLY, number=n) for n, each in enumerate("abc"))))])
    second = site.share(export(N2, line("a", MIDDLE)))
    until = (("a", LATE), ("b", LATE), ("c", EARLY - 1))
    site.merge([Share(N2, 1, second.moment, second.parts, deletions_until=until)])
    found = site.tables()
    assert found.gone == {"b": (oracle.moment(LATE), "deleted", N2)}
    assert found.alive == {"a": (N2, "0001.ndjson", 1), "c": (N1, "0001.ndjson", 2)}


def test_one_id_in_several_files_and_parts_of_an_export_is_taken_in_line_order(site: Site) -> None:
    """Protocol fact 32: the same resource may come more than once. Lines count as numbers, and whichever
    part is read first."""
    places = [("0002.ndjson", 9, 0), ("0002.ndjson", 10, 2), ("0001.ndjson", 500, 1), ("0002.ndjson", 2, 1)]
    lines = [line("a", EARLY, file=file, number=number, part=part) for file, number, part in places]
    share = site.share(export(N1, *lines))
    for name, parts in (("forth", share.parts), ("back", share.parts[::-1])):
        site.merge([Share(N1, 1, 5, parts)], name)
        assert site.tables(name).alive == {"a": (N1, "0002.ndjson", 10)}


@pytest.mark.parametrize("pass_ids", [5, 17])
def test_many_ids_in_several_passes_are_as_in_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, pass_ids: int
) -> None:
    """Each id is decided in one of them, and no row is written twice."""
    chance = random.Random(pass_ids)
    history = [
        export(
            night,
            *(
                line(f"p{chance.randrange(40)}", chance.choice(INSTANTS), number=n, part=n % 2)
                for n in range(30)
            ),
            deletions=tuple((f"p{chance.randrange(50)}", chance.choice([None, LATE])) for _ in range(8)),
            replaces_all=night == N3,
        )
        for night in (N1, N2, N3)
    ]
    shares = [site.share(each) for each in history]
    site.merge(shares, "one")
    monkeypatch.setattr(deciding, "PASS_IDS", pass_ids)
    site.merge(shares, "together", chunk_rows=4)
    for share in shares:
        site.merge([share], "nightly", chunk_rows=4)
    assert site.tables("one") == site.tables("together") == site.tables("nightly") == expected(history)


# --- chunks ------------------------------------------------------------------------------------------


def spread(names: Sequence[str], instant: int = EARLY) -> list[Line]:
    return [line(name, instant, number=number) for number, name in enumerate(names, start=1)]


def test_only_chunks_that_lose_rows_are_replaced(site: Site) -> None:
    names = [f"p{number:02d}" for number in range(20)]
    site.merge([site.share(export(N1, *spread(names)))], chunk_rows=4)
    before = site.chunks()
    assert sorted(len(ids) for ids in before.values()) == [4] * 5
    history = [
        export(N1, *spread(names)),
        export(N2, *spread(["p05", "new"], LATE), deletions=(("p06", None), ("unheard", None))),
    ]
    merged = site.merge([site.share(history[1])], chunk_rows=4)
    after = site.chunks()
    touched = {name for name, ids in before.items() if {"p05", "p06"} & set(ids)}
    assert {name: after.get(name) for name in before} == {
        name: None if name in touched else ids for name, ids in before.items()
    }
    assert merged.chunks_out == len(touched) == 1
    fresh = [ids for name, ids in after.items() if name not in before]
    assert sorted(each for ids in fresh for each in ids) == ["new", "p04", "p05", "p07"]
    assert site.tables() == expected(history)


def test_a_chunk_that_loses_few_rows_stays_one_and_one_that_loses_many_is_joined(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first by taking its rows out (`thinning`), the rest with what is new. By reading and writing it
    comes to the same rows."""
    history = [
        export(N1, *spread([f"p{number}" for number in range(8)])),
        export(N2, *spread(["p0", "p4", "p5", "p6"], LATE), deletions=(("p2", None),)),
    ]
    shares = [site.share(each) for each in history]
    for name in ("places", "read"):
        if name == "read":
            monkeypatch.setattr(merging, "thin", never)
        for share in shares:
            site.merge([share], name, chunk_rows=4)
        assert site.tables(name) == expected(history)
    assert sorted(sorted(ids) for ids in site.chunks().values()) == [
        ["p0", "p4", "p5", "p7"],
        ["p1", "p3"],
        ["p6"],
    ]
    assert sorted(len(ids) for ids in site.chunks("read").values()) == [3, 4]


def never(*_: Any) -> int:
    raise UnfitForThinning


def test_files_of_chunks_that_were_kept_are_the_same_bytes(site: Site) -> None:
    """And those that were replaced stay for readers of the version before."""
    site.merge([site.share(export(N1, *spread([f"p{number}" for number in range(12)])))], chunk_rows=4)
    version, table = site.current().version(), site.current().to_pyarrow_table().to_pylist()
    files = {uri: Path(uri).read_bytes() for uri in site.current().file_uris()}
    site.merge([site.share(export(N2, *spread(["p1"], LATE)))], chunk_rows=4)
    kept = set(files) & set(site.current().file_uris())
    assert len(kept) == 2
    assert all(Path(uri).read_bytes() == files[uri] for uri in files)
    reader = DeltaTable(site.lake.table_uri(site.places().current), version=version)
    assert reader.to_pyarrow_table().to_pylist() == table


def test_small_chunks_are_let_be_until_there_are_many(site: Site) -> None:
    """One row a night; `SMALL_CHUNKS` of them are joined with what comes next."""
    nights = [f"202601{day:02d}T020000Z" for day in range(1, 11)]
    history = [export(night, line(f"p{number}", EARLY)) for number, night in enumerate(nights)]
    sizes = []
    for night, each in enumerate(history, start=1):
        site.merge([site.share(each)], chunk_rows=4)
        sizes.append(sorted((len(ids) for ids in site.chunks().values()), reverse=True))
        assert site.tables() == expected(history[:night])
    assert merging.SMALL_CHUNKS == 8
    assert sizes == [*([1] * night for night in range(1, 9)), [4, 4, 1], [4, 4, 1, 1]]


def test_small_chunks_that_lose_rows_do_not_count_as_small(site: Site) -> None:
    """They are rewritten anyway; the other seven stay."""
    nights = [f"202601{day:02d}T020000Z" for day in range(1, 10)]
    for number, night in enumerate(nights[:8]):
        site.merge([site.share(export(night, line(f"p{number}", EARLY)))], chunk_rows=4)
    before = site.chunks()
    site.merge([site.share(export(nights[8], line("p3", LATE)))], chunk_rows=4)
    after = site.chunks()
    assert {name for name in before if name not in after} == {n for n, ids in before.items() if ids == ["p3"]}
    assert len(after) == 8


def test_a_large_part_becomes_chunks_of_one_size(site: Site) -> None:
    """Rows of one part, and in the end whatever is left."""
    site.merge([site.share(export(N1, *spread([f"p{number:02d}" for number in range(11)])))], chunk_rows=4)
    assert [ids for _, ids in sorted(site.chunks().items(), key=lambda chunk: chunk[1])] == [
        [f"p{number:02d}" for number in some] for some in (range(4), range(4, 8), range(8, 11))
    ]


def test_no_file_is_left_in_the_spool(site: Site) -> None:
    site.merge([site.share(export(N1, *spread([f"p{number}" for number in range(9)])))], chunk_rows=4)
    assert [path for path in (site.folder / ".spool").rglob("*") if path.is_file()] == []


def test_a_table_that_was_compacted_by_somebody_else_is_merged_on(site: Site) -> None:
    """delta-rs has written its files then, by another Parquet library."""
    history = [
        export(N1, *spread([f"p{number}" for number in range(9)])),
        export(N2, *spread(["p1", "new"], LATE), deletions=(("p7", None),)),
    ]
    site.merge([site.share(history[0])], chunk_rows=4)
    files = set(site.current().file_uris())
    site.current().optimize.z_order(["id"])
    assert not files & set(site.current().file_uris())
    site.merge([site.share(history[1])], chunk_rows=4)
    assert site.tables() == expected(history)


# --- torn and overtaken merges -----------------------------------------------------------------------


class Killed(Exception):
    """In place of a process that ends."""


@contextmanager
def killed_between_the_commits() -> Iterator[None]:
    """The tombstones are committed, the current table is not."""
    with pytest.MonkeyPatch.context() as patch:
        replace, calls = ChunkTable.replace, []

        def second_never(self: ChunkTable, *arguments: Any) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise Killed
            replace(self, *arguments)

        patch.setattr(ChunkTable, "replace", second_never)
        with pytest.raises(Killed):
            yield


TORN: dict[str, list[Export]] = {
    "deleted": [
        export(N1, line("a", EARLY), line("b", EARLY, number=2)),
        export(N2, deletions=(("a", None), ("b", LATE))),
    ],
    "absent": [
        export(N1, line("a", EARLY), line("b", EARLY, number=2)),
        export(N2, line("b", EARLY), replaces_all=True),
    ],
    "soft-deleted": [export(N1, line("a", EARLY)), export(N2, line("a", LATE, gone="soft-deleted"))],
    "there again": [
        export(N1, line("a", EARLY), deletions=(("a", MIDDLE), ("b", None))),
        export(N2, line("a", LATE), line("b", number=2)),
    ],
    "one goes, one comes": [
        export(N1, line("a", EARLY), deletions=(("b", MIDDLE),)),
        export(N2, line("b", LATE), deletions=(("a", LATE),)),
    ],
    "the first of all": [export(N1, line("a", EARLY), deletions=(("a", LATE), ("b", None)))],
    "listed and named": [
        export(N1, line("a", LATE)),
        export(N2, line("a", EARLY), deletions=(("a", None), ("c", None))),
    ],
    "whole and SUBSETTED": [
        export(
            N1,
            line("a", EARLY),
            line("a", LATE, whole=False, number=2),
            deletions=(("a", MIDDLE),),
        ),
    ],
}


@pytest.mark.parametrize("history", TORN.values(), ids=TORN.keys())
def test_a_merge_that_was_killed_between_its_commits_is_finished_by_the_next(
    site: Site, history: list[Export]
) -> None:
    shares = [site.share(each) for each in history]
    for share in shares[:-1]:
        site.merge([share])
    with killed_between_the_commits():
        site.merge(shares[-1:])
    # Whoever asks what is to be merged is told that this export is not.
    uri = site.lake.table_uri(site.places().current)
    assert number_of(ChunkTable.at(uri), shares[-1].export_id) == NEVER
    assert site.finish(shares)
    assert site.tables() == expected(history)
    assert not torn(*(ChunkTable.at(site.lake.table_uri(each)) for each in site.roots()))


@given(oracle.histories(most=3), st.integers(1, 2), st.booleans())
@settings(max_examples=12)
def test_any_merge_that_was_killed_between_its_commits_is_finished_by_the_next(
    history: list[Export], pending: int, withdrawn: bool
) -> None:
    """However many are pending, and whatever the server says. Where the last one is withdrawn before anybody
    looks again, nothing is left of it."""
    with TemporaryDirectory() as folder:
        site = Site(Path(folder))
        nights = oracle.ordered(history)
        shares = [site.share(each) for each in nights]
        pending = min(pending, len(shares))
        if shares[:-pending]:
            site.merge(shares[:-pending])
        with pytest.MonkeyPatch.context() as patch:
            replace = ChunkTable.replace

            def only_tombstones(table: ChunkTable, *arguments: Any) -> None:
                if "_deleted_how" not in (table.schema or pa.schema([])).names:
                    raise Killed
                replace(table, *arguments)

            patch.setattr(ChunkTable, "replace", only_tombstones)
            with pytest.raises(Killed):
                site.merge(shares[-pending:])
        if withdrawn:
            site.merge(shares[:-1], anew=True, without=[nights[-1].id])
            assert site.tables() == expected(nights[:-1])
            site.merge(shares[-1:])
        else:
            site.finish(shares, pending)
        assert site.tables() == expected(history)
        assert not torn(*(ChunkTable.at(site.lake.table_uri(each)) for each in site.roots()))


def test_tombstones_that_did_not_change_are_torn_from_nothing(site: Site) -> None:
    """Numbers that the tombstones had of an earlier ingest are not left behind when they are not written."""
    shares = [site.share(export(N1, line("a", EARLY), deletions=(("b", None),)))]
    site.merge(shares)
    again = [site.share(export(N1, line("a", EARLY)), number=2)]
    for number, ones in ((2, again), (3, [Share(N1, 3, 5, again[0].parts)])):
        site.merge(ones, anew=True)
        current, deleted = (ChunkTable.at(site.lake.table_uri(each)) for each in site.roots())
        assert (number_of(current, N1), torn(current, deleted)) == (number, False)
    assert site.tables() == expected([export(N1, line("a", EARLY))])


def test_two_writers_of_one_version_are_one_writer_and_a_conflict(site: Site) -> None:
    """Although they take out different chunks: the second has decided by what is no longer so."""
    site.merge([site.share(export(N1, *spread(["a", "b", "c"])))], chunk_rows=1)
    uri = site.lake.table_uri(site.places().current)
    first, second = ChunkTable.at(uri), ChunkTable.at(uri)
    first.replace(first.chunks[:1], [], {"x": 1}, "first")
    before = site.chunks()
    with pytest.raises(Conflict):
        second.replace(second.chunks[1:2], [], {"x": 2}, "second")
    assert site.chunks() == before
    assert ChunkTable.at(uri).number("x") == 1
    with pytest.raises(Conflict):
        first.replace(first.chunks[2:], [], {}, "once more")
    assert site.chunks() == before


@contextmanager
def overtaken_by(site: Site, other: Callable[[], Any]) -> Iterator[None]:
    """`other` happens when the merge inside has decided and has not written."""
    with pytest.MonkeyPatch.context() as patch:
        spool = type(site.lake).spool

        def late(lake: Any) -> Any:
            patch.undo()
            other()
            return spool(lake)

        patch.setattr(type(site.lake), "spool", late)
        yield


OVERTAKEN: dict[str, tuple[Export, Export]] = {
    "rows and rows": (export(N2, line("a", LATE)), export(N3, line("b", LATE))),
    "both delete": (
        export(N2, deletions=(("a", LATE),)),
        export(N3, deletions=(("b", LATE),)),
    ),
    "the first deletes": (export(N2, deletions=(("a", LATE),)), export(N3, line("b", LATE))),
    "the second deletes": (export(N2, line("a", LATE)), export(N3, deletions=(("b", LATE),))),
}


@pytest.mark.parametrize(("first", "second"), OVERTAKEN.values(), ids=OVERTAKEN.keys())
def test_a_merge_that_was_overtaken_changes_nothing_and_is_right_when_it_is_tried_again(
    site: Site, first: Export, second: Export
) -> None:
    base = export(N1, *spread(["a", "b", "c"]))
    begun = site.share(base)
    site.merge([begun])
    shares = site.share(first), site.share(second)
    with overtaken_by(site, lambda: site.merge([shares[0]])), pytest.raises(Conflict):
        site.merge([shares[1]])
    assert {row["id"] for row in site.current().to_pyarrow_table().to_pylist()} == set(
        expected([base, first]).alive
    )
    # Its tombstones may be there already: then its rows are known to lack.
    alone = bool(second.deletions and not first.deletions)
    assert site.finish([begun, *shares]) is alone
    assert site.tables() == expected([base, first, second])


def test_tombstones_of_a_merge_that_died_while_another_one_left_them_alone_are_noticed(site: Site) -> None:
    """Both have seen the same tables, and the second brings back what the first one buried: nothing tells the
    second that the tombstones are others now, as it does not write them."""
    history = [export(N1, *spread(["a", "b"])), export(N2, deletions=(("a", None),)), export(N3, line("a"))]
    shares = [site.share(each) for each in history]
    site.merge(shares[:1])

    def killed() -> None:
        with killed_between_the_commits():
            site.merge(shares[1:2])

    with overtaken_by(site, killed):
        site.merge(shares[1:])
    assert site.deleted().to_pyarrow_table().num_rows == 1
    assert site.finish(shares, pending=2)
    assert site.tables() == expected(history)


def test_what_has_changed_since_it_was_looked_at_is_not_merged(site: Site) -> None:
    """Also where columns are added to it at that very moment."""
    shares = [site.share(export(N1, line("a"))), site.share(export(N2, line("b")))]
    with pytest.raises(Conflict):
        site.merge(shares[:1], seen=(0, None))
    site.merge(shares[:1], seen=(None, None))
    for seen in ((None, None), (0, 0), (1, 1), (1, None)):
        with pytest.raises(Conflict):
            site.merge(shares[1:], seen=seen)
    site.merge(shares[1:], seen=(1, 0))
    uri, wider = (
        site.lake.table_uri(site.places().current),
        site.schema.append(pa.field("_more", pa.string())),
    )

    def and_somebody_else(*arguments: Any) -> None:
        widen_table(*arguments)
        here = ChunkTable.at(uri)
        here.replace([], [], {"x": 1}, "meanwhile")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "widen_table", and_somebody_else)
        with pytest.raises(Conflict):
            ChunkTable.covering(uri, wider, seen=ChunkTable.at(uri).version)
    assert ChunkTable.covering(uri, wider, seen=ChunkTable.at(uri).version).rows == 2


def test_an_export_that_is_overtaken_by_its_own_merge_counts_once(site: Site) -> None:
    """Two processes do the same: `_chunk` names are new ones each time, so rows could double."""
    share = site.share(export(N1, *spread(["a", "b", "c"])))
    with overtaken_by(site, lambda: site.merge([share])), pytest.raises(Conflict):
        site.merge([share])
    assert site.tables() == expected([export(N1, *spread(["a", "b", "c"]))])


def test_readers_see_the_old_tables_until_new_ones_are_made(site: Site) -> None:
    history = [export(N1, line("a", EARLY), deletions=(("b", None),)), export(N2, line("b", LATE))]
    shares = [site.share(each) for each in history]
    site.merge(shares[:1])
    seen: list[Tables] = []
    with overtaken_by(site, lambda: seen.append(site.tables())):
        site.merge(shares, anew=True)
    assert seen == [expected(history[:1])]
    assert site.tables() == expected(history)


# --- numbers -----------------------------------------------------------------------------------------


def test_a_table_says_which_commit_of_which_export_it_holds(site: Site) -> None:
    uri = site.lake.table_uri(site.places().current)
    shares = [Share(N1, 3, 50), Share(N2, 1, 40), Share(N3, 2, 60)]

    def numbers() -> list[int]:
        return [number_of(ChunkTable.at(uri), each) for each in (N1, N2, N3, N4)]

    assert number_of(ChunkTable.at(uri), N1) == NEVER
    assert latest_of(ChunkTable.at(uri)) == (NEVER, NEVER)
    site.merge(shares[:2])
    assert numbers() == [3, 1, NEVER, NEVER]
    # By transactionTime, and not by id.
    assert latest_of(ChunkTable.at(uri)) == (50, digits(N1)) == shares[0].order
    site.merge(shares[2:])
    assert numbers() == [3, 1, 2, NEVER]
    assert latest_of(ChunkTable.at(uri)) == (60, digits(N3))
    # One was ingested again, one withdrawn.
    site.merge([Share(N1, 4, 50), shares[1]], anew=True, without=[N3])
    assert numbers() == [4, 1, NEVER, NEVER]
    assert latest_of(ChunkTable.at(uri)) == (50, digits(N1))
    site.merge([], anew=True, without=[N1, N2])
    assert numbers() == [NEVER] * 4
    assert latest_of(ChunkTable.at(uri)) == (NEVER, NEVER)


def test_numbers_outlive_checkpoints(site: Site) -> None:
    uri = site.lake.table_uri(site.places().current)
    site.merge([Share(N1, 3, 50)])
    site.current().create_checkpoint()
    site.merge([Share(N2, 1, 60)])
    assert [number_of(ChunkTable.at(uri), each) for each in (N1, N2)] == [3, 1]


def test_each_chunk_has_a_name_of_its_own_that_tells_the_newest_export() -> None:
    names = [new_chunk(N1) for _ in range(50)]
    assert len({name for name, _ in names}) == len({path for _, path in names}) == 50
    for name, path in names:
        assert name.startswith(f"{N1}-")
        assert path.startswith(f"_chunk={name}/")


def test_a_table_that_is_none_yet_is_empty_and_cannot_be_changed(tmp_path: Path) -> None:
    table = ChunkTable.at(str(tmp_path / "none"))
    assert (table.chunks, table.rows, table.version, table.schema) == ([], 0, None, None)
    with pytest.raises(ValueError, match="covering"):
        table.replace([], [Chunk("x", "_chunk=x/p", 1, 1)], {}, "")
    assert not (tmp_path / "none").exists()


# --- rows of every kind ------------------------------------------------------------------------------

PATIENTS: dict[str, list[dict[str, Any]]] = {
    N1: [
        {
            "id": "a",
            "meta": {"lastUpdated": "2026-01-01T00:00:00.123Z", "versionId": "1"},
            "name": [{"family": "Zo\u00eb", "given": ["A", "B"]}, {"use": "old", "given": []}],
            "birthDate": "2020-02",
            "active": False,
        },
        {
            "id": "b",
            "meta": {"lastUpdated": "2026-01-01T00:00:00Z"},
            "contact": [{"name": {"family": "c"}, "telecom": [{"rank": 1}, {"rank": 2}]}],
            "deceasedBoolean": True,
        },
        {"id": "c", "meta": {"lastUpdated": "2026-01-01T00:00:00Z"}, "multipleBirthInteger": 2},
    ],
    N2: [
        {
            "id": "a",
            "meta": {"lastUpdated": "2026-01-02T00:00:00Z", "versionId": "2", "tag": [{"code": "x"}]},
            "extension": [
                {
                    "url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race",
                    "extension": [{"url": "text", "valueString": "unknown"}],
                }
            ],
            "_birthDate": {"extension": [{"url": "u", "valueDateTime": "2020-02-03T04:05:06Z"}]},
            "contained": [{"resourceType": "Organization", "id": "o"}],
            "name": [{"_given": [None, {"extension": [{"url": "u", "valueDecimal": 1.50}]}]}],
            "unheard": {"x": [1, None]},
        },
        {
            "id": "d",
            "meta": {
                "lastUpdated": "2026-01-02T00:00:00Z",
                "extension": [{"url": EXTENSION, "valueString": "active"}],
            },
            "communication": [{"language": {"coding": [{"code": "de"}]}, "preferred": True}],
        },
    ],
}


def numbered(found: Sequence[dict[str, Any]], resource_type: str) -> list[tuple[bytes, str, int]]:
    return [
        (json.dumps({"resourceType": resource_type} | each).encode(), "0001.ndjson", number)
        for number, each in enumerate(found, start=1)
    ]


def test_wide_nested_rows_are_untouched_when_the_next_export_has_other_columns(tmp_path: Path) -> None:
    """tables.md rules 3 and 7: members that come later are null in older rows, at every depth."""
    site = Site(tmp_path / "lake", "Patient")
    first, second = (site.parts(night, numbered(PATIENTS[night], "Patient")) for night in (N1, N2))
    narrow, wide = (pq.read_schema(site.folder / parts[0]) for parts in (first, second))
    assert narrow.get_field_index("extension") < 0 <= wide.get_field_index("extension")
    assert wide.field("meta").type != narrow.field("meta").type
    site.merge([Share(N1, 1, 1, tuple(first))])
    site.merge([Share(N2, 1, 2, tuple(second))])
    assert site.tables().alive == {
        "a": (N2, "0001.ndjson", 1),
        "b": (N1, "0001.ndjson", 2),
        "c": (N1, "0001.ndjson", 3),
        "d": (N2, "0001.ndjson", 2),
    }
    found = {row["id"]: row for row in site.current().to_pyarrow_table().to_pylist()}
    assert found["a"]["extension"][0]["extension"][0]["valueString"] == "unknown"
    assert found["a"]["_unmapped"] is not None
    assert found["b"]["extension"] is None
    assert found["b"]["contact"][0]["telecom"][1]["rank"] == 2
    assert found["b"]["meta"]["extension"] is None
    schema = pa.schema(site.current().schema().to_arrow())
    assert set(schema.names) == {*site.schema.names, "_chunk"}
    # A chunk holds all columns that were known when it was written.
    for uri in site.current().file_uris():
        assert schemas.plain(pq.read_schema(uri)) == schemas.plain(site.schema)


@pytest.mark.parametrize("resource_type", ["Patient", "Questionnaire"])
def test_rows_of_any_form_survive_being_merged_and_merged_again(tmp_path: Path, resource_type: str) -> None:
    """Resources made from the definitions, in parts and chunks of a few rows."""
    site = Site(tmp_path / "lake", resource_type)
    chance = random.Random(resource_type)
    nights: dict[str, list[str]] = {}
    for count, night in enumerate((N1, N2, N3)):
        lines = []
        for number, each in enumerate(lines_of(chance.randbytes(9000), resource_type, 24)):
            resource = json.loads(each)
            # Each night brings eight new ones and sixteen again.
            resource |= {"id": f"r{number + 8 * count:02d}", "meta": {"versionId": str(count)}}
            lines.append((json.dumps(resource).encode(), "0001.ndjson", number + 1))
        nights[night] = site.parts(night, lines, max_part_rows=16)
        assert len(nights[night]) > 1
    for order, (night, parts) in enumerate(nights.items()):
        site.merge([Share(night, 1, order, tuple(parts))], chunk_rows=16)
    found = site.tables().alive
    assert {identifier: origin[0] for identifier, origin in found.items()} == {
        f"r{number:02d}": N1 if number < 8 else N2 if number < 16 else N3 for number in range(40)
    }
    site.merge(
        [Share(night, 1, order, tuple(nights[night])) for order, night in enumerate(nights)], anew=True
    )
    assert site.tables().alive == found


def test_a_part_without_rows_and_one_of_several_row_groups(site: Site) -> None:
    """As a rewritten part may be; places in a part are counted over its row groups."""
    lines = [(oracle.ndjson(each), each.file, each.number) for each in spread(["a", "b", "c", "a"])]
    (path,) = site.parts(N1, lines)
    table = pq.read_table(site.folder / path)
    with PartWriter(site.folder / "grouped", table.schema) as writer:
        for row in range(4):
            writer.write(table.slice(row, 1))
        writer.close()
    with PartWriter(site.folder / "empty", table.schema) as writer:
        writer.close()
    assert pq.ParquetFile(site.folder / "grouped").metadata.num_row_groups == 4
    site.merge([Share(N1, 1, 1, ("empty", "grouped"))])
    assert site.tables().alive == {
        "a": (N1, "0001.ndjson", 4),
        "b": (N1, "0001.ndjson", 2),
        "c": (N1, "0001.ndjson", 3),
    }
