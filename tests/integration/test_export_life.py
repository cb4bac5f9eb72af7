"""An export's life against a real server: in part, gone, past its deadline, held, retried, withdrawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ingest_by_hand import EXPORT, ingest, session_of, stage_everything, wait_until_ready
from nightly_site import Site, open_site

from pipeline.bulkdata.answers import Complete
from pipeline.errors import ConfigError, ExportError, JobFailed, JobGone, StillRunning, VerificationFailed
from pipeline.exports import publishing
from pipeline.exports.attempt import claim_attempt, recorded
from pipeline.exports.manifests import live_manifest, open_manifest
from pipeline.exports.overview import summaries, watching_session
from pipeline.exports.owner import this_process
from pipeline.exports.repair import retry, withdraw
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.standing import open_exports
from pipeline.exports.state import AskAgain, Closed, Ingest, KickOff
from pipeline.exports.successor import open_successor
from pipeline.exports.watch import NotYet, look

STATUS = r"^/bulk/status/"
LATER = "20260102T020000Z"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    options = {"export_seconds": 0.1, "poll_seconds": 0.0, "patients": 8, "file_lines": 10}
    export = {"types": ["Patient", "Encounter"]}
    with open_site(tmp_path, export=export, source={"knobs": {"partial_below": 0.8}}, **options) as opened:
        yield opened


def with_source(session: Session, **changes: Any) -> Session:
    return replace(session, source=session.source.model_copy(update=changes))


def shown(site: Site) -> dict[str, Any]:
    """What `exports` says of the newest export run."""
    session = watching_session(site.config, site.source, is_dead=lambda _: True)
    return summaries(session)[0].as_json()


def rows(site: Site, table: str, export_id: str) -> int:
    if not (site.lake / "hosp" / "tables" / table / "_delta_log").exists():
        return 0
    return len(site.ids_in(table, export_id))


def asked_for(session: Session, export_id: str) -> str:
    facts = request_export(session, export_id)
    assert facts.request is not None
    for _ in range(200):
        if isinstance(session.client.status(facts.request.status_url), Complete):
            return facts.request.status_url
    raise AssertionError("never ready")


def cut_short(site: Site, session: Session, export_id: str) -> None:
    """The job answers with part of its files and no word about it, as Microsoft's does when cancelled."""
    site.sandbox.control(faults=[])
    answer = session.client.status(asked_for(session, export_id))
    assert isinstance(answer, Complete)
    page = dict(answer.manifest.pages[0])
    page["output"] = [each for each in page["output"] if each["type"] == "Patient"]
    site.sandbox.control(
        faults=[{"path": STATUS, "method": "GET", "status": 200, "times": None, "body": page}]
    )


# --- in part -------------------------------------------------------------------------------------------


def test_an_export_that_the_server_cut_short_is_held_and_taken_only_by_hand(site: Site) -> None:
    """Protocol 22: 200, part of the files, no error entry."""
    whole = ingest(session_of(site, "first"), wait_until_ready(site))
    assert whole.watermark is not None
    session = with_source(session_of(site, "second"), on_partial="hold")
    cut_short(site, session, LATER)
    with pytest.raises(VerificationFailed, match=r"encounter none of \d+ lines"):
        ingest(session, LATER)
    assert rows(site, "patient", LATER) == 0, "nothing of it is visible"
    facts = session.ledger.read(LATER)
    assert session.next_step(facts) == Closed("held")
    assert facts.released is None, "the job is kept on the server"
    said = shown(site)
    assert EXPORT in str(said["reason"])
    assert f"fhir-export retry hosp/{LATER} --accept-partial" in str(said["reason"])
    retry(session, LATER)
    with pytest.raises(VerificationFailed):
        ingest(replace(session, owner=this_process("third")), LATER)
    assert sorted(session.ledger.read(LATER).helds) == [1, 2], "held again, in a fact of its own"
    retry(session, LATER, accept_partial=True)
    receipt = ingest(replace(session, owner=this_process("fourth")), LATER)
    assert receipt.watermark is None
    assert rows(site, "patient", LATER) == len(site.ids_in_truth(1)["Patient"])
    # The next one is measured by what was taken as it is.
    third = "20260103T020000Z"
    cut_short(site, session, third)
    assert ingest(replace(session, owner=this_process("fifth")), third).incomplete == ()


