"""Export runs as people see them, and how they are named and given up."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError, LakeError, StillRunning
from pipeline.exports.advice import in_words as words_of
from pipeline.exports.facts import (
    AttemptError,
    Claim,
    ClosingFact,
    Intent,
    IntentError,
    Receipt,
    Request,
    TableCounts,
)
from pipeline.exports.ledger import Facts
from pipeline.exports.overview import details, find_export, summaries, watching_session
from pipeline.exports.owner import Owner, this_process
from pipeline.exports.session import Session
from pipeline.exports.state import Closed, Ingest, KickOff, Poll, Step, Tidy
from pipeline.terminal.cancelling import cancel

START = datetime(2026, 1, 31, 2, tzinfo=UTC)
ID = "20260131T020000Z"
LATER = "20260201T020000Z"
DEAD = Owner(run_id="dead", host="elsewhere")
STATUS_URL = "http://127.0.0.1:9/job/1?sig=Secret"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    sources = [
        {
            "name": name,
            "fhir_url": "http://127.0.0.1:9/fhir",
            "auth": {"kind": "none"},
            "export": {"level": "system"},
        }
        for name in ("hosp_a", "hosp_b")
    ]
    return Config.model_validate({"lake": "lake", "sources": sources, "folder": tmp_path})


@pytest.fixture
def session(config: Config) -> Session:
    looking = watching_session(config, config.source("hosp_a"), is_dead=lambda owner: owner == DEAD)
    return replace(looking, now=lambda: START + timedelta(hours=26))


def after(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def intent(number: int = 1, owner: Owner = DEAD) -> Intent:
    parameters: dict[str, Any] = {
        "level": "system",
        "types": ["Patient"],
        "since": None,
        "patients": ["Patient/Wilhelmina"],
    }
    return Intent(
        at=after(number),
        number=number,
        owner=owner,
        parameters=parameters,
        fingerprint="f",
        since_reason="full",
    )


def accepted(session: Session, export_id: str = ID) -> None:
    session.ledger.write(export_id, "intent.json", intent())
    request = Request(at=after(2), intent=1, status_url=STATUS_URL, owner=DEAD)
    session.ledger.write(export_id, "request.json", request)


def published(session: Session, export_id: str = ID) -> None:
    accepted(session, export_id)
    session.ledger.write(export_id, "attempts/0001.json", Claim(at=after(10), number=1, owner=DEAD))
    tables = {
        name: TableCounts(
            resource_type=name.title(), rows=rows, quarantined=0, files=1, bytes=10, parts=1, version=1
        )
        for name, rows in (("patient", 3), ("observation", 40))
    }
    receipt = Receipt(
        at=after(20),
        attempt=1,
        owner=DEAD,
        transaction_time="2026-01-31T02:00:00Z",
        watermark="2026-01-31T02:00:00Z",
        incomplete=(),
        fingerprint="f",
        tables=tables,
        files=2,
        raw_bytes=10,
        decoded_bytes=10,
        deleted=0,
        error_entries={"warning": 1},
    )
    session.ledger.write(export_id, "receipts/0001.json", receipt)
    session.ledger.write(export_id, "released.json", ClosingFact(at=after(21), reason="deleted"))


def test_the_list_is_newest_first_with_state_rows_age_and_next_step(session: Session) -> None:
    published(session)
    accepted(session, LATER)
    newest, oldest = summaries(session)
    assert (newest.label, newest.state, newest.rows) == (f"hosp_a/{LATER}", "running", None)
    assert newest.next_step == "ask the server once more, then cancel"
    assert (oldest.state, oldest.rows, oldest.next_step) == ("published", 43, "nothing")
    assert oldest.age == timedelta(hours=26)
    assert [each.export_id for each in summaries(session, limit=1)] == [LATER]
    assert newest.as_json()["rows"] is None
    assert oldest.as_json()["tables"] == {"observation": 40, "patient": 3}


def test_an_id_in_the_future_has_no_negative_age(session: Session) -> None:
    accepted(session, "20990101T000000Z")
    assert summaries(session)[0].age == timedelta(0)


def test_the_history_is_in_the_order_of_time_and_holds_no_url_or_patient(session: Session) -> None:
    published(session)
    broken = AttemptError(at=after(11), reason="count mismatch", kind="VerificationFailed")
    session.ledger.write(ID, "attempts/0001.error.json", broken)
    found = details(session, ID)
    assert [event.at for event in found.history] == sorted(event.at for event in found.history)
    words = [event.what for event in found.history]
    assert words[0] == "kick-off request 1 by run dead"
    assert "attempt 1 failed (VerificationFailed): count mismatch" in words
    assert words[-1] == "released on the server: deleted"
    shown = json.dumps(found.as_json())
    for hidden in ("Secret", "sig=", "Wilhelmina"):
        assert hidden not in shown
    assert found.parameters == {"level": "system", "types": ["Patient"]}


def test_damaged_facts_are_shown_not_hidden(session: Session) -> None:
    session.lake.put_new(f"hosp_a/exports/{ID}/request.json", b"{")
    found = summaries(session)[0]
    assert found.state == "damaged"
    assert "request.json" in found.reason
    assert "backup" in found.next_step


def in_words(step: Step, now: datetime) -> str:
    return words_of(step, now, Facts("hosp_a", ID))


def test_times_of_the_next_step_are_told_only_while_they_lie_ahead() -> None:
    assert in_words(KickOff(2, "x", after(5)), START) == "kick-off request 2 at 2026-01-31 02:05:00 UTC"
    assert in_words(KickOff(2, "x", after(5)), after(6)) == "kick-off request 2"
    assert in_words(Ingest(3, "x"), START) == "ingest, attempt 3"
    assert in_words(Poll(False), START) == "ask the server how far it is"
    assert in_words(Tidy(True, True), START) == "release the job on the server and drop the raw bytes"
    assert "fhir-export run hosp_a" in in_words(Closed("gone"), START)


# --- names -------------------------------------------------------------------------------------------


def test_an_export_is_found_by_source_and_id_or_by_an_id_that_is_unique(
    config: Config, session: Session
) -> None:
    accepted(session)
    for text in (ID, f"hosp_a/{ID}"):
        source, export_id = find_export(config, text)
        assert (source.name, export_id) == ("hosp_a", ID)


def test_an_id_of_two_sources_names_the_candidates(config: Config, session: Session) -> None:
    accepted(session)
    accepted(watching_session(config, config.source("hosp_b")))
    with pytest.raises(ConfigError, match="2 sources") as refused:
        find_export(config, ID)
    assert f"hosp_a/{ID}, hosp_b/{ID}" in refused.value.advice
    assert find_export(config, f"hosp_b/{ID}")[0].name == "hosp_b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ID, "no source has"),
        (f"hosp_a/{ID}", "hosp_a has no export run"),
        (f"hosp_c/{ID}", "no source 'hosp_c'"),
        ("latest", "not the id of an export"),
        ("hosp_a/latest", "not the id of an export"),
        ("hosp_a/../x", "no source"),
        ("", "not the id of an export"),
    ],
)
def test_what_names_no_export_is_refused(config: Config, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_export(config, text)


# --- cancelling --------------------------------------------------------------------------------------


def test_a_published_export_is_not_cancelled(session: Session) -> None:
    published(session)
    with pytest.raises(ConfigError, match="is published already"):
        cancel(session, ID)
    assert session.ledger.read(ID).closings == {}


def test_a_closed_export_is_not_cancelled(session: Session) -> None:
    accepted(session)
    session.ledger.write(ID, "held.json", ClosingFact(at=START, reason="3 attempts failed"))
    with pytest.raises(ConfigError, match="is held already"):
        cancel(session, ID)
    assert list(session.ledger.read(ID).closings) == ["held"]


def test_an_export_that_a_run_works_on_is_not_cancelled_under_its_hands(session: Session) -> None:
    accepted(session)
    living = Claim(at=START, number=1, owner=this_process("living"))
    session.ledger.write(ID, "attempts/0001.json", living)
    with pytest.raises(StillRunning, match="run living is doing the ingest"):
        cancel(session, ID)


def test_a_damaged_export_is_not_cancelled(session: Session) -> None:
    session.lake.put_new(f"hosp_a/exports/{ID}/request.json", b"{")
    with pytest.raises(LakeError, match=r"request\.json"):
        cancel(session, ID)


@pytest.mark.parametrize(("certain", "orphan"), [(True, False), (False, True)])
def test_an_export_that_waits_to_be_accepted_can_be_given_up(
    session: Session, certain: bool, orphan: bool
) -> None:
    session.ledger.write(ID, "intent.json", intent())
    put_off = IntentError(at=after(1), reason="HTTP 429", retry_at=after(600), certain=certain)
    session.ledger.write(ID, "intent-0001.error.json", put_off)
    words = cancel(session, ID)
    assert "is cancelled" in words
    assert ("may run on the server" in words) == orphan
    assert summaries(session)[0].state == "cancelled"


def test_a_job_whose_server_cannot_be_reached_is_cancelled_here_and_that_is_said(session: Session) -> None:
    accepted(session)
    words = cancel(session, ID)
    assert "The job may still run on the server" in words
    assert "Secret" not in words
    assert summaries(session)[0].state == "cancelled"
