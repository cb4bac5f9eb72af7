"""Updates of a current table beside others, and beside what is published meanwhile: at every step of the
slower one the others do all that they do. Then the table is as if they had come one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from published_by_hand import HandMade

from pipeline.exports.current import is_current, update_current
from pipeline.tables import delta
from pipeline.tables.current import chunks
from pipeline.tables.current.chunks import ChunkTable

N1, N2, N3 = (f"2026010{day}T020000Z" for day in range(1, 4))


def patient(identifier: str, version: int = 1) -> dict[str, Any]:
    meta = {"versionId": str(version), "lastUpdated": f"2026-01-0{version}T00:00:00Z"}
    return {"resourceType": "Patient", "id": identifier, "meta": meta}


def held(made: HandMade, table: str) -> dict[str, str]:
    """Id -> the export that it is from, or that buried it."""
    rows = DeltaTable(str(made.folder / "lake" / "hosp" / "current" / table)).to_pyarrow_table().to_pylist()
    found = {row["id"]: row.get("_export_id") or row["_deleted_by"] for row in rows}
    assert len(found) == len(rows)
    return found


class Killed(Exception):
    """In place of a process that ends."""


@contextmanager
def steps_of(before: Callable[[int], None]) -> Iterator[list[str]]:
    """`before` is called ahead of each opening and each commit of a current table, with its number."""
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real: dict[str, Any] = {"open": chunks.open_table, "commit": ChunkTable.replace}

        def step(name: str) -> Callable[..., Any]:
            def taking(*arguments: Any, **options: Any) -> Any:
                taken.append(name)
                before(len(taken))
                return real[name](*arguments, **options)

            return taking

        patch.setattr(chunks, "open_table", step("open"))
        patch.setattr(ChunkTable, "replace", step("commit"))
        yield taken


def overtaken(made: HandMade, at: int, *, killed: bool) -> list[str]:
    """An update makes the table again; at its step `at` a night comes and goes. Returns its steps."""
    first = partial(made.publish, N1, patient("a"), patient("b"), patient("x"), deleted=[("Patient", "z")])
    first()
    update_current(made.session, "Patient")
    first(attempt=2)
    nights: list[int] = []

    def night(step: int) -> None:
        if step != at or nights:
            return
        nights.append(step)
        made.publish(N2, patient("a", 2), patient("c"), deleted=[("Patient", "x")])
        update_current(made.session, "Patient")
        assert held(made, "patient_current") == {"a": N2, "b": N1, "c": N2}
        if killed:
            raise Killed

    with steps_of(night) as steps, suppress(Killed):
        update_current(made.session, "Patient")
    assert bool(nights) is bool(at)
    return steps


@pytest.mark.parametrize("killed", [False, True], ids=["overtaken", "overtaken and killed"])
def test_a_table_that_is_made_again_beside_a_merge_loses_nothing(tmp_path: Path, killed: bool) -> None:
    """A night in between brings a patient, a new version and a deletion; its own update is done at once. The
    slower one knows nothing of it, whichever of its steps it is at; or dies ahead of a commit."""
    steps = overtaken(HandMade(tmp_path / "alone", current=True), 0, killed=False)
    assert steps.count("commit") == 2
    assert steps.count("open") >= 5
    for at in range(1, len(steps) + 1):
        if killed and steps[at - 1] != "commit":
            continue
        made = HandMade(tmp_path / str(at), current=True)
        overtaken(made, at, killed=killed)
        update_current(made.session, "Patient")
        assert held(made, "patient_current") == {"a": N2, "b": N1, "c": N2}, at
        assert held(made, "patient_deleted") == {"x": N2, "z": N1}, at
        assert is_current(made.session, "Patient")
        assert update_current(made.session, "Patient").merged is None


def looked_at(made: HandMade, at: int, change: Callable[[], Any]) -> list[str]:
    """An update, in which something changes ahead of its look `at` at parts of exports; which these are."""
    looks: list[str] = []
    real = delta.published_parts

    def look(uri: str, *options: Any) -> Any:
        looks.append(uri.rpartition("/")[2])
        if len(looks) == at:
            change()
        return real(uri, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "published_parts", look)
        update_current(made.session, "Patient")
    return looks


@pytest.mark.parametrize(
    ("change", "there"),
    [
        (
            lambda made: made.publish(N3, patient("a", 2), patient("c"), deleted=[("Patient", "x")]),
            {"a": N3, "b": N2, "c": N3},
        ),
        (
            lambda made: made.publish(N2, patient("b"), patient("c"), attempt=2),
            {"a": N1, "b": N2, "c": N2},
        ),
        (lambda made: made.take_back(N2, "_exports", "patient"), {"a": N1}),
    ],
    ids=["published", "ingested again", "withdrawn"],
)
def test_what_changes_between_the_looks_at_the_exports_is_there_the_next_time(
    tmp_path: Path, change: Callable[[HandMade], Any], there: dict[str, str]
) -> None:
    """Ahead of each table that an update looks at."""
    for at in range(1, 5):
        made = HandMade(tmp_path / str(at), current=True)
        made.publish(N1, patient("a"))
        made.publish(N2, patient("b"))
        looks = looked_at(made, at, partial(change, made))
        assert sorted(looks) == ["_deletes", "_exports", "_members", "patient"]
        update_current(made.session, "Patient")
        assert held(made, "patient_current") == there, looks[at - 1]
