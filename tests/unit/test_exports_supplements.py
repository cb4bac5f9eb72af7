"""Supplements that cannot be asked for, are refused, or wait while the configuration changes: none stays for
ever, none stands in another's way, and none counts for what it has not brought (protocol fact 15)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from published_by_hand import HandMade
from receipts_by_hand import OWNER, receipt_of

from pipeline.config import Config
from pipeline.errors import ConfigError, ExportError, KickoffRejected
from pipeline.exports.facts import (
    SUPPLEMENT,
    ClosingFact,
    Intent,
    IntentError,
    Lacks,
    MembersFact,
    Request,
    Succeeds,
    Successor,
)
from pipeline.exports.identity import export_id_at, unscheduled_id
from pipeline.exports.ledger import Facts
from pipeline.exports.members import JOINED, MEMBERS, STAYED, Member, joined_digests, members_schema
from pipeline.exports.owner import this_process
from pipeline.exports.planning import Members, NothingToAsk
from pipeline.exports.request import asked_for, line_of, plan_kickoff, request_export
from pipeline.exports.session import Session
from pipeline.exports.standing import open_exports
from pipeline.exports.state import AskAgain, Closed, KickOff, Policy, Reject, Tidy, describe, next_step
from pipeline.exports.successor import open_successor
from pipeline.exports.watermark import Mark, covered_members

NOW = datetime(2026, 2, 1, 2, tzinfo=UTC)
FIRST, MAIN = "20260130T020000Z", "20260131T020000Z"
SECOND, THIRD = "20260131T023001Z", "20260131T024001Z"
STAYER, JOINER = Member("stayer", "active"), Member("joiner", "active")
MARK = "2026-01-31T02:00:00Z"


class Hospital:
    """Shows the group, or does not; takes every kick-off."""

    def __init__(self) -> None:
        self.status, self.reads, self.kickoffs = 200, 0, list[dict[str, Any]]()
        hospital = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hospital.reads += 1
                members = [{"entity": {"reference": f"Patient/{each.patient}"}} for each in (STAYER, JOINER)]
                self._answer(hospital.status, {"resourceType": "Group", "id": "g", "member": members})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hospital.kickoffs.append(json.loads(body))
                self._answer(202, {})

            def _answer(self, status: int, resource: dict[str, Any]) -> None:
                data = json.dumps(resource).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/fhir+json")
                self.send_header("Content-Location", f"{hospital.url}/status/1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/fhir"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hospital() -> Iterator[Hospital]:
    made = Hospital()
    yield made
    made.server.shutdown()
    made.server.server_close()


def session(folder: Path, url: str = "http://127.0.0.1:9/fhir", **others: Any) -> Session:
    export = {"group": "g", "types": ["Patient", "Encounter"]} | others.pop("export", {})
    entry = {"name": "hosp", "fhir_url": url, "auth": {"kind": "none"}, "export": export, **others}
    config = Config.model_validate({"lake": "lake", "sources": [entry], "folder": folder})
    return Session(config, config.source(None), this_process("one"), lambda _: True, now=lambda: NOW)


def published(
    made: Session, export_id: str, since: str | None = MARK, *, watermark: str | None = MARK, **others: Any
) -> None:
    """An export of that session's line."""
    asked = asked_for(made.source, made.profile)
    intent = Intent(
        at=NOW,
        number=1,
        owner=OWNER,
        parameters={"types": list(others.pop("types", asked.types)), "since": since},
        fingerprint="f",
        since_reason="",
        **({"line": line_of(made.source, asked)} | others),
    )
    receipt = receipt_of(MARK, complete=watermark is not None, watermark=watermark)
    write = made.ledger.write
    assert write(export_id, "intent.json", intent)
    assert write(export_id, "request.json", Request(at=NOW, intent=1, status_url="u", owner=OWNER))
    assert write(export_id, "receipts/0001.json", receipt)