def test_an_export_that_is_published_in_part_leaves_the_watermark_until_it_is_taken_as_it_is(
    site: Site,
) -> None:
    ingest(session_of(site, "first"), wait_until_ready(site))
    session = session_of(site, "second")
    cut_short(site, session, LATER)
    receipt = ingest(session, LATER)
    assert (receipt.watermark, len(receipt.partial)) == (None, 1)
    assert rows(site, "encounter", LATER) == 0
    said = shown(site)
    assert said["state"] == "published"
    assert "smaller than the last whole one" in str(said["reason"])
    assert "--accept-partial" in str(said["next_step"])
    assert "later exports are measured by it" in retry(session, LATER, accept_partial=True)
    third = "20260103T020000Z"
    cut_short(site, session, third)
    assert ingest(replace(session, owner=this_process("third")), third).watermark is not None


def test_errors_that_the_server_reports_hold_an_export_where_that_is_configured(site: Site) -> None:
    """Protocol 22: 200 with `error` entries is partial success."""
    session = with_source(session_of(site, "one"), on_partial="hold")
    answer = session.client.status(asked_for(session, EXPORT))
    assert isinstance(answer, Complete)
    page = dict(answer.manifest.pages[0])
    page["error"] = [{"type": "OperationOutcome", "url": f"{site.sandbox.base_url}/fhir/problems.ndjson"}]
    outcome = (
        '{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"exception",'
        '"diagnostics":"Wilhelmina"}]}\n'
    )
    ndjson = {"Content-Type": "application/fhir+ndjson"}
    script = [
        {"path": STATUS, "method": "GET", "status": 200, "times": None, "body": page},
        {"path": r"problems\.ndjson", "status": 200, "times": None, "headers": ndjson, "body": outcome},
    ]
    site.sandbox.control(faults=script)
    with pytest.raises(VerificationFailed, match="the server reports 1 errors"):
        ingest(session, EXPORT)
    assert rows(site, "patient", EXPORT) == 0
    retry(session, EXPORT, accept_partial=True)
    receipt = ingest(replace(session, owner=this_process("two")), EXPORT)
    assert (receipt.error_entries["error"], receipt.error_codes) == (1, ("exception",))
    said = site.cli("show", f"hosp/{EXPORT}").stdout
    assert "1 error" in said
    assert "exception" in said
    assert "Wilhelmina" not in said


# --- gone, failed, past the deadline -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"status": 404, "body": ""}, "gone"),
        ({"status": 410, "body": ""}, "gone"),
        (
            {
                "status": 500,
                "body": {
                    "resourceType": "OperationOutcome",
                    "issue": [
                        {
                            "severity": "error",
                            "code": "exception",
                            "diagnostics": "export operation failed for reason: x",
                        }
                    ],
                },
            },
            "failed",
        ),
    ],
    ids=["404", "410", "failed"],
)
def test_a_job_without_result_is_asked_again_once_by_an_export_run_of_its_own(
    site: Site, fault: dict[str, Any], cause: str
) -> None:
    """Protocol 24: a new kick-off is the only way on, and the queue is never blocked."""
    # The look and the ingest attempt, and both once more for the successor: the chain has one link.
    site.sandbox.control(faults=[{"path": STATUS, "method": "GET", "times": 2, **fault}])
    night = site.run_night()
    first, second = site.export_ids()
    assert (night["export_id"], night["state"]) == (second, "published")
    old, new = site.facts(first), site.facts(second)
    assert old.closings["gone"].cause == cause
    assert old.successor is not None
    assert new.succeeds is not None
    assert (old.successor.export_id, new.succeeds.export_id, new.succeeds.number) == (second, first, 1)
    assert site.ids_in("patient", second) == site.ids_in_truth(1)["Patient"]
    assert open_exports(site.session) == []


def test_a_chain_ends_where_the_configuration_says_and_the_next_night_is_free(site: Site) -> None:
    site.sandbox.control(faults=[{"path": STATUS, "method": "GET", "times": None, "status": 404, "body": ""}])
    night = site.run_night(check=False)
    assert (night["state"], len(site.export_ids())) == ("gone", 2)
    assert open_exports(site.session) == []
    assert "fhir-export run hosp" in str(shown(site)["next_step"])


