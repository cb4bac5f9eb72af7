"""Moments at the ends of the calendar, in what is published already: the current table is made."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable
from published_by_hand import HandMade

from pipeline.exports.current import update_current
from pipeline.exports.deletions import DELETES, deletes_schema

ONE, TWO = "20260101T020000Z", "20260102T020000Z"
SOFT_DELETED = {
    "url": "http://azurehealthcareapis.com/data-extensions/deleted-state",
    "valueString": "soft-deleted",
}


@pytest.mark.parametrize("beyond", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
def test_a_deletion_beyond_the_calendar_does_not_stop_a_type(tmp_path: Path, beyond: str) -> None:
    """It counts as one without a moment: before the export that names it, and after what stands."""
    made = HandMade(tmp_path, current=True)
    made.publish(ONE, *({"resourceType": "Patient", "id": each} for each in ("gone", "stays", "soft")))
    soft = {"lastUpdated": beyond, "versionId": "2", "extension": [SOFT_DELETED]}
    row = {
        "resource_type": "Patient",
        "id": "gone",
        "deleted_at": datetime.fromisoformat(beyond),
        "exact": True,
    }
    made._small(DELETES, TWO, 1, [row], deletes_schema())
    made.publish(TWO, {"resourceType": "Patient", "id": "soft", "meta": soft})
    table = update_current(made.session, "Patient")
    assert (table.rows, table.deleted) == (1, 2)
    folder = tmp_path / "lake" / "hosp" / "current" / "patient_current"
    assert DeltaTable(str(folder)).to_pyarrow_table().column("id").to_pylist() == ["stays"]