def joined(made: Session, lacks: Lacks | None = None) -> str:
    """A night on which somebody was new in the group; its supplement, which is just opened."""
    published(made, MAIN, lacks=lacks or Lacks(patients=1))
    digests = joined_digests([STAYER.digest, JOINER.digest])
    fact = MembersFact(at=NOW, digests=digests, joined=joined_digests([JOINER.digest]))
    assert made.ledger.write(MAIN, "members-0001.json", fact)
    return open_successor(made, MAIN)


def words_of(made: Session, export_id: str) -> str:
    facts = made.ledger.read(export_id)
    return " ".join(describe(facts, made.next_step(facts), made.now()))


# --- a request that cannot be prepared -------------------------------------------------------------------


def tried_until_over(made: Session, export_id: str, hours: float = 24) -> list[datetime]:
    """Whenever the rules say so, on a clock of its own; when that was."""
    begun, tries = made.now(), list[datetime]()
    clock = begun
    while (clock - begun).total_seconds() < hours * 3600:
        here = replace(made, now=lambda at=clock: at)  # type: ignore[misc]
        step = here.next_step(here.ledger.read(export_id))
        if not isinstance(step, KickOff | Reject):
            break
        if isinstance(step, KickOff) and step.not_before and step.not_before > clock:
            clock = step.not_before
            continue
        tries.append(clock)
        assert len(tries) < 20, "a loop without a pause"
        with pytest.raises(ExportError):
            request_export(here, export_id, timedelta(0))
    return tries


def test_a_group_that_is_not_shown_any_more_ends_the_supplement(tmp_path: Path, hospital: Hospital) -> None:
    made = session(tmp_path, hospital.url)
    supplement = joined(made)
    hospital.status = 403
    tries = tried_until_over(made, supplement)
    assert hospital.reads <= 5, "never a loop without a pause"
    pauses = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(tries)]
    assert pauses[0] >= 4
    assert pauses[2] > 4 * pauses[0]
    assert "rejected" in made.ledger.read(supplement).closings
    assert "(HTTP 403)" in words_of(made, supplement)
    assert open_exports(made) == [], "the schedule is free"
    assert hospital.kickoffs == []


def test_a_group_that_is_shown_again_is_asked_for(tmp_path: Path, hospital: Hospital) -> None:
    made = session(tmp_path, hospital.url)
    supplement = joined(made)
    hospital.status = 503
    with pytest.raises(ExportError):
        request_export(made, supplement, timedelta(0))
    assert words_of(made, supplement).startswith("failing")
    hospital.status = 200
    facts = request_export(replace(made, now=lambda: NOW + timedelta(minutes=1)), supplement)
    assert facts.asked is not None
    assert facts.asked.patients == 1
    (body,) = hospital.kickoffs
    named = [each["valueReference"] for each in body["parameter"] if each["name"] == "patient"]
    assert named == [{"reference": "Patient/joiner"}]


def test_one_that_nobody_asks_for_is_over_at_its_deadline(tmp_path: Path) -> None:
    made = session(tmp_path)
    supplement = joined(made)
    later = replace(made, now=lambda: NOW + timedelta(hours=24, seconds=1))
    facts = made.ledger.read(supplement)
    assert isinstance(made.next_step(facts), KickOff)
    assert isinstance(later.next_step(facts), Reject)


def test_an_export_that_was_put_off_and_cannot_be_prepared_since_ends_too(tmp_path: Path) -> None:
    """A type is misspelt while the server says 'later'."""
    made = session(tmp_path, export={"types": ["Pateint"]})
    intent = Intent(at=NOW, number=1, owner=OWNER, parameters={}, fingerprint="f", since_reason="")
    made.ledger.write(MAIN, "intent.json", intent)
    put_off = IntentError(at=NOW, reason="busy", retry_at=NOW + timedelta(seconds=1))
    made.ledger.write(MAIN, "intent-0001.error.json", put_off)
    assert len(tried_until_over(made, MAIN)) <= 6
    assert "'Pateint' is not a resource type" in words_of(made, MAIN)
    assert open_exports(made) == []