def gone(site: Site, session: Session) -> None:
    asked_for(session, EXPORT)
    site.sandbox.control(faults=[{"path": STATUS, "method": "GET", "times": 1, "status": 404, "body": ""}])
    attempt = claim_attempt(session, EXPORT)
    with pytest.raises(JobGone), recorded(session, attempt):
        open_manifest(session, attempt)


def test_a_chain_that_was_cut_between_its_two_facts_is_finished_and_opened_once(site: Site) -> None:
    session = session_of(site, "one")
    gone(site, session)
    facts = session.ledger.read(EXPORT)
    assert session.next_step(facts) == AskAgain(1, "gone")
    assert [each.export_id for each in open_exports(session)] == [EXPORT], "the schedule waits"
    new = open_successor(session, EXPORT)
    (site.lake / "hosp" / "exports" / new / "succeeds.json").unlink()  # as a kill leaves it
    assert session.next_step(session.ledger.read(EXPORT)) == AskAgain(1, "gone")
    assert open_successor(session, EXPORT) == new
    assert open_successor(session, EXPORT) == new, "again it opens nothing"
    assert session.ledger.export_ids() == [EXPORT, new]
    step = session.next_step(session.ledger.read(new))
    assert isinstance(step, KickOff)
    assert [each.export_id for each in open_exports(session)] == [new]


def test_a_run_that_was_opened_since_is_taken_for_the_successor(site: Site) -> None:
    session = session_of(site, "one")
    gone(site, session)
    asked_for(session, LATER)
    assert open_successor(session, EXPORT) == LATER
    assert session.ledger.export_ids() == [EXPORT, LATER]


def test_what_was_cancelled_by_hand_is_not_asked_again(site: Site) -> None:
    session = session_of(site, "one")
    asked_for(session, EXPORT)
    site.cli("cancel", f"hosp/{EXPORT}")
    assert session.next_step(session.ledger.read(EXPORT)) == Closed("cancelled")
    with pytest.raises(ConfigError, match="not to be asked again"):
        open_successor(session, EXPORT)
    assert session.ledger.export_ids() == [EXPORT]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 202, "body": ""},
        {"status": 403, "body": ""},
        {"status": 503, "headers": {"Retry-After": "90"}, "body": ""},
        {"truncate_after": 0, "cut": True},
    ],
    ids=["202", "403", "503", "dropped"],
)
def test_an_export_that_is_never_ready_ends_at_its_deadline_with_a_reason(
    site: Site, fault: dict[str, Any]
) -> None:
    """Protocol 25: then cancel; where even that fails, the job may still run."""
    session = session_of(site, "one")
    asked_for(session, EXPORT)
    status = fault.get("status")
    deleted = status in (202, 403)
    script = [{"path": STATUS, "method": "GET", "times": None, **fault}]
    if not deleted:
        script.append({"path": STATUS, "method": "DELETE", "times": None, "status": 503})
    site.sandbox.control(faults=script)
    seen = look(session, session.ledger.read(EXPORT), 0)
    assert isinstance(seen, NotYet)
    if status != 202:
        assert str(shown(site)["reason"]).count("asking it failed") == 1
        look(session, session.ledger.read(EXPORT), 1)
        assert len(session.ledger.read(EXPORT).looks) == 1, "the same trouble is written down once"
    late = replace(session, now=lambda: session.now() + timedelta(hours=25))
    attempt = claim_attempt(late, EXPORT)
    with pytest.raises(JobFailed, match="not ready within 24 h"), recorded(late, attempt):
        open_manifest(late, attempt)
    facts = session.ledger.read(EXPORT)
    closing = facts.closings["cancelled"]
    assert closing.cause == "deadline"
    assert status in (None, 202) or str(status) in closing.reason
    assert session.next_step(facts) == Closed("cancelled"), "asked again only where that is configured"
    assert ("may still run" in str(shown(site)["reason"])) == (not deleted)
    jobs = site.sandbox.control()["jobs"]
    assert all(job["deleted"] == deleted for job in jobs)


