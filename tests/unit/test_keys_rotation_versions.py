"""Which version of a vault's key signs and which are published: the rules, over all histories."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.auth.vault_ring import SIGNS_FROM, published, signing, turns
from pipeline.azure.vault_keys import KeyVersion

WAIT = timedelta(minutes=15)
START = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def version(
    name: str,
    created: float,
    *,
    signs_from: str | float | None = None,
    enabled: bool = True,
    not_before: float | None = None,
    expires: float | None = None,
) -> KeyVersion:
    tag = at(signs_from).isoformat() if isinstance(signs_from, int | float) else signs_from
    return KeyVersion(
        version=name,
        enabled=enabled,
        created=at(created),
        not_before=None if not_before is None else at(not_before),
        expires=None if expires is None else at(expires),
        tags=() if tag is None else ((SIGNS_FROM, tag),),
    )


def signs(versions: list[KeyVersion], minutes: float) -> str | None:
    turn = signing(turns(tuple(versions), at(minutes), WAIT), at(minutes))
    return None if turn is None else turn.version.version


def shown(versions: list[KeyVersion], minutes: float) -> list[str]:
    available = turns(tuple(versions), at(minutes), WAIT)
    return [turn.version.version for turn in published(available, at(minutes), WAIT)]


FIRST = version("a", 0)
COURSES: dict[str, tuple[list[KeyVersion], list[tuple[float, str | None, list[str]]]]] = {
    "the only version signs at once": ([FIRST], [(0, "a", ["a"]), (1, "a", ["a"]), (99, "a", ["a"])]),
    "a rotation: published at once, signing by its tag, the former one published for a wait": (
        [version("b", 60, signs_from=75), FIRST],
        [(60, "a", ["a", "b"]), (74, "a", ["a", "b"]), (75, "b", ["b", "a"]), (90, "b", ["b"])],
    ),
    "a version of the vault's own rotation policy waits by its date of creation": (
        [FIRST, version("b", 60)],
        [(60, "a", ["a", "b"]), (74, "a", ["a", "b"]), (75, "b", ["b", "a"]), (90, "b", ["b"])],
    ),
    "a rotation soon after the first version does not let that one come back": (
        [FIRST, version("b", 5, signs_from=6)],
        [(5, "a", ["a", "b"]), (6, "b", ["b", "a"]), (15, "b", ["b", "a"]), (21, "b", ["b"])],
    ),
    "rotations within the vault's second are told apart by their tags": (
        [version("z", 0), version("y", 0, signs_from=1), version("x", 0, signs_from=2)],
        [(0, "z", ["z", "y", "x"]), (1, "y", ["y", "z", "x"]), (2, "x", ["x", "z", "y"]), (30, "x", ["x"])],
    ),
    "a disabled version neither signs nor is published: the coming one signs at once": (
        [version("a", 0, enabled=False), version("b", 60, signs_from=75)],
        [(61, "b", ["b"]), (80, "b", ["b"])],
    ),
    "a disabled next version leaves the one before alone": (
        [FIRST, version("b", 60, signs_from=75, enabled=False)],
        [(61, "a", ["a"]), (80, "a", ["a"])],
    ),
    "an expired version is like a disabled one": (
        [version("a", 0, expires=70), version("b", 60, signs_from=75)],
        [(69, "a", ["a", "b"]), (70, "b", ["b"])],
    ),
    "a not-before date is obeyed, since the vault refuses to sign before it": (
        [FIRST, version("b", 60, signs_from=75, not_before=80)],
        [(79, "a", ["a", "b"]), (80, "b", ["b", "a"]), (95, "b", ["b"])],
    ),
    "a tag that is no instant counts for nothing": (
        [FIRST, version("b", 60, signs_from="soon"), version("c", 60, signs_from="2026-01-31T03:00:00")],
        [(74, "a", ["a", "b", "c"]), (75, "c", ["c", "a", "b"])],
    ),
    "nothing is left": ([version("a", 0, enabled=False)], [(5, None, [])]),
}  # fmt: skip


@pytest.mark.parametrize("name", COURSES)
def test_the_course_of_a_history(name: str) -> None:
    versions, course = COURSES[name]
    for order in (versions, versions[::-1]):
        for minutes, signer, all_published in course:
            assert signs(order, minutes) == signer, minutes
            assert sorted(shown(order, minutes)) == sorted(all_published), minutes
            assert shown(order, minutes)[:1] == all_published[:1], "the signing one comes first"


histories = st.lists(
    st.tuples(st.integers(0, 200), st.none() | st.integers(15, 60)),
    min_size=1,
    max_size=6,
    unique_by=lambda made: made[0],
).map(
    lambda made: [
        version(f"v{place}", created, signs_from=None if delay is None else created + delay)
        for place, (created, delay) in enumerate(made)
    ]
)  # fmt: skip


@given(histories, st.integers(0, 300), st.integers(0, 15))
def test_who_signs_was_published_a_wait_before_and_stays_so_a_wait_after(
    versions: list[KeyVersion], minutes: int, apart: int
) -> None:
    """A server that caches our keys for less than the wait knows every key that it meets."""
    then = [each for each in versions if each.created <= at(minutes)]
    later = [each for each in versions if each.created <= at(minutes + apart)]
    if not then:
        return
    assert signs(later, minutes + apart) in shown(then, minutes)
    assert signs(then, minutes) in shown(later, minutes + apart)


def test_a_tag_that_was_copied_from_an_older_version_does_not_make_a_key_sign_unpublished() -> None:
    """A vault's own rotation policy may copy tags to the version that it makes."""
    copied = [version("v0", 0, signs_from=0), version("v1", 100, signs_from=0)]
    assert signs(copied, 101) == "v0"
    assert shown(copied, 101) == ["v0", "v1"]
    assert signs(copied, 116) == "v1"