def test_a_new_export_that_cannot_be_prepared_leaves_nothing_behind(tmp_path: Path) -> None:
    made = session(tmp_path, export={"types": ["Pateint"]})
    with pytest.raises(ConfigError):
        request_export(made, MAIN, timedelta(0))
    assert made.ledger.export_ids() == []


# --- a configuration that has changed meanwhile ------------------------------------------------------------


@pytest.mark.parametrize(
    "export",
    [{"since": "never"}, {"level": "system", "group": None}, {"elements": ["id"]}, {"group": "other"}],
)
def test_what_no_longer_fits_is_not_asked_for(
    tmp_path: Path, hospital: Hospital, export: dict[str, Any]
) -> None:
    supplement = joined(session(tmp_path, hospital.url))
    made = session(tmp_path, hospital.url, export=export)
    with pytest.raises(KickoffRejected):
        request_export(made, supplement)
    assert "something else is exported now" in words_of(made, supplement)
    assert hospital.kickoffs == []
    assert open_exports(made) == []


def test_nor_is_what_completes_a_withdrawn_export(tmp_path: Path, hospital: Hospital) -> None:
    made = session(tmp_path, hospital.url)
    supplement = joined(made)
    made.ledger.write(MAIN, "withdrawn.json", ClosingFact(at=NOW, reason="by hand"))
    with pytest.raises(NothingToAsk):
        plan_kickoff(made, made.ledger.read(supplement), Members(made))


@pytest.mark.parametrize("types", [["Patient"], ["Patient", "Encounter", "Condition"]])
def test_types_that_have_changed_since_are_asked_for_as_then(
    tmp_path: Path, hospital: Hospital, types: list[str]
) -> None:
    supplement = joined(session(tmp_path, hospital.url))
    made = session(tmp_path, hospital.url, export={"types": types})
    asked = request_export(made, supplement).asked
    assert asked is not None
    assert asked.parameters["types"] == ["Patient", "Encounter"]


@pytest.mark.parametrize(
    ("types", "line", "heals"),
    [
        (["Patient", "Encounter"], "l", True),
        (["Encounter", "Condition", "Patient"], "l", True),
        (["Patient"], "l", False),
        ([], "l", False),
        (["Patient", "Encounter"], "other", False),
    ],
)
def test_a_supplement_counts_for_what_it_has_brought(
    tmp_path: Path, types: list[str], line: str, heals: bool
) -> None:
    hand = HandMade(tmp_path)
    made = hand.session
    succeeds = Succeeds(at=NOW, export_id=MAIN, number=1, supplement_of=MAIN, lacks=Lacks(patients=1))
    published(made, MAIN, types=["Patient", "Encounter"], line="l", lacks=Lacks(patients=1))
    published(made, SECOND, None, types=types, line=line, patients=1)
    made.ledger.write(MAIN, "successor.json", Successor(at=NOW, export_id=SECOND, cause=SUPPLEMENT))
    made.ledger.write(SECOND, "succeeds.json", succeeds)
    for export_id, there in ((MAIN, {STAYER: STAYED, JOINER: JOINED}), (SECOND, {JOINER: STAYED})):
        rows = [
            {"patient": each.patient, "standing": each.standing, "state": state}
            for each, state in there.items()
        ]
        hand._small(MEMBERS, export_id, 1, rows, members_schema())
    covered = covered_members(made, [Mark(made.ledger.read(MAIN), MARK)])
    assert covered == ({STAYER.digest, JOINER.digest} if heals else {STAYER.digest})