# --- held, retried, withdrawn --------------------------------------------------------------------------


def held(site: Site) -> Session:
    """Three attempts that end at files which are damaged at the server."""
    wait_until_ready(site)
    script = [{"path": r"\.ndjson", "times": None, "status": 200, "body": "<html>no</html>"}]
    site.sandbox.control(faults=script)
    # In a process of its own: while ours lives, whatever it has claimed is being worked on.
    done = site.cli("run", "hosp", "--wait", check=False)
    session = session_of(site, "last")
    assert session.next_step(session.ledger.read(EXPORT)) == Closed("held"), done.stderr
    return session


def test_a_held_export_is_retried_from_the_terminal_and_published(site: Site) -> None:
    session = held(site)
    said = shown(site)
    assert said["state"] == "held"
    assert f"fhir-export retry hosp/{EXPORT}" in str(said["next_step"])
    site.sandbox.control(faults=[])
    done = site.cli("retry", f"hosp/{EXPORT}", "--wait")
    assert "is published" in done.stderr + done.stdout
    facts = session.ledger.read(EXPORT)
    assert (facts.receipt is not None, facts.retries[1].after_attempt, facts.closings) == (True, 3, {})
    assert site.ids_in("patient", EXPORT) == site.ids_in_truth(1)["Patient"]
    refused = site.cli("retry", f"hosp/{EXPORT}", check=False)
    assert refused.returncode == 2
    assert "`dagster job execute -m pipeline.definitions -j hosp_ingest --tags " in refused.stderr


def test_a_held_export_is_withdrawn_from_the_terminal_and_the_job_deleted(site: Site) -> None:
    """Protocol 35."""
    session = held(site)
    site.sandbox.control(faults=[])
    done = site.cli("withdraw", f"hosp/{EXPORT}")
    assert "the job on the server is deleted" in done.stderr + done.stdout
    facts = session.ledger.read(EXPORT)
    assert session.next_step(facts) == Closed("withdrawn")
    assert facts.released is not None
    for refused in (retry, lambda *given: claim_attempt(session_of(site, "late"), EXPORT)):
        with pytest.raises(ExportError, match="withdrawn"):
            refused(session, EXPORT)
    assert "already" in withdraw(session, EXPORT)[0]


