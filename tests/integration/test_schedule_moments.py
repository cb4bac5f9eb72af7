"""Schedules that have the same moment: of several sources, and of one source."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from pipeline.config import Config, load_config
from pipeline.orchestration.factory import build_source

NIGHT = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
EXPORT_ID = "20260301T030000Z"
SOURCE = """
  - name: {name}
    fhir_url: https://{name}.example.org/fhir
    auth: {{kind: none}}
    export: {{level: system}}
    schedule: "0 3 * * *"
    full_resync: "0 3 * * 0"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    written = tmp_path / "exports.yaml"
    entries = "".join(SOURCE.format(name=name) for name in ("north", "south"))
    written.write_text(f"lake: lake\nsources:{entries}")
    return load_config(written)


def asks(config: Config, instance: dg.DagsterInstance, schedule: str) -> dg.RunRequest | str:
    """What a tick of the schedule comes to: a run, or why there is none."""
    source = config.source(schedule.partition("_")[0])
    definitions = build_source(config, source)
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=NIGHT,
        repository_def=definitions.get_repository_def(),
    )
    known = definitions.resolve_schedule_def(schedule)
    assert isinstance(known, dg.ScheduleDefinition)
    told = known.evaluate_tick(context)
    return told.run_requests[0] if told.run_requests else str(told.skip_message)


def begun(instance: dg.DagsterInstance, source: str, schedule: str) -> None:
    tags = {"dagster/run_key": EXPORT_ID, "dagster/schedule_name": schedule}
    create_run_for_test(instance, job_name=f"{source}_kickoff", tags=tags)


def test_sources_with_the_same_schedule_each_have_their_night(config: Config, tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        begun(instance, "north", "north_schedule")
        requested = asks(config, instance, "south_schedule")
        assert isinstance(requested, dg.RunRequest), requested
        assert (requested.run_key, requested.partition_key) == (EXPORT_ID, EXPORT_ID)
        begun(instance, "north", "north_full_resync")
        assert isinstance(asks(config, instance, "south_full_resync"), dg.RunRequest)


@pytest.mark.parametrize(("first", "second"), [("schedule", "full_resync"), ("full_resync", "schedule")])
def test_of_two_schedules_of_a_source_the_quicker_one_has_the_moment(
    config: Config, tmp_path: Path, first: str, second: str
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        begun(instance, "south", f"south_{first}")
        said = asks(config, instance, f"south_{second}")
        assert said == f"another schedule has begun {EXPORT_ID} at this moment"
        # a tick that is done again opens the same export run
        assert isinstance(asks(config, instance, f"south_{first}"), dg.RunRequest)
