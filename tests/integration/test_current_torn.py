"""A merge that dies between its two commits, and what is done about it the next time, or when its export is
withdrawn before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from driven_by_hand import Drive
from nightly_site import open_site
from nights_by_hand import night_id, true_state, update
from test_current_month import current_state

from pipeline.exports.repair import withdraw
from pipeline.tables.current.chunks import ChunkTable

TYPES = ["Patient"]


class Killed(Exception):
    """In place of a process that ends."""


@pytest.mark.parametrize("withdrawn", [False, True], ids=["tried again", "withdrawn"])
def test_tombstones_that_came_without_their_rows_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, withdrawn: bool
) -> None:
    replace = ChunkTable.replace

    def only_tombstones(table: ChunkTable, *arguments: Any) -> None:
        if "_deleted_how" not in (table.schema or []).names:
            raise Killed
        replace(table, *arguments)

    with open_site(
        tmp_path,
        patients=14,
        export={"level": "system", "group": None, "types": TYPES, "since": "never", "infer_deletes": True},
        source={"current": True},
        export_seconds=0.01,
        poll_seconds=0,
    ) as site:
        states = [set[str]()]
        while True:
            night = len(states)
            states.append(set(true_state(site, night, TYPES, None)["Patient"]))
            site.sandbox.control(night=night)
            assert Drive(site, night_id(night)).to_the_end().receipt is not None
            if states[-2] - states[-1]:
                break
            update(site)
        # Of this night somebody is gone.
        with monkeypatch.context() as patch:
            patch.setattr(ChunkTable, "replace", only_tombstones)
            with pytest.raises(Killed):
                update(site)
        if withdrawn:
            withdraw(site.session, night_id(night))
            night -= 1
        assert "was not finished" in update(site)["Patient"].anew
        assert current_state(site, TYPES) == true_state(site, night, TYPES, None)
        assert update(site)["Patient"].merged is None
