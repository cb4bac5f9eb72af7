"""A batch whose lines go to several tables, killed between two of its writes: nothing lost, nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_by_hand import EXPORT, ingest, session_of, stage_everything, wait_until_ready
from nightly_site import Site, open_site
from test_night_with_bad_lines import FIRST, STATUS, insertion, quarantined

from pipeline.exports.attempt import claim_attempt
from pipeline.exports.evidence import find_evidence
from pipeline.exports.facts import StagedBatch
from pipeline.exports.manifests import open_manifest
from pipeline.exports.publishing import publish
from pipeline.exports.receipt import write_receipt
from pipeline.exports.session import Session
from pipeline.exports.staging import usable_stagings

IN_PATIENTS = b'{"resourceType":"Device","id":"d1"}\nnull\n{"resourceType":"Encounter","id":"e-stray"}\n'
IN_ENCOUNTERS = b'{"resourceType":"Patient","id":"p-stray"}\n{"resourceType":"Device","id":"d2"}\n{"x":\n'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An export that is ready: Patients and Encounters, with lines of each other and of a third type."""
    options = {"export_seconds": 0.1, "poll_seconds": 0.0, "patients": 4, "file_lines": 10_000}
    with open_site(tmp_path, export={"types": ["Patient", "Encounter"]}, **options) as opened:
        counted = {"path": STATUS, "method": "GET", "times": None, "wrong_count": 3}
        opened.sandbox.control(
            faults=[
                {"path": FIRST, "times": None, "insert": [insertion(IN_PATIENTS, 2)]},
                {"path": r"/1\.ndjson", "times": None, "insert": [insertion(IN_ENCOUNTERS, 1)]},
                {**counted, "type": "Patient"},
            ]
        )
        accepting = opened.config_path.read_text().replace(
            "schedule:", "on_count_mismatch: warn\n  schedule:"
        )
        opened.config_path.write_text(accepting)
        wait_until_ready(opened)
        yield opened


def ingest_until(site: Site, run_id: str, pattern: str) -> int:
    script = Path(__file__).with_name("ingest_until_killed.py")
    done = subprocess.run(
        [sys.executable, str(script), EXPORT, run_id, pattern],
        env=site.environment,
        cwd=site.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def assert_all_there_once(site: Site) -> None:
    truth = site.ids_in_truth(1)
    assert site.ids_in("patient", EXPORT) == sorted([*truth["Patient"], "p-stray"])
    assert site.ids_in("encounter", EXPORT) == sorted([*truth["Encounter"], "e-stray"])
    assert site.ids_in("device", EXPORT) == ["d1", "d2"]
    receipt = site.facts(EXPORT).receipt
    assert receipt is not None
    assert {table: counts.quarantined for table, counts in receipt.tables.items()} == {
        "patient": 1,
        "encounter": 1,
        "device": 0,
    }
    found = {(each["table"], each["file"], each["line"]) for each in quarantined(site, EXPORT)}
    assert found == {("patient", "output-000000", 4), ("encounter", "output-000001", 4)}
    assert len(quarantined(site, EXPORT)) == 2


def test_killed_behind_every_kind_of_write_of_a_mixed_batch_it_is_finished_once(site: Site) -> None:
    """Design, Facts: one fact names all parts of all tables of a batch."""
    bad, fact, committed = r"^hosp/quarantine/", r"/staged/.*/patient-", r"tables/_lineage/.*\.parquet"
    for number, pattern in enumerate([bad, fact, committed]):
        assert ingest_until(site, f"run {number}", pattern) == -signal.SIGKILL, pattern
        assert site.facts(EXPORT).receipt is None
    staged = site.session.ledger.staged(EXPORT, "patient")
    assert [batch.attempt for batch in staged] == [2], "the first left no fact, the third used it"
    leftover = list((site.lake / "hosp/tables/device").glob("export_id=*/*.parquet"))
    assert len(leftover) > 2, "they have left parts that no fact names"
    assert ingest_until(site, "last", "nothing matches") == 0
    assert_all_there_once(site)
    assert sum(".ndjson" in entry["path"] for entry in site.sandbox.access_log()) == 2


def stage_all(site: Site, run_id: str) -> tuple[Session, list[StagedBatch]]:
    session = session_of(site, run_id)
    attempt = claim_attempt(session, EXPORT)
    stage_everything(session, attempt)
    return session, list(usable_stagings(session, attempt).values())


def test_a_step_that_is_repeated_doubles_no_other_table(site: Site) -> None:
    """The Patients are converted again because a Device part of theirs is gone; the Encounters are not."""
    _, first = stage_all(site, "one")
    (patients,) = [batch for batch in first if batch.type == "patient"]
    (part,) = patients.parts_of("device")
    (site.lake / "hosp/tables/device" / part.path).unlink()
    session, second = stage_all(site, "two")
    assert {batch.type: batch.attempt for batch in second} == {"patient": 2, "encounter": 1}
    attempt = claim_attempt(session, EXPORT)
    manifest = open_manifest(session, attempt)
    done = publish(session, attempt, manifest, ())
    evidence = find_evidence(session, attempt, manifest, done)
    assert all(each.adds_up for each in evidence.values())
    assert evidence["patient"].went_elsewhere == {"device": 1, "encounter": 1}
    assert (evidence["patient"].came_from_elsewhere, evidence["device"].came_from_elsewhere) == (1, 2)
    assert evidence["device"].files_in_manifest == evidence["device"].files_published == 0
    write_receipt(session, attempt, manifest)
    assert_all_there_once(site)


def test_a_quarantine_file_that_is_gone_is_written_again(site: Site) -> None:
    _, first = stage_all(site, "one")
    (patients,) = [batch for batch in first if batch.type == "patient"]
    (part,) = patients.quarantine
    lost = site.lake / part.path
    before = lost.read_text()
    lost.unlink()
    session, second = stage_all(site, "two")
    (patients,) = [batch for batch in second if batch.type == "patient"]
    assert patients.attempt == 2
    assert (site.lake / patients.quarantine[0].path).read_text() == before
    assert json.loads(before)["line"] == 4
    ingest(session)
    assert_all_there_once(site)
