"""Facts are written once, and one that cannot be read is damaged, never absent (design, Facts)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import LakeError
from pipeline.exports.facts import Claim, ClosingFact, Intent, IntentError, Request
from pipeline.exports.ledger import Ledger
from pipeline.exports.owner import Owner
from pipeline.exports.state import Damaged, KickOff, Policy, next_step
from pipeline.lake.lake import open_lake

ID = "20260131T020000Z"
NOW = datetime(2026, 1, 31, 2, tzinfo=UTC)
WHO = Owner(run_id="r", host="h")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_lake("lake", tmp_path), "hosp_a")


def request(url: str = "http://127.0.0.1/job/1") -> Request:
    return Request(at=NOW, intent=1, status_url=url, owner=WHO)


def intent(number: int = 1) -> Intent:
    return Intent(at=NOW, number=number, owner=WHO, parameters={}, fingerprint="f", since_reason="full")


def claim(number: int) -> Claim:
    return Claim(at=NOW, number=number, owner=WHO)


def raw(ledger: Ledger, name: str) -> Path:
    assert ledger.lake.folder
    path = ledger.lake.folder / ledger.folder(ID) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_an_export_without_facts_reads_as_empty(ledger: Ledger) -> None:
    facts = ledger.read(ID)
    assert (facts.intents, facts.request, facts.damaged) == ((), None, ())
    assert facts.label == f"hosp_a/{ID}"
    assert ledger.export_ids() == []


def test_what_was_written_is_read_back(ledger: Ledger) -> None:
    written = {
        "intent.json": intent(),
        "intent-0001.error.json": IntentError(at=NOW, reason="HTTP 503"),
        "intent-0002.json": intent(2),
        "request.json": request(),
        "attempts/0001.json": claim(1),
        "attempts/0002.json": claim(2),
        "gone.json": ClosingFact(at=NOW, reason="HTTP 404"),
    }
    for name, fact in written.items():
        assert ledger.write(ID, name, fact)
    facts = ledger.read(ID)
    assert facts.intents == (intent(), intent(2))
    assert facts.intent_errors[1].reason == "HTTP 503"
    assert facts.request == request()
    assert facts.last_claim == claim(2)
    assert facts.closings["gone"].reason == "HTTP 404"
    assert facts.damaged == ()


def test_a_fact_is_written_once(ledger: Ledger) -> None:
    assert ledger.write(ID, "request.json", request("http://127.0.0.1/job/1"))
    assert not ledger.write(ID, "request.json", request("http://127.0.0.1/job/2"))
    assert ledger.write(ID, "request.json", request("http://127.0.0.1/job/1"))
    assert ledger.read(ID).request == request("http://127.0.0.1/job/1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"at": "yesterday"}',
        b'{"at": "2026-01-31T02:00:00Z"}',
    ],
)
@pytest.mark.parametrize(
    "name", ["intent.json", "request.json", "attempts/0001.json", "receipts/0001.json", "manifest.json"]
)
def test_a_torn_or_strange_fact_is_damaged_and_stops_the_export(
    ledger: Ledger, name: str, content: bytes
) -> None:
    raw(ledger, name).write_bytes(content)
    facts = ledger.read(ID)
    assert facts.damaged == (name,)
    assert next_step(facts, NOW, Policy(), lambda _: True) == Damaged((name,))


def test_a_fact_cut_at_any_byte_is_never_read_as_whole(ledger: Ledger) -> None:
    whole = request().model_dump_json(indent=1).encode()
    path = raw(ledger, "request.json")
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert ledger.read(ID).damaged == ("request.json",)


def test_a_write_that_did_not_finish_is_no_fact(ledger: Ledger) -> None:
    raw(ledger, ".unfinished-0123").write_bytes(b"{")
    facts = ledger.read(ID)
    assert facts.damaged == ()
    assert isinstance(next_step(facts, NOW, Policy(), lambda _: True), KickOff)


def test_members_of_a_later_version_do_no_harm(ledger: Ledger) -> None:
    text = request().model_dump_json().replace("{", '{"of_version_9": [1], ', 1)
    raw(ledger, "request.json").write_text(text)
    assert ledger.read(ID).request == request()


def test_a_damaged_batch_is_an_error_when_it_is_asked_for(ledger: Ledger) -> None:
    raw(ledger, "landed/patient-000000.json").write_bytes(b"{")
    with pytest.raises(LakeError, match="patient-000000"):
        ledger.landed(ID)


def test_a_missing_page_of_the_manifest_is_an_error(ledger: Ledger) -> None:
    page = {"at": NOW.isoformat(), "transaction_time": "2026-01-31T02:00:00Z", "pages": 2, "page": {}}
    raw(ledger, "manifest.json").write_text(str(page).replace("'", '"'))
    with pytest.raises(LakeError, match="page 2"):
        ledger.manifest_pages(ID)


def test_only_ids_of_moments_are_exports(ledger: Ledger) -> None:
    for name in (ID, "20260130T020000Z", "notes", ".trash", "20261399T020000Z"):
        ledger.lake.put_new(f"hosp_a/exports/{name}/intent.json", b"")
    assert ledger.export_ids() == ["20260130T020000Z", ID]


def test_sources_do_not_see_each_other(ledger: Ledger) -> None:
    ledger.write(ID, "intent.json", intent())
    assert Ledger(ledger.lake, "hosp_b").export_ids() == []
    assert Ledger(ledger.lake, "hosp_b").read(ID).intents == ()
