"""The sensor still looks at an incomplete export that left something out: it may be complete one day."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from test_exports_supplements import MAIN, NOW, published, session

from pipeline.exports.facts import ClosingFact, Lacks, Receipt
from pipeline.exports.session import utc_now
from pipeline.orchestration.factory import build_source
from pipeline.orchestration.names import names_of


def test_one_that_is_complete_when_ingested_again_has_its_supplement(tmp_path: Path) -> None:
    made = session(tmp_path, export={"level": "system", "group": None})
    published(made, MAIN, watermark=None, lacks=Lacks(types=("Encounter",)))
    made.ledger.write(MAIN, "released.json", ClosingFact(at=NOW, reason="DELETE"))
    definitions = build_source(made.config, made.source)
    sensor = definitions.resolve_sensor_def(names_of(made.source).sensor)
    with dg.DagsterInstance.ephemeral() as instance:
        sensor(dg.build_sensor_context(instance))
        assert made.ledger.export_ids() == [MAIN]
        receipt = made.ledger.read(MAIN).receipt
        assert receipt is not None
        again = {"attempt": 2, "at": utc_now(), "watermark": "2026-01-31T02:00:00Z", "incomplete": ()}
        made.ledger.write(MAIN, "receipts/0002.json", Receipt.model_validate(receipt.model_dump() | again))
        sensor(dg.build_sensor_context(instance))
    assert [made.ledger.read(each).supplement_of for each in made.ledger.export_ids()] == ["", MAIN]
