"""An export of which a fact cannot be read moves no watermark: the fact may be its withdrawal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from receipts_by_hand import receipt_of

from pipeline.config import Config
from pipeline.exports.facts import ClosingFact
from pipeline.exports.owner import this_process
from pipeline.exports.request import asked_for, fingerprint, plan_kickoff
from pipeline.exports.session import Session

NOW = datetime(2026, 1, 31, 2, tzinfo=UTC)
FIRST, SECOND, NEXT = "20260101T020000Z", "20260102T020000Z", "20260103T020000Z"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Two published exports, the second with the later watermark."""
    entry = {
        "name": "hosp",
        "fhir_url": "http://127.0.0.1:9/fhir",
        "auth": {"kind": "none"},
        "export": {"level": "system"},
    }
    config = Config.model_validate({"lake": "lake", "sources": [entry], "folder": tmp_path})
    made = Session(config, config.source(None), this_process("one"), lambda _: True, now=lambda: NOW)
    wanted = fingerprint(made.source, asked_for(made.source, made.profile))
    for export_id, day in ((FIRST, "2026-01-01"), (SECOND, "2026-01-02")):
        receipt = receipt_of(f"{day}T02:00:00Z", fingerprint=wanted)
        assert made.ledger.write(export_id, "receipts/0001.json", receipt)
    return made


def since(session: Session) -> str | None:
    return plan_kickoff(session, session.ledger.read(NEXT)).since.value


def test_the_newest_complete_export_gives_the_watermark(session: Session) -> None:
    assert since(session) == "2026-01-02T02:00:00Z"


def test_a_withdrawn_one_gives_none(session: Session) -> None:
    session.ledger.write(SECOND, "withdrawn.json", ClosingFact(at=NOW, reason="by hand"))
    assert since(session) == "2026-01-01T02:00:00Z"


@pytest.mark.parametrize("name", ["withdrawn.json", "withdrawing.json"])
def test_one_whose_withdrawal_cannot_be_read_gives_none(session: Session, name: str) -> None:
    """Half a file is there after a disk was full: never the same as absent (design, Facts)."""
    session.lake.put_new(f"{session.ledger.folder(SECOND)}/{name}", b'{"at": "2026-01')
    assert session.ledger.read(SECOND).damaged == (name,)
    assert since(session) == "2026-01-01T02:00:00Z"