def half_published(site: Site, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Every table is committed, and the process died before it could say so."""
    session = session_of(site, "half")
    attempt = claim_attempt(session, wait_until_ready(site))
    stage_everything(session, attempt)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "write_lineage", die)
        with pytest.raises(KeyboardInterrupt):
            publishing.publish(session, attempt, open_manifest(session, attempt), ())
    assert rows(site, "patient", EXPORT)
    return session


def test_tables_of_a_publish_that_was_cut_short_are_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = half_published(site, monkeypatch)
    assert isinstance(session.next_step(session.ledger.read(EXPORT)), Ingest)
    done = withdraw(session, EXPORT)
    assert {"patient", "encounter"} <= {line.partition(":")[0] for line in done}
    assert rows(site, "patient", EXPORT) == rows(site, "encounter", EXPORT) == 0


@pytest.mark.parametrize("emptied", [0, 1, 3])
def test_a_withdrawal_that_is_killed_is_done_again_and_nobody_ingests_in_between(
    site: Site, emptied: int
) -> None:
    ingest(session_of(site, "first"), wait_until_ready(site))
    script = str(Path(__file__).with_name("withdraw_until_killed.py"))
    killed = subprocess.run(
        [sys.executable, script, EXPORT, str(emptied)], env=site.environment, check=False, timeout=120
    )
    assert killed.returncode == -9
    session = session_of(site, "later")
    facts = session.ledger.read(EXPORT)
    assert session.next_step(facts) == Closed("withdrawing")
    assert "withdraw" in str(shown(site)["next_step"])
    with pytest.raises(JobGone, match="withdrawn"):
        claim_attempt(session_of(site, "ingest"), EXPORT)
    withdraw(session, EXPORT)
    assert session.next_step(session.ledger.read(EXPORT)) == Closed("withdrawn")
    for table in ("patient", "encounter", "_exports", "_lineage"):
        assert site.files_of(table, EXPORT) == [], table


def test_an_export_that_a_run_ingests_is_not_withdrawn_under_its_hands(site: Site) -> None:
    session = replace(session_of(site, "alive"), is_dead=lambda _: False)
    claim_attempt(session, wait_until_ready(site))
    with pytest.raises(StillRunning, match="run alive"):
        withdraw(replace(session, owner=this_process("cli")), EXPORT)
    assert session.ledger.read(EXPORT).closings == {}


def test_a_withdrawn_export_moves_no_watermark_and_one_that_others_began_at_stays(site: Site) -> None:
    """Protocol 26: what changed before it would be missing for good."""
    source = site.source
    export = source.export.model_copy(update={"level": "system", "group": None, "since": "auto"})
    system = source.model_copy(update={"export": export})
    first = replace(session_of(site, "first"), source=system)
    asked_for(first, EXPORT)
    mark = ingest(first, EXPORT).watermark
    site.sandbox.control(night=2)
    second = replace(session_of(site, "second"), source=system)
    asked_for(second, LATER)
    assert second.ledger.read(LATER).intents[0].parameters["since"] == mark
    with pytest.raises(ConfigError, match=f"{LATER} began where"):
        withdraw(first, EXPORT)
    withdraw(second, LATER)
    withdraw(first, EXPORT)
    with pytest.raises(ConfigError, match="withdrawn, not held") as refused:
        retry(first, EXPORT)
    assert "Start a new export run" in refused.value.advice
    third = replace(session_of(site, "third"), source=system)
    facts = request_export(third, "20260103T020000Z")
    assert facts.intents[0].parameters["since"] is None, "a full one again"


# --- the manifest, read again --------------------------------------------------------------------------


def test_links_that_expired_are_replaced_by_those_of_a_manifest_in_another_order(site: Site) -> None:
    """Protocol 30: a fresh manifest may be fetched for fresh links; the first one counts."""
    session = session_of(site, "one")
    answer = session.client.status(asked_for(session, EXPORT))
    assert isinstance(answer, Complete)
    page = dict(answer.manifest.pages[0])
    fresh = [{**each, "url": f"{each['url']}&signature=fresh"} for each in reversed(page["output"])]
    stale = [{**each, "url": f"{each['url']}&signature=stale"} for each in page["output"]]
    later = {**page, "output": fresh, "transactionTime": "2031-01-01T00:00:00Z"}
    script = [
        {"path": STATUS, "method": "GET", "status": 200, "times": 1, "body": {**page, "output": stale}},
        {"path": STATUS, "method": "GET", "status": 200, "times": None, "body": later},
        {"path": "signature=stale", "status": 403, "times": None, "body": "expired"},
    ]
    site.sandbox.control(faults=script)
    receipt = ingest(session, EXPORT)
    assert receipt.transaction_time == page["transactionTime"]
    for kind, table in (("Patient", "patient"), ("Encounter", "encounter")):
        assert site.ids_in(table, EXPORT) == site.ids_in_truth(1)[kind]
    facts = "".join(
        path.read_text() for path in (site.lake / "hosp" / "exports" / EXPORT).rglob("*") if path.is_file()
    )
    assert "signature=" not in facts


def test_a_manifest_from_which_a_file_vanished_meanwhile_is_refused(site: Site) -> None:
    session = session_of(site, "one")
    answer = session.client.status(asked_for(session, EXPORT))
    assert isinstance(answer, Complete)
    page = dict(answer.manifest.pages[0])
    script = [
        {"path": STATUS, "method": "GET", "status": 200, "times": 1, "body": page},
        {
            "path": STATUS,
            "method": "GET",
            "status": 200,
            "times": None,
            "body": {**page, "output": page["output"][:-1]},
        },
    ]
    site.sandbox.control(faults=script)
    attempt = claim_attempt(session, EXPORT)
    manifest = open_manifest(session, attempt)
    live = live_manifest(session, attempt)
    live.expire(live.file(("output", 0))[0])
    with pytest.raises(VerificationFailed, match="the manifest has changed"):
        live.file(("output", 0))
    assert len(manifest.files) == len(page["output"])
