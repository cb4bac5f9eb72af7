"""The flat sensor: asks for a run where flat tables of the newest exports are missing.

Normally the ingest run makes them. One that was killed behind the receipt, or a disk that was full, leaves an
export that is published and whole, and that nobody would look at again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import dagster as dg
from dagster import RunsFilter

from pipeline.config import Config, Source
from pipeline.exports.flattening import standing, wanted_names
from pipeline.exports.session import Session
from pipeline.orchestration.names import WORK_TAG, names_of
from pipeline.orchestration.runs import reap_dead_runs, session_in_daemon
from pipeline.unexpected import contained

_EVERY_SECONDS = 60
_NEWEST = 3
"""Published exports that are looked after: older ones are made again by hand."""
_TRIES = 3
_PAUSE_SECONDS = 300


def build_flat_sensor(config: Config, source: Source, flat_job: Any) -> dg.SensorDefinition:
    """RUNNING from the start, as the status sensor."""
    names = names_of(source)
    complete: set[tuple[str, int]] = set()

    @dg.sensor(
        name=names.flat_sensor,
        jobs=[flat_job],
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Has flat tables of {source.name} made that the ingest run could not make.",
    )
    @contained
    def flat_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        reap_dead_runs(context.instance, source)
        session = session_in_daemon(config, source, context.instance)
        notes: list[str] = []
        for export_id, attempt in _published(session):
            if (export_id, attempt) in complete:
                continue
            missing = _missing(session, export_id)
            if not missing:
                complete.add((export_id, attempt))
                continue
            work = f"{source.name}:{export_id}:flat-{attempt}"
            number = _next_try(context.instance, work, session.now())
            notes.append(f"{export_id}: {', '.join(missing)} missing")
            if number is not None:
                request = dg.RunRequest(
                    run_key=f"{work}.{number}", partition_key=export_id, tags={WORK_TAG: work}
                )
                context.instance.add_dynamic_partitions(names.partitions.name or "", [export_id])
                return dg.SensorResult(run_requests=[request])
        return dg.SkipReason("; ".join(notes) or "no flat table is missing")

    return flat_sensor


def _published(session: Session) -> list[tuple[str, int]]:
    """The newest published exports that no run is at work on, with the attempt of their receipt."""
    found: list[tuple[str, int]] = []
    for export_id in reversed(session.ledger.export_ids()[-2 * _NEWEST :]):
        facts = session.ledger.read(export_id)
        busy = facts.last_claim is not None and not session.is_dead(facts.last_claim.owner)
        if (
            facts.receipt
            and not busy
            and not facts.closings.keys() & {"withdrawing", "withdrawn"}
            and len(found) < _NEWEST
        ):
            found.append((export_id, facts.receipt.attempt))
    return found


def _missing(session: Session, export_id: str) -> list[str]:
    receipt = session.ledger.read(export_id).receipt
    wanted = wanted_names(session.source, receipt.tables if receipt else {})
    return [name for name, rows in standing(session, export_id, wanted).items() if rows is None]


def _next_try(instance: dg.DagsterInstance, work: str, now: datetime) -> int | None:
    """The number of the next run for a piece of work; None while it must wait, or when it is no use."""
    records = instance.get_run_records(RunsFilter(tags={WORK_TAG: work}), limit=_TRIES)
    if len(records) >= _TRIES or any(not record.dagster_run.is_finished for record in records):
        return None
    last = max((record.end_time or 0.0 for record in records), default=0.0)
    return len(records) + 1 if now.timestamp() > last + _PAUSE_SECONDS * len(records) else None
