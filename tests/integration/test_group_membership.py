"""Exports of a group from night to night: who joins comes with all their history, who leaves is marked
(protocol fact 15). The sandbox's generator is the truth, DuckDB the reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable
from driven_by_hand import Drive
from nightly_site import Site, open_site

from pipeline.errors import ConfigError
from pipeline.exports.current import current_types, update_current
from pipeline.exports.ledger import Facts
from pipeline.exports.members import read_members
from pipeline.exports.repair import withdraw
from pipeline.exports.state import AskAgain
from pipeline.exports.successor import open_successor
from pipeline.sandbox import truth

TYPES = ["Patient", "Encounter", "Observation"]
GROUP = "wanderers"
Versions = dict[str, tuple[str, str]]


def moment(night: int) -> datetime:
    return datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=night - 1)


def night_id(night: int) -> str:
    return moment(night).strftime("%Y%m%dT%H%M%SZ")


class Nights:
    """Drives a site's nights, supplements included, on the clock of those nights."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def drive(self, night: int, export_id: str | None = None) -> Drive:
        skipped = moment(night) - datetime.now(UTC) + timedelta(minutes=1 if export_id else 0)
        return Drive(self.site, export_id or night_id(night), skipped=skipped)

    def run(self, night: int) -> Facts:
        """The night's export, published; its supplement too, where it needs one."""
        self.site.sandbox.control(night=night)
        drive = self.drive(night)
        facts = drive.to_the_end()
        assert facts.receipt is not None, drive.words()
        supplement = self.supplement(night, drive)
        assert supplement is None or supplement.receipt is not None
        return drive.to_the_end()

    def supplement(self, night: int, drive: Drive) -> Facts | None:
        session = drive.session()
        facts = session.ledger.read(drive.export_id)
        if not isinstance(session.next_step(facts), AskAgain):
            return None
        return self.drive(night, open_successor(session, drive.export_id)).to_the_end()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as found:
        yield found


def opened(folder: Path, **source: Any) -> Any:
    return open_site(
        folder,
        patients=14,
        export={"group": GROUP, "since": "auto", "types": TYPES},
        source={"current": True, **source},
        export_seconds=0.01,
        poll_seconds=0,
    )


def living(site: Site, night: int) -> set[str]:
    """The members' ids, of those that are not deleted."""
    return set(versions(site, night, GROUP)["Patient"])


def versions(site: Site, night: int, group: str | None) -> dict[str, Versions]:
    found: dict[str, Versions] = {each: {} for each in TYPES}
    for resource_type, line in truth(site.seed, site.patients, night, group):
        if resource_type in found:
            meta = json.loads(line)["meta"]
            found[resource_type][json.loads(line)["id"]] = (meta["versionId"], meta["lastUpdated"])
    return found


def current(site: Site, whose: set[str] | None = None) -> dict[str, Versions]:
    """What the current tables hold, of those patients."""
    session = site.session
    for each in current_types(session):
        update_current(session, each)
    found = {}
    for each in TYPES:
        files = DeltaTable(str(site.lake / "hosp" / "current" / f"{each.lower()}_current")).file_uris()
        patient = "'Patient/' || id" if each == "Patient" else "subject.reference"
        rows = duckdb.sql(
            f"select id, meta.versionId, meta.lastUpdated, {patient} "
            f"from read_parquet({files}, union_by_name=true)"
        ).fetchall()
        wanted = [row for row in rows if whose is None or whose_is(row[3]) in whose]
        found[each] = {row[0]: (row[1], row[2]) for row in wanted}
        assert len(found[each]) == len(wanted), "an id stands twice"
    return found


def whose_is(reference: str | None) -> str | None:
    """References are relative, absolute, with a version or without (protocol fact 32)."""
    return reference.partition("Patient/")[2].partition("/")[0] if reference else None


def somebody_joins(site: Site) -> int:
    """The first such night."""
    return next(each for each in range(2, 9) if living(site, each) - living(site, each - 1))