@pytest.mark.parametrize(
    ("later", "closing", "overtaken"),
    [
        ({}, None, True),
        ({"since": None}, None, True),
        ({"watermark": None}, None, False),
        ({"line": "other"}, None, False),
        ({}, "withdrawn", False),
        ({"supplement": True}, None, False),
    ],
)
def test_what_a_later_export_has_found_out_itself_is_not_asked_for_again(
    tmp_path: Path, later: dict[str, Any], closing: str | None, overtaken: bool
) -> None:
    """Chaos seed 8104: the job is given back then, which would wait for the supplement."""
    made = session(tmp_path, export={"level": "system", "group": None})
    published(made, MAIN, line="l", lacks=Lacks(patients=1))
    assert isinstance(made.next_step(made.ledger.read(MAIN)), AskAgain)
    since = later.pop("since", MARK)
    if later.pop("supplement", False):
        fact = Succeeds(at=NOW, export_id=FIRST, number=1, supplement_of=FIRST)
        made.ledger.write(THIRD, "succeeds.json", fact)
    published(made, THIRD, since, **{"line": "l", **later})
    if closing:
        made.ledger.write(THIRD, f"{closing}.json", ClosingFact(at=NOW, reason="by hand"))
    step = made.next_step(made.ledger.read(MAIN))
    assert isinstance(step, Tidy) == overtaken
    assert isinstance(step, AskAgain) != overtaken


def test_a_supplement_that_is_opened_is_finished_whatever_comes_later(tmp_path: Path) -> None:
    made = session(tmp_path, export={"level": "system", "group": None})
    published(made, MAIN, lacks=Lacks(patients=1))
    made.ledger.write(MAIN, "successor.json", Successor(at=NOW, export_id=SECOND, cause=SUPPLEMENT))
    published(made, THIRD)
    assert isinstance(made.next_step(made.ledger.read(MAIN)), AskAgain)


# --- supplements of types ----------------------------------------------------------------------------------


def behind(made: Session, lacks: Lacks) -> str:
    published(made, MAIN, types=["Patient"], lacks=lacks)
    return open_successor(made, MAIN)


@pytest.mark.parametrize("state", ["rejected", "gone", "cancelled", "held", "withdrawn", "published"])
def test_who_joined_is_asked_for_whatever_became_of_the_types(tmp_path: Path, state: str) -> None:
    made = session(tmp_path)
    first = behind(made, Lacks(types=("Encounter",), patients=2))
    facts = made.ledger.read(first)
    assert facts.succeeds is not None
    assert facts.succeeds.lacks == Lacks(types=("Encounter",), patients=2)
    if state == "published":
        published(made, first, None, types=["Encounter"], watermark=None)
    else:
        made.ledger.write(first, f"{state}.json", ClosingFact(at=NOW, reason="over"))
    step = made.next_step(made.ledger.read(first))
    if state == "withdrawn":
        assert step == Closed("withdrawn")
        return
    assert step == AskAgain(1, "supplement")
    second = open_successor(made, first)
    succeeds = made.ledger.read(second).succeeds
    assert succeeds is not None
    assert (succeeds.supplement_of, succeeds.lacks) == (MAIN, Lacks(patients=2))
    assert not isinstance(made.next_step(made.ledger.read(first)), AskAgain), "once"
    made.ledger.write(second, "rejected.json", ClosingFact(at=NOW, reason="over"))
    assert made.next_step(made.ledger.read(second)) == Closed("rejected"), "and no further"


def test_types_whose_job_is_gone_are_asked_for_again_and_then_the_patients() -> None:
    succeeds = Succeeds(
        at=NOW,
        export_id=MAIN,
        number=1,
        supplement_of=MAIN,
        lacks=Lacks(types=("Encounter",), patients=1),
    )
    gone = Facts(
        "hosp", SECOND, succeeds=succeeds, closings={"gone": ClosingFact(at=NOW, reason="", cause="gone")}
    )

    def step(facts: Facts, times: int) -> Any:
        return next_step(facts, NOW, Policy(ask_again={"gone": times}), lambda _: True)

    assert step(gone, 2) == AskAgain(2, "gone")
    assert step(gone, 1) == AskAgain(1, "supplement")
    named = replace(gone, successor=Successor(at=NOW, export_id=THIRD, cause=SUPPLEMENT))
    assert step(named, 2) == AskAgain(1, "supplement"), "what was begun is finished as it was begun"


