"""Files of a manifest are found again under new signatures, never silently swapped (design, Facts)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.manifest import ManifestFile
from pipeline.errors import VerificationFailed
from pipeline.exports.manifests import FileKey, match, without_query


def output(
    index: int, name: str, count: int | None = 1, type_: str = "Patient", query: str = ""
) -> ManifestFile:
    return ManifestFile(
        kind="output",
        index=index,
        type=type_,
        url=f"https://files.example/{name}{query and '?' + query}",
        count=count,
    )


def numbered(files: list[ManifestFile]) -> list[ManifestFile]:
    return [
        ManifestFile(kind=each.kind, index=index, type=each.type, url=each.url, count=each.count)
        for index, each in enumerate(files)
    ]


STORED = [output(0, "a"), output(1, "b", 2), output(2, "c", 3, "Observation")]


def urls(found: dict[FileKey, ManifestFile]) -> list[str]:
    return [found["output", index].url for index in range(len(found))]


def test_new_signatures_are_normal() -> None:
    live = [output(0, "a", query="sig=1"), output(1, "b", 2, query="sig=2"), output(2, "c", 3, "Observation")]
    assert urls(match(STORED, live)) == [each.url for each in live]


def test_another_order_is_normal() -> None:
    live = numbered([output(0, "c", 3, "Observation"), output(1, "a"), output(2, "b", 2)])
    found = match(STORED, live)
    assert [without_query(url) for url in urls(found)] == [each.url for each in STORED]
    assert {key: (file.kind, file.index) for key, file in found.items()} == {key: key for key in found}


def test_new_paths_in_the_same_order_are_matched_by_position() -> None:
    live = [output(0, "new-a"), output(1, "new-b", 2), output(2, "new-c", 3, "Observation")]
    assert urls(match(STORED, live)) == [each.url for each in live]


@pytest.mark.parametrize(
    "live",
    [
        STORED[:2],
        [],
        [*STORED, output(3, "d")],
        [STORED[0], STORED[1]._replace() if hasattr(STORED[1], "_replace") else output(1, "b", 9), STORED[2]],
        [output(0, "a", None), *STORED[1:]],
        [output(0, "a", type_="Observation"), *STORED[1:]],
        [output(0, "x", 7), *STORED[1:]],
    ],
    ids=["vanished", "all vanished", "appeared", "other count", "no count", "other type", "replaced"],
)
def test_a_manifest_that_changed_is_refused(live: list[ManifestFile]) -> None:
    with pytest.raises(VerificationFailed, match="changed") as refused:
        match(STORED, live)
    assert "?" not in str(refused.value)


def test_a_file_that_moved_to_another_list_is_refused() -> None:
    live = [*STORED[:2], ManifestFile(kind="error", index=0, type="Observation", url=STORED[2].url, count=3)]
    with pytest.raises(VerificationFailed):
        match(STORED, live)


def test_files_that_cannot_be_told_apart_are_each_used_once() -> None:
    twins = [output(0, "a"), output(1, "a")]
    live = [output(0, "a", query="sig=1"), output(1, "a", query="sig=2")]
    assert sorted(urls(match(twins, live))) == sorted(each.url for each in live)


FILES = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=2), st.none() | st.integers(0, 3), st.sampled_from("PO")),
    max_size=8,
)


@given(FILES, st.randoms(use_true_random=False))
def test_any_order_and_signature_gives_each_file_its_own_again(
    files: list[tuple[str, int | None, str]], chance: random.Random
) -> None:
    stored = [output(index, *each) for index, each in enumerate(files)]
    shuffled = [(index, *each) for index, each in enumerate(files)]
    chance.shuffle(shuffled)
    live = numbered([output(0, *each, query=f"sig={index}") for index, *each in shuffled])
    found = match(stored, live)
    assert set(found) == {(each.kind, each.index) for each in stored}
    assert len({each.url for each in found.values()}) == len(stored)
    for each in stored:
        other = found[each.kind, each.index]
        assert (without_query(other.url), other.type, other.count) == (each.url, each.type, each.count)
        assert other.index == each.index


@given(FILES, st.randoms(use_true_random=False), st.integers(0, 8))
def test_new_paths_are_matched_by_position_and_never_with_the_bytes_of_another_file(
    files: list[tuple[str, int | None, str]], chance: random.Random, moved: int
) -> None:
    """Reordered, signed anew, and some under new paths: right or refused, never swapped."""
    stored = numbered([output(0, f"{index}-{each[0]}", *each[1:]) for index, each in enumerate(files)])
    order = list(range(len(files)))
    for _ in range(moved):
        chance.shuffle(order)
    renamed = {index for index in order if chance.random() < 0.3}
    live = numbered(
        [
            output(
                0,
                f"new-{chance.random()}" if index in renamed else f"{index}-{files[index][0]}",
                *files[index][1:],
                query=f"sig={index}",
            )
            for index in order
        ]
    )
    try:
        found = match(stored, live)
    except VerificationFailed:
        assert any(order[place] != place for place in renamed), "in its place it is found again"
        return
    assert sorted(each.url for each in found.values()) == sorted(each.url for each in live), "each once"
    for index, each in enumerate(stored):
        other = found[each.kind, each.index]
        assert (other.kind, other.type, other.count) == (each.kind, each.type, each.count)
        if index not in renamed:
            assert without_query(other.url) == each.url
        else:
            assert other.index == index


def test_a_file_at_a_new_path_is_not_taken_for_one_that_moved() -> None:
    """`a` has landed already: matched by place alone, its bytes would come twice and those of `b` never."""
    stored = [output(0, "a"), output(1, "b")]
    live = [output(0, "b"), output(1, "new-a")]
    with pytest.raises(VerificationFailed, match="changed"):
        match(stored, live)


def test_the_same_file_listed_twice_stays_two_files() -> None:
    """Protocol 32: a server may list one URL twice."""
    stored = [output(0, "a"), output(1, "a"), output(2, "b", 2)]
    live = numbered([output(0, "b", 2, query="x"), output(1, "a", query="y"), output(2, "a", query="z")])
    found = match(stored, live)
    assert sorted(each.url for each in found.values()) == sorted(each.url for each in live)
    with pytest.raises(VerificationFailed):
        match(stored, [output(0, "a"), output(1, "b", 2), output(2, "b", 2)])
