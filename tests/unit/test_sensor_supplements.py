"""The sensor still looks at an incomplete export that left something out: it may be complete one day. It asks
for no run beside one that has just begun."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from runs_by_hand import just_begun
from test_exports_supplements import MAIN, NOW, published, session

from pipeline.exports.facts import ClosingFact, Lacks, Receipt
from pipeline.exports.session import Session, utc_now
from pipeline.orchestration import runs
from pipeline.orchestration.factory import build_source
from pipeline.orchestration.names import Names, names_of


def ingested_again(made: Session) -> None:
    """And complete now."""
    receipt = made.ledger.read(MAIN).receipt
    assert receipt is not None
    again = {"attempt": 2, "at": utc_now(), "watermark": "2026-01-31T02:00:00Z", "incomplete": ()}
    made.ledger.write(MAIN, "receipts/0002.json", Receipt.model_validate(receipt.model_dump() | again))


def test_one_that_is_complete_when_ingested_again_has_its_supplement(tmp_path: Path) -> None:
    made = session(tmp_path, export={"level": "system", "group": None})
    published(made, MAIN, watermark=None, lacks=Lacks(types=("Encounter",)))
    made.ledger.write(MAIN, "released.json", ClosingFact(at=NOW, reason="DELETE"))
    definitions = build_source(made.config, made.source)
    sensor = definitions.resolve_sensor_def(names_of(made.source).sensor)
    with dg.DagsterInstance.ephemeral() as instance:
        sensor(dg.build_sensor_context(instance))
        assert made.ledger.export_ids() == [MAIN]
        ingested_again(made)
        sensor(dg.build_sensor_context(instance))
    assert [made.ledger.read(each).supplement_of for each in made.ledger.export_ids()] == ["", MAIN]


def asked_for(definitions: dg.Definitions, names: Names, instance: dg.DagsterInstance) -> list[str]:
    """The jobs for which the sensor asks at a tick."""
    sensor = definitions.resolve_sensor_def(names.sensor)
    result = sensor(dg.build_sensor_context(instance))
    assert isinstance(result, dg.SensorResult)
    return [request.job_name or "" for request in result.run_requests or []]


def test_the_sensor_asks_for_no_run_beside_one_that_has_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is older and of which the facts know nothing holds up nobody."""
    made = session(tmp_path, export={"level": "system", "group": None})
    published(made, MAIN, watermark=None, lacks=Lacks(types=("Encounter",)))
    made.ledger.write(MAIN, "released.json", ClosingFact(at=NOW, reason="DELETE"))
    ingested_again(made)
    names, definitions = names_of(made.source), build_source(made.config, made.source)
    with dg.DagsterInstance.ephemeral() as instance:
        assert asked_for(definitions, names, instance) == [], "it is opened, and asked for at the next tick"
        _, supplement = made.ledger.export_ids()
        with just_begun(instance, names.kickoff_job, supplement):
            assert asked_for(definitions, names, instance) == []
            monkeypatch.setattr(runs, "_YOUNG", timedelta(0))
            assert asked_for(definitions, names, instance) == [names.kickoff_job]
            monkeypatch.undo()
        assert asked_for(definitions, names, instance) == [names.kickoff_job]
