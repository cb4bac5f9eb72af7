"""Exports of a group from night to night: who joins comes with all their history, who leaves is marked
(protocol fact 15). The sandbox's generator is the truth, DuckDB the reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nightly_site import Site, open_site
from nights_by_hand import (
    Versions,
    current_files,
    drive,
    night_id,
    run_night,
    run_supplement,
    true_state,
    update,
    versions_in,
)

from pipeline.errors import ConfigError
from pipeline.exports.members import read_members
from pipeline.exports.repair import withdraw

TYPES = ["Patient", "Encounter", "Observation"]
GROUP = "wanderers"


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
    return true_state(site, night, TYPES, group)


def current(site: Site, whose: set[str] | None = None) -> dict[str, Versions]:
    """What the current tables hold, of those patients."""
    update(site)
    found = {}
    for each in TYPES:
        # References are relative, absolute, with a version or without (protocol fact 32).
        patient = "id" if each == "Patient" else "regexp_extract(subject.reference, 'Patient/([^/]+)', 1)"
        where = f"{patient} in {tuple(whose)}" if whose else "true"
        found[each] = versions_in(current_files(site, f"{each.lower()}_current"), where)
    return found


def somebody_joins(site: Site) -> int:
    """The first such night."""
    return next(each for each in range(2, 9) if living(site, each) - living(site, each - 1))


def test_who_joins_comes_with_their_history_and_everybody_else_goes_on(site: Site) -> None:
    joined = 0
    for night in range(1, 6):
        facts = run_night(site, night)
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
        gone: set[str] = set()
        for night in (1, 3, 4):
            run_night(site, night)
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
    for night in (1, 7, 13, 25):  # months of a patient's coming and going
        run_night(site, night)
        assert current(site, living(site, night)) == versions(site, night, GROUP), f"night {night}"


def test_a_supplement_that_fails_leaves_them_new(site: Site) -> None:
    run_night(site, 1)
    night = somebody_joins(site)
    site.sandbox.control(night=night)
    first = drive(site, night)
    facts = first.to_the_end()
    assert facts.asked is not None and facts.asked.lacks.patients > 0
    site.sandbox.control(faults=[{"path": "\\$export$", "method": "POST", "status": 400, "times": None}])
    refused = run_supplement(site, night, first)
    assert refused is not None and "rejected" in refused.closings
    site.sandbox.control(faults=[])
    again = run_night(site, night + 1)
    assert again.asked is not None
    assert again.asked.parameters["since"] is None
    assert again.asked.since_reason.endswith(f"has refused the list of patients of {refused.export_id}")
    assert current(site, living(site, night + 1)) == versions(site, night + 1, GROUP)


def test_a_server_that_does_not_show_the_group_gives_full_exports(site: Site) -> None:
    site.sandbox.control(faults=[{"path": f"/Group/{GROUP}$", "status": 403, "times": None}])
    run_night(site, 1)
    facts = run_night(site, 2)
    assert facts.asked is not None
    assert facts.asked.since_reason == (
        "full: who is in the group cannot be told: the Group cannot be read (HTTP 403)"
    )
    assert read_members(site.session, night_id(2)) is None


def test_a_server_without_lists_of_patients_gives_full_exports_when_somebody_joined(tmp_path: Path) -> None:
    with opened(tmp_path, knobs={"patient_list": False}) as site:
        last = next(each for each in range(3, 12) if not living(site, each) - living(site, each - 1))
        run_night(site, 1)
        for night in range(2, last + 1):
            asked = run_night(site, night).asked
            assert asked is not None
            assert (asked.parameters["since"] is None) == bool(
                living(site, night) - living(site, night - 1)
            ), asked.since_reason
        assert current(site, living(site, last)) == versions(site, last, GROUP), "with what was deleted"


def test_no_export_is_withdrawn_below_one_that_relies_on_its_members(site: Site) -> None:
    run_night(site, 1)
    night = somebody_joins(site)
    facts = run_night(site, night)
    assert facts.successor is not None
    run_night(site, night + 1)
    with pytest.raises(ConfigError, match=f"{night_id(night + 1)} began where"):
        withdraw(site.session, facts.successor.export_id)
    withdraw(site.session, night_id(night + 1))
    withdraw(site.session, facts.successor.export_id)
    again = drive(site, night + 2)
    site.sandbox.control(night=night + 2)
    asked = again.to_the_end().asked
    assert asked is not None
    assert asked.lacks.patients > 0 or asked.parameters["since"] is None, "they are new again"


def test_who_was_away_on_an_incomplete_night_comes_back_with_everything(tmp_path: Path) -> None:
    """That night moved no watermark, and hid the patient all the same."""
    with opened(tmp_path, on_leave="hide", on_count_mismatch="warn") as site:
        run_night(site, 2)
        patient = min(living(site, 2) & living(site, 4))
        site.sandbox.control(night=3)
        answer = site.session.client.read(f"Group/{GROUP}").resource
        assert answer is not None
        others = [each for each in answer["member"] if not each["entity"]["reference"].endswith(patient)]
        away = {"path": f"/Group/{GROUP}$", "members": {"member": others, "quantity": len(others)}}
        wrong = {"path": "^/bulk/status/", "answer": 200, "wrong_count": 1}
        site.sandbox.control(faults=[each | {"times": None} for each in (away, wrong)])
        third = drive(site, 3).to_the_end()
        assert third.receipt is not None and third.receipt.watermark is None
        assert current(site, {patient, "-"}) == {each: {} for each in TYPES}
        site.sandbox.control(faults=[])
        run_night(site, 4)
        assert current(site) == versions(site, 4, GROUP)
