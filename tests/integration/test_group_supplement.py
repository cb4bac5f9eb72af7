"""Supplements where operators meet them: `run --wait`, the daemon's sensor, `show` and the UI's schedules."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from nightly_site import BIN, Site, eventually, open_site
from nights_by_hand import true_state

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


def test_full_resync_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    export = {"level": "system", "group": None}
    with open_site(tmp_path, export=export, source={"full_resync": "0 3 * * 0"}) as site:
        definitions = build_source(site.config, site.source)
        schedule = definitions.resolve_schedule_def("hosp_full_resync")
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.cron_schedule == "0 3 * * 0"
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
