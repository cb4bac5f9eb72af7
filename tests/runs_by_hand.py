"""Runs of Dagster that nobody has started."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG


@contextmanager
def just_begun(instance: dg.DagsterInstance, job: str, export_id: str) -> Iterator[None]:
    """A run that waits to be started, of which the facts know nothing yet; it never is."""
    run_id = str(uuid.uuid4())
    instance.create_run_for_job(
        dg.GraphDefinition(name=job).to_job(),
        run_id=run_id,
        status=dg.DagsterRunStatus.NOT_STARTED,
        tags={PARTITION_NAME_TAG: export_id},
    )
    try:
        yield
    finally:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_canceled(run)