@pytest.mark.parametrize(("asked", "full"), [(True, True), (False, False)])
def test_types_that_the_server_refused_alone_come_in_a_full_export(
    tmp_path: Path, asked: bool, full: bool
) -> None:
    """At level group, types outside of the compartment only come with others. One that was never sent was not
    refused."""
    made = session(tmp_path, export={"level": "system", "group": None})
    first = behind(made, Lacks(types=("Encounter",)))
    if asked:
        intent = Intent(
            at=NOW,
            number=1,
            owner=OWNER,
            parameters={"types": ["Encounter"]},
            fingerprint="f",
            since_reason="",
        )
        made.ledger.write(first, "intent.json", intent)
    made.ledger.write(first, "rejected.json", ClosingFact(at=NOW, reason="HTTP 400"))
    plan = plan_kickoff(made, Facts("hosp", THIRD))
    assert (plan.since.value is None) == full
    assert plan.parameters.types == (("Patient", "Encounter") if full else ("Patient",))
    if full:
        assert plan.since.reason == f"full: the server has refused the supplement {first} of Encounter"


def test_the_end_of_the_window_is_sent_with_types_and_not_with_patients(
    tmp_path: Path, hospital: Hospital
) -> None:
    made = session(tmp_path, hospital.url, knobs={"until_lag": 300})
    first = joined(made, Lacks(types=("Encounter",), patients=1))
    plan = plan_kickoff(made, made.ledger.read(first))
    assert (plan.parameters.types, plan.parameters.until) == (("Encounter",), "2026-02-01T01:55:00Z")
    made.ledger.write(first, "rejected.json", ClosingFact(at=NOW, reason="HTTP 400"))
    plan = plan_kickoff(made, made.ledger.read(open_successor(made, first)))
    assert (plan.parameters.patients, plan.parameters.until) == (("joiner",), None)
    assert plan.parameters.types == ("Patient", "Encounter"), "as the main one asked for them"


def test_an_added_type_that_is_not_exported_any_more_is_not_asked_for(tmp_path: Path) -> None:
    made = session(tmp_path, export={"level": "system", "group": None})
    first = behind(made, Lacks(types=("Encounter",)))
    changed = session(tmp_path, export={"level": "system", "group": None, "types": ["Patient"]})
    with pytest.raises(NothingToAsk, match="Encounter: not exported any more"):
        plan_kickoff(changed, changed.ledger.read(first))


# --- ids ---------------------------------------------------------------------------------------------------


def test_no_schedule_has_the_id_of_a_supplement(tmp_path: Path) -> None:
    made = session(tmp_path)
    published(made, MAIN, lacks=Lacks(patients=1))
    assert open_successor(made, MAIN) == export_id_at(NOW + timedelta(seconds=1))
    whole_minute = {export_id_at(NOW + timedelta(seconds=each)) for each in range(-5, 60)}
    assert unscheduled_id(NOW - timedelta(seconds=5), whole_minute) == "20260201T020101Z"


@pytest.mark.parametrize("known", [True, False])
def test_an_id_that_somebody_took_meanwhile_is_left_to_them(tmp_path: Path, known: bool) -> None:
    """Killed between the two facts of the chain; finished when another run has that id."""
    made = session(tmp_path)
    published(made, MAIN, lacks=Lacks(patients=1))
    made.ledger.write(MAIN, "successor.json", Successor(at=NOW, export_id=SECOND, cause=SUPPLEMENT))
    if known:
        succeeds = Succeeds(at=NOW, export_id=FIRST, number=1, supplement_of=FIRST)
        made.ledger.write(SECOND, "succeeds.json", succeeds)
    else:
        published(made, SECOND)
    new = open_successor(made, MAIN)
    assert new not in (MAIN, SECOND)
    assert made.ledger.read(SECOND).supplement_of == (FIRST if known else "")
    assert made.ledger.read(new).supplement_of == MAIN
    assert open_successor(made, MAIN) == new, "once"
    assert made.ledger.export_ids() == [MAIN, SECOND, new]
