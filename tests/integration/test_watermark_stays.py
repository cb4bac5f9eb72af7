"""The watermark never passes data that is not published, was accepted with a mismatch, or was quarantined
(design, Facts; protocol fact 26 and section 6), whatever was killed in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driven_by_hand import Drive
from nightly_site import BIN, Site, eventually, open_site
from nights_by_hand import Versions, drive, night_id, run_night, true_state, versions_in

from pipeline.exports.ledger import Facts

TYPES = ["Patient", "Encounter"]
EXPORT = {"level": "system", "group": None, "types": TYPES}


def published(site: Site) -> dict[str, Versions]:
    """The newest version of each id over all published exports, by DuckDB."""
    newest = "qualify row_number() over (partition by id order by meta.versionId::int desc) = 1"
    return {each: versions_in(site.files_of(each.lower()), f"true {newest}") for each in TYPES}


def since_of(site: Site, night: int) -> Any:
    asked = site.facts(night_id(night)).asked
    assert asked is not None
    return asked.parameters["since"]


LINE = "eyJyZXNvdXJjZVR5cGUiOiJQYXRpZW50IiwiaWQiOiJ4IiwiYWN0aXZlIjoieWVzIn0="
"""A Patient whose `active` is a text: it cannot become a row."""


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (
            {"path": "^/bulk/status/", "answer": 200, "wrong_count": 1, "times": None},
            "differ from the manifest",
        ),
        ({"path": "\\.ndjson", "insert": [{"base64": LINE, "after": 0}]}, "in quarantine"),
        ({"path": "^/bulk/status/", "failed": 500}, ""),
    ],
)
def test_an_export_with_less_than_all_leaves_it_where_it_was(
    tmp_path: Path, fault: dict[str, Any], why: str
) -> None:
    """A count that was accepted, a line in quarantine, an export that failed: the next goes further back."""
    source = {"on_count_mismatch": "warn", "ask_again": 0}
    with open_site(
        tmp_path, patients=4, export=EXPORT, source=source, export_seconds=0.01, poll_seconds=0
    ) as site:
        assert drive(site, 1).to_the_end().receipt is not None
        first = site.facts(night_id(1)).receipt
        assert first is not None and first.watermark is not None
        site.sandbox.control(night=3, faults=[fault])
        second = drive(site, 3).to_the_end()
        if why:
            assert second.receipt is not None
            assert second.receipt.watermark is None and why in " ".join(second.receipt.incomplete)
        else:
            assert second.receipt is None
        site.sandbox.control(night=5, faults=[])
        third = drive(site, 5).to_the_end()
        assert third.receipt is not None and third.receipt.watermark is not None
        assert since_of(site, 5) == first.watermark
        now = true_state(site, 5, TYPES, None)
        found = published(site)
        assert all(now[each].items() <= found[each].items() for each in TYPES), "nothing was passed"
        site.sandbox.control(night=6)
        drive(site, 6).to_the_end()
        assert since_of(site, 6) == third.receipt.watermark


def test_a_server_whose_clock_was_ahead_for_a_night_is_asked_from_before_it(tmp_path: Path) -> None:
    """What it wrote while its clock was right is older than the mark of the night before."""
    ahead = {"transactionTime": "2026-01-04T02:00:00.417Z"}
    with open_site(tmp_path, patients=6, export=EXPORT, export_seconds=0.01, poll_seconds=0) as site:
        run_night(site, 1)
        fault = {"path": "^/bulk/status/", "answer": 200, "members": ahead, "times": None}
        site.sandbox.control(faults=[fault])
        run_night(site, 2)
        site.sandbox.control(faults=[])
        third = run_night(site, 3).receipt
        assert third is not None and third.watermark is None
        assert "the server's clock went back" in " ".join(third.incomplete)
        run_night(site, 6)
        first = site.facts(night_id(1)).receipt
        assert first is not None and since_of(site, 6) == first.watermark
        now, found = true_state(site, 6, TYPES, None), published(site)
        assert all(now[each].items() <= found[each].items() for each in TYPES), "nothing was passed"


def has(folder: str) -> Callable[[Site, str], bool]:
    return lambda site, export_id: any((site.lake / "hosp" / "exports" / export_id / folder).glob("*.json"))


def committed(site: Site, export_id: str) -> bool:
    return any((site.lake / "hosp" / "tables").glob(f"patient/export_id={export_id}/*.parquet"))


def killed_at(site: Site, moment: Callable[[Site, str], bool]) -> Facts:
    """One more night by a command that is killed then, or a little later."""
    before = site.export_ids()
    command = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
    eventually(lambda: len(site.export_ids()) > len(before), 60)
    export_id = site.export_ids()[-1]
    eventually(lambda: moment(site, export_id) or command.poll() is not None, 90, every=0.01)
    site.kill(command)
    return site.facts(export_id)


@pytest.mark.parametrize("moment", [has("landed"), committed, has("published")])
def test_what_was_killed_before_its_receipt_is_not_passed(
    tmp_path: Path, moment: Callable[[Site, str], bool]
) -> None:
    """SIGKILL of the whole command; then the next night is planned as if nobody had mended that one. A night
    that was quicker than the kill is the one before, for another try."""
    with open_site(tmp_path, patients=30, export=EXPORT, export_seconds=0.01) as site:
        site.run_night()
        mark = site.facts(site.export_ids()[-1]).receipt
        for night in range(3, 9):
            site.sandbox.control(night=night)
            killed = killed_at(site, moment)
            if killed.receipt is None:
                break
            mark = killed.receipt
        assert killed.receipt is None and mark is not None
        planned = Drive(site, "20990101T020000Z")
        site.sandbox.control(night=night + 1)
        facts = planned.to_the_end()
        assert facts.asked is not None and facts.receipt is not None
        assert facts.asked.parameters["since"] == mark.watermark
        now, found = true_state(site, night + 1, TYPES, None), published(site)
        assert all(now[each].items() <= found[each].items() for each in TYPES)
