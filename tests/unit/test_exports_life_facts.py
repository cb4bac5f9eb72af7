"""The facts of an export's life, written and read by the real ledger on a real disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError, Unreachable
from pipeline.exports.attempt import claim_attempt, recorded
from pipeline.exports.closing import close
from pipeline.exports.facts import AttemptError, Intent, Request, Succeeds, Successor
from pipeline.exports.owner import Owner, this_process
from pipeline.exports.repair import retry
from pipeline.exports.request import _again
from pipeline.exports.session import Session
from pipeline.exports.state import Closed, Ingest
from pipeline.exports.watch import NotYet, look

START = datetime(2026, 1, 31, 2, tzinfo=UTC)
ID, NEXT = "20260131T020000Z", "20260131T030000Z"
DEAD = Owner(run_id="dead", host="elsewhere")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    entry = {
        "name": "hosp",
        "fhir_url": "http://127.0.0.1:9/fhir",
        "auth": {"kind": "none"},
        "export": {"level": "system"},
    }
    config = Config.model_validate({"lake": "lake", "sources": [entry], "folder": tmp_path})
    made = Session(config, config.source(None), this_process("one"), lambda _: True, now=lambda: START)
    intent = Intent(at=START, number=1, owner=DEAD, parameters={}, fingerprint="f", since_reason="full")
    made.ledger.write(ID, "intent.json", intent)
    url = "http://127.0.0.1:9/status/1"
    made.ledger.write(ID, "request.json", Request(at=START, intent=1, status_url=url, owner=DEAD))
    return made


def test_held_is_written_once_until_a_retry_answers_it_and_then_anew(session: Session) -> None:
    close(session, ID, "held", "first")
    close(session, ID, "held", "not heard")
    assert session.ledger.read(ID).closings["held"].reason == "first"
    retry(session, ID)
    facts = session.ledger.read(ID)
    assert facts.closings == {}
    assert session.next_step(facts) != Closed("held")
    close(session, ID, "held", "second")
    facts = session.ledger.read(ID)
    assert session.next_step(facts) == Closed("held")
    assert {number: held.reason for number, held in facts.helds.items()} == {1: "first", 2: "second"}
    retry(session, ID, accept_partial=True)
    facts = session.ledger.read(ID)
    assert (sorted(facts.retries), facts.closings, facts.taken_as_it_is) == ([1, 2], {}, True)


@pytest.mark.parametrize("state", ["gone", "rejected", "cancelled", "withdrawing", "withdrawn", ""])
def test_what_is_not_held_is_not_retried_and_what_to_do_is_said(session: Session, state: str) -> None:
    if state:
        close(session, ID, state, "over")
    with pytest.raises(ConfigError, match="not held") as refused:
        retry(session, ID)
    assert ("fhir-export run hosp" if state else "fhir-export show") in refused.value.advice
    assert session.ledger.read(ID).retries == {}


def test_a_chain_is_whole_when_the_new_export_knows_of_it(session: Session) -> None:
    session.ledger.write(ID, "successor.json", Successor(at=START, export_id=NEXT))
    assert not session.ledger.read(ID).successor_opened
    session.ledger.write(NEXT, "succeeds.json", Succeeds(at=START, export_id=ID, number=1))
    assert session.ledger.read(ID).successor_opened
    assert session.ledger.export_ids() == [ID, NEXT]


@pytest.mark.parametrize("named", [ID, "../../elsewhere", ""])
def test_a_successor_that_is_no_other_export_opens_nothing(session: Session, named: str) -> None:
    session.ledger.write(ID, "successor.json", Successor(at=START, export_id=named))
    assert session.ledger.read(ID).successor_opened


def test_trouble_with_the_status_is_noted_once_and_a_handful_at_most(session: Session) -> None:
    """Nobody listens at that port."""
    for _ in range(3):
        assert isinstance(look(session, session.ledger.read(ID), 0), NotYet)
    (only,) = session.ledger.read(ID).looks
    assert "127.0.0.1:9" in only.reason


def test_an_attempt_that_was_put_off_is_made_again_when_the_server_said(session: Session) -> None:
    """Protocol 18: not before, although our own pause is shorter."""
    attempt = claim_attempt(session, ID)
    with pytest.raises(Unreachable), recorded(session, attempt):
        raise Unreachable("HTTP 503", "", 7200.0)
    error: AttemptError = session.ledger.read(ID).attempt_errors[1]
    assert error.retry_at == START + timedelta(hours=2)
    step = session.next_step(session.ledger.read(ID))
    assert isinstance(step, Ingest)
    assert step.not_before == START + timedelta(hours=2)


def test_a_server_that_says_at_once_over_and_over_is_asked_less_and_less(session: Session) -> None:
    """Protocol 18: `Retry-After: 0` at a kick-off must not become a hot loop; each request leaves facts."""
    waits = [(_again(session, number, 0.0) - START).total_seconds() for number in range(1, 40)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.5, 300.0)
    assert _again(session, 30, 7200.0) == START + timedelta(hours=2), "what it asks for is obeyed"