def test_who_joins_comes_with_their_history_and_everybody_else_goes_on(site: Site) -> None:
    nights = Nights(site)
    joined = 0
    for night in range(1, 6):
        facts = nights.run(night)
        here = living(site, night)
        assert current(site, here) == versions(site, night, GROUP), f"night {night}"
        intent = facts.asked
        assert intent is not None
        assert (intent.parameters["since"] is None) == (night == 1), intent.since_reason
        joined += intent.lacks.patients
        known = read_members(site.session, night_id(night))
        assert known is not None
        assert {each.patient for each, state in known if state != "left"} == here
    assert joined > 0
    kickoffs = [each for each in site.sandbox.access_log() if each["path"].endswith("$export")]
    posted = [each for each in kickoffs if each["method"] == "POST"]
    assert posted
    assert all(GROUP in each["path"] for each in posted), "no more is asked for than the group"
    logged = "".join(json.dumps(each) for each in kickoffs)
    assert not any(patient in logged for patient in here), "no patient is named in a URL"


@pytest.mark.parametrize("on_leave", ["keep", "hide"])
def test_who_left_is_marked_and_kept_or_hidden(tmp_path: Path, on_leave: str) -> None:
    with opened(tmp_path, on_leave=on_leave) as site:
        nights = Nights(site)
        gone: set[str] = set()
        for night in (1, 3, 4):
            nights.run(night)
            known = read_members(site.session, night_id(night)) or []
            gone |= {each.patient for each, state in known if state == "left"}
        assert gone
        gone -= living(site, 4)
        kept = current(site, gone)
        whole = current(site)
        if on_leave == "hide":
            assert whole == versions(site, 4, GROUP)
            assert not any(kept.values())
        else:
            deleted = gone - set(versions(site, 4, None)["Patient"])
            assert set(kept["Patient"]) == gone - deleted
            assert kept["Encounter"]


def test_what_was_deleted_while_a_patient_was_away_is_gone_when_they_are_back(site: Site) -> None:
    """Nobody names it: only their full export shows it."""
    nights = Nights(site)
    for night in (1, 7, 13, 25):  # months of a patient's coming and going
        nights.run(night)
        assert current(site, living(site, night)) == versions(site, night, GROUP), f"night {night}"


def test_a_supplement_that_fails_leaves_them_new(site: Site) -> None:
    nights = Nights(site)
    nights.run(1)
    night = somebody_joins(site)
    site.sandbox.control(night=night)
    first = nights.drive(night)
    facts = first.to_the_end()
    assert facts.asked is not None and facts.asked.lacks.patients > 0
    site.sandbox.control(faults=[{"path": "\\$export$", "method": "POST", "status": 400, "times": None}])
    refused = nights.supplement(night, first)
    assert refused is not None and "rejected" in refused.closings
    site.sandbox.control(faults=[])
    again = nights.run(night + 1)
    assert again.asked is not None
    assert again.asked.parameters["since"] is None
    assert again.asked.since_reason.endswith(f"has refused the list of patients of {refused.export_id}")
    assert current(site, living(site, night + 1)) == versions(site, night + 1, GROUP)


def test_a_server_that_does_not_show_the_group_gives_full_exports(site: Site) -> None:
    nights = Nights(site)
    site.sandbox.control(faults=[{"path": f"/Group/{GROUP}$", "status": 403, "times": None}])
    nights.run(1)
    facts = nights.run(2)
    assert facts.asked is not None
    assert facts.asked.since_reason == (
        "full: who is in the group cannot be told: the Group cannot be read (HTTP 403)"
    )
    assert read_members(site.session, night_id(2)) is None


def test_a_server_without_lists_of_patients_gives_full_exports_when_somebody_joined(tmp_path: Path) -> None:
    with opened(tmp_path, knobs={"patient_list": False}) as site:
        nights = Nights(site)
        nights.run(1)
        for night in range(2, 5):
            asked = nights.run(night).asked
            assert asked is not None
            assert (asked.parameters["since"] is None) == bool(
                living(site, night) - living(site, night - 1)
            ), asked.since_reason
        assert current(site, living(site, 4)) == versions(site, 4, GROUP)


def test_no_export_is_withdrawn_below_one_that_relies_on_its_members(site: Site) -> None:
    nights = Nights(site)
    nights.run(1)
    night = somebody_joins(site)
    facts = nights.run(night)
    assert facts.successor is not None
    nights.run(night + 1)
    with pytest.raises(ConfigError, match=f"{night_id(night + 1)} began where"):
        withdraw(site.session, facts.successor.export_id)
    withdraw(site.session, night_id(night + 1))
    withdraw(site.session, facts.successor.export_id)
    again = nights.drive(night + 2)
    site.sandbox.control(night=night + 2)
    asked = again.to_the_end().asked
    assert asked is not None
    assert asked.lacks.patients > 0 or asked.parameters["since"] is None, "they are new again"
