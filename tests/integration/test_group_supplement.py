"""Supplements where operators meet them: `run --wait`, the daemon's sensor, `show` and the UI's schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from driven_by_hand import Drive
from nightly_site import BIN, Site, eventually, open_site
from nights_by_hand import drive, night_id, run_night, run_supplement, true_state

from pipeline.exports.identity import unscheduled_id
from pipeline.exports.session import utc_now
from pipeline.exports.successor import open_successor
from pipeline.orchestration.factory import build_source

GROUP, TYPES = "wanderers", ["Patient", "Encounter"]
WANTED = {"group": GROUP, "since": "auto", "types": TYPES}


def joining_nights(site: Site) -> tuple[int, int]:
    """A night, and a later one on which somebody is new in the group: fewer than half."""
    for night in range(2, 12):
        before, now = (set(true_state(site, each, TYPES, GROUP)["Patient"]) for each in (night - 1, night))
        if 0 < len(now - before) <= len(now) // 2:
            return night - 1, night
    raise AssertionError("nobody joins")


def with_types(site: Site, types: list[str], **export: Any) -> None:
    """The configuration from now on."""
    config = yaml.safe_load(site.config_path.read_text())
    config["sources"][0]["export"].update(export, types=types)
    site.config_path.write_text(yaml.safe_dump(config))


def published_patients(site: Site) -> set[str]:
    return {each for export_id in site.export_ids() for each in site.ids_in("patient", export_id)}


def test_a_command_brings_the_supplement_of_its_night(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=14, export=WANTED, export_seconds=0.01, poll_seconds=0.1) as site:
        first, second = joining_nights(site)
        site.sandbox.control(night=first)
        site.run_night()
        site.sandbox.control(night=second)
        done = site.cli("run", "hosp", "--wait", "--json")
        main, supplement = site.export_ids()[-2:]
        assert f'"export_id": "{main}"' in done.stdout.strip().splitlines()[-1]
        assert supplement in done.stderr
        facts = site.facts(supplement)
        assert facts.receipt is not None and facts.supplement_of == main
        assert facts.released is not None and site.facts(main).released is not None
        assert f"supplement of {main}" in site.cli("show", supplement).stdout
        assert f"completed by {supplement}" in site.cli("show", main).stdout
        patients = true_state(site, second, TYPES, GROUP)["Patient"]
        assert patients.keys() <= published_patients(site)
        text = "".join(each.read_text() for each in site.lake.glob("hosp/exports/*/*.json"))
        assert not [each for each in patients if len(each) > 10 and each in text], "facts name no patients"


@pytest.mark.parametrize("killed", [False, True])
def test_the_daemon_brings_it_too(tmp_path: Path, killed: bool) -> None:
    """Also when the command that published the night was killed when it was about to open the supplement."""
    with open_site(tmp_path, patients=14, export=WANTED, export_seconds=0.01, poll_seconds=0.1) as site:
        first, second = joining_nights(site)
        site.sandbox.control(night=first)
        site.run_night()
        site.sandbox.control(night=second)
        if killed:
            command = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
            eventually(
                lambda: len(site.export_ids()) > 1 and site.facts(site.export_ids()[1]).receipt,
                90,
                every=0.02,
            )
            site.kill(command)
        else:
            site.cli("run", "hosp")

        def done() -> bool:
            ids = site.export_ids()
            return len(ids) >= 3 and site.facts(ids[-1]).receipt is not None

        site.spawn_daemon_until(done, 180)
        ids = site.export_ids()
        assert len(ids) == 3, "one supplement, opened once"
        assert site.facts(ids[2]).supplement_of == ids[1]
        assert true_state(site, second, TYPES, GROUP)["Patient"].keys() <= published_patients(site)


def test_what_a_killed_command_left_out_comes_with_the_next_night_and_its_job_is_given_back(
    tmp_path: Path,
) -> None:
    """Chaos seed 8104: nobody would have opened the supplement, and the job waited for it on the server."""
    with open_site(tmp_path, patients=14, export=WANTED, export_seconds=0.01, poll_seconds=0.1) as site:
        first, second = joining_nights(site)
        site.sandbox.control(night=first)
        site.run_night()
        site.sandbox.control(night=second)
        killed = Drive(site, unscheduled_id(utc_now(), set(site.export_ids())))
        assert killed.to_the_end().receipt is not None
        assert "because of: supplement" in site.cli("show", killed.export_id).stdout
        site.sandbox.control(night=second + 1)
        night = site.run_night()
        supplement = site.facts(site.export_ids()[-1])
        assert supplement.supplement_of == night["export_id"] != killed.export_id
        assert supplement.receipt is not None
        assert true_state(site, second, TYPES, GROUP)["Patient"].keys() <= published_patients(site)
        assert "release the job" in site.cli("show", killed.export_id).stdout
        site.run_night()
        facts = site.facts(killed.export_id)
        assert facts.released is not None
        assert facts.successor is None, "asked for once"


def test_a_type_that_is_refused_alone_comes_in_the_next_full_export_and_who_joined_at_once(
    tmp_path: Path,
) -> None:
    """Practitioners lie outside of the compartment: the sandbox gives them together with patients only."""
    with open_site(tmp_path, patients=14, export=WANTED, export_seconds=0.01, poll_seconds=0) as site:
        first, second = joining_nights(site)
        run_night(site, first)
        with_types(site, [*TYPES, "Practitioner"])
        site.sandbox.control(night=second)
        main = drive(site, second)
        main.to_the_end()
        patients = run_supplement(site, second, main)
        assert patients is not None and patients.receipt is not None and patients.asked is not None
        assert patients.asked.parameters["types"] == TYPES
        assert patients.succeeds is not None
        refused = site.facts(patients.succeeds.export_id)
        assert "rejected" in refused.closings
        there = true_state(site, second, TYPES, GROUP)["Patient"]
        assert there.keys() <= published_patients(site), "who joined does not wait for the type"
        asked = run_night(site, second + 1).asked
        assert asked is not None
        assert asked.since_reason == (
            f"full: the server has refused the supplement {refused.export_id} of Practitioner"
        )
        assert site.ids_in("practitioner", night_id(second + 1))


def test_a_supplement_that_no_longer_fits_costs_the_command_one_call(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=14, export=WANTED, export_seconds=0.01, poll_seconds=0) as site:
        first, second = joining_nights(site)
        run_night(site, first)
        site.sandbox.control(night=second)
        main = drive(site, second)
        main.to_the_end()
        stuck = open_successor(main.session(), main.export_id)
        with_types(site, TYPES, level="system", group=None)
        before = site.cli("run", "hosp", "--wait", check=False)
        assert (before.returncode, site.export_ids()[-1]) == (3, stuck)
        night = site.run_night()
        assert night["state"] == "published" and night["export_id"] not in (stuck, main.export_id)


def test_full_resync_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    export = {"level": "system", "group": None}
    with open_site(tmp_path, export=export, source={"full_resync": "0 3 * * 0"}) as site:
        definitions = build_source(site.config, site.source)
        schedule = definitions.resolve_schedule_def("hosp_full_resync")
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.cron_schedule == "0 3 * * 0"
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
