"""The steps of an export called by hand, where an earlier version published, waited or moved on wrongly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from nightly_site import Site, open_site

from pipeline.bulkdata.answers import Complete
from pipeline.errors import JobGone, StillRunning, VerificationFailed
from pipeline.exports import publishing
from pipeline.exports.attempt import Attempt, claim_attempt, recorded
from pipeline.exports.manifests import cancel_export, open_manifest, stored_manifest
from pipeline.exports.owner import this_process
from pipeline.exports.receipt import write_receipt
from pipeline.exports.request import asked_for, fingerprint, request_export
from pipeline.exports.session import Session
from pipeline.exports.staging import land_sidecars, stage_type, tables_of
from pipeline.exports.state import Closed, Hold, Ingest, Tidy
from pipeline.exports.tidying import tidy

_DELETED = (
    '{"resourceType":"Bundle","type":"transaction",'
    '"entry":[{"request":{"method":"DELETE","url":"Patient?identifier=1"}}]}\n'
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    options = {"export_seconds": 0.1, "poll_seconds": 0.0, "patients": 4}
    with open_site(tmp_path, export={"types": ["Patient", "Encounter"]}, **options) as opened:
        yield opened


def session_of(site: Site, run_id: str = "one", **changes: object) -> Session:
    """A run that is over as soon as another asks: what a killed run looks like."""
    session = Session(site.config, site.source, this_process(run_id), is_dead=lambda _: True)
    return replace(session, **changes)  # type: ignore[arg-type]


def ready(site: Site, session: Session, export_id: str) -> str:
    facts = request_export(session, export_id)
    assert facts.request is not None
    for _ in range(100):
        if isinstance(session.client.status(facts.request.status_url), Complete):
            return export_id
        time.sleep(0.1)
    raise AssertionError("never ready")


def stage(session: Session, attempt: Attempt) -> None:
    with recorded(session, attempt):
        manifest = open_manifest(session, attempt)
        for table in tables_of(manifest):
            stage_type(session, attempt, manifest, table)
        land_sidecars(session, attempt, manifest)


def publish(session: Session, attempt: Attempt) -> None:
    with recorded(session, attempt):
        publishing.publish(session, attempt, stored_manifest(session, attempt.export_id), ())


def visible(site: Site) -> list[str]:
    tables = site.lake / "hosp" / "tables"
    return sorted(each.name for each in tables.glob("*") if (each / "_delta_log").exists())


def test_a_deleted_file_that_cannot_be_understood_fails_before_anything_is_visible(site: Site) -> None:
    session = session_of(site)
    export_id = ready(site, session, "20260101T020000Z")
    status = r"^/bulk/status/"
    page = {
        "transactionTime": "2026-01-01T02:00:00Z",
        "requiresAccessToken": True,
        "output": [],
        "deleted": [{"type": "Bundle", "url": f"{site.sandbox.base_url}/fhir/odd.ndjson"}],
    }
    faults = [
        {"path": status, "status": 200, "times": None, "body": page},
        {
            "path": r"odd\.ndjson",
            "status": 200,
            "times": None,
            "headers": {"Content-Type": "application/fhir+ndjson"},
            "body": _DELETED,
        },
    ]
    site.sandbox.control(faults=faults)
    attempt = claim_attempt(session, export_id)
    stage(session, attempt)
    with pytest.raises(VerificationFailed, match="not Type/id"):
        publish(session, attempt)
    assert visible(site) == []


def test_raw_bytes_that_vanish_before_the_receipt_end_in_held_not_in_a_blocked_schedule(site: Site) -> None:
    session = session_of(site)
    export_id = ready(site, session, "20260101T020000Z")
    stage(session, claim_attempt(session, export_id))
    raw = next((site.lake / "hosp" / "raw" / export_id / "patient").iterdir())
    raw.unlink()
    for number in (2, 3, 4):
        with pytest.raises(VerificationFailed, match="gone"):
            claim_attempt(session_of(site, f"run {number}"), export_id)
    facts = session.ledger.read(export_id)
    assert [claim.number for claim in facts.claims] == [1, 2, 3, 4]
    assert isinstance(session.next_step(facts), Hold)


def test_a_run_started_for_an_attempt_that_was_made_meanwhile_does_nothing(site: Site) -> None:
    session = session_of(site)
    export_id = ready(site, session, "20260101T020000Z")
    claim_attempt(session, export_id)
    with pytest.raises(StillRunning, match=r"attempt 1 .* made by another run"):
        claim_attempt(session_of(site, "late", attempt=1), export_id)
    assert claim_attempt(session_of(site, "next", attempt=2), export_id).number == 2


def test_what_was_cancelled_is_not_published(site: Site) -> None:
    session = session_of(site)
    export_id = ready(site, session, "20260101T020000Z")
    attempt = claim_attempt(session, export_id)
    stage(session, attempt)
    assert cancel_export(session, export_id, "by hand") is None
    with pytest.raises(JobGone, match="cancelled"):
        publish(session, attempt)
    assert visible(site) == []
    with pytest.raises(JobGone, match="cancelled"):
        claim_attempt(session_of(site, "later"), export_id)


def test_an_attempt_that_died_behind_publish_is_finished_by_a_receipt_alone(site: Site) -> None:
    session = session_of(site)
    export_id = ready(site, session, "20260101T020000Z")
    attempt = claim_attempt(session, export_id)
    stage(session, attempt)
    publish(session, attempt)
    other = session_of(site, "other")
    second = claim_attempt(other, export_id)
    assert isinstance(session.next_step(session.ledger.read(export_id)), Ingest)
    receipt = write_receipt(other, second, stored_manifest(other, export_id))
    assert receipt.rows == sum(len(site.ids_in_truth(1)[kind]) for kind in ("Patient", "Encounter"))


def test_raw_bytes_are_dropped_only_when_the_job_was_released(site: Site) -> None:
    source = site.source.model_copy(update={"keep_raw": False})
    session = session_of(site, source=source)
    export_id = ready(site, session, "20260101T020000Z")
    attempt = claim_attempt(session, export_id)
    stage(session, attempt)
    publish(session, attempt)
    write_receipt(session, attempt, stored_manifest(session, export_id))
    raw = site.lake / "hosp" / "raw" / export_id
    site.sandbox.control(
        faults=[{"path": "^/bulk/status/", "method": "DELETE", "status": 500, "times": None}]
    )
    tidy(session, export_id)
    assert any(path.is_file() for path in raw.rglob("*"))
    assert isinstance(session.next_step(session.ledger.read(export_id)), Tidy)
    site.sandbox.control(faults=[])
    assert len(tidy(session, export_id)) == 2
    assert not any(path.is_file() for path in raw.rglob("*"))
    facts = session.ledger.read(export_id)
    assert session.next_step(facts) == Closed("published")
    with pytest.raises(VerificationFailed, match="gone"):
        claim_attempt(session_of(site, "again"), export_id)
    assert session.ledger.read(export_id) == facts, "refused before anything changes"


def test_a_wholly_empty_export_is_published_and_leaves_the_watermark(site: Site) -> None:
    """Azure fact A: API Management answers 404 when there is nothing at all."""
    source = site.source.model_copy(update={"profile": "apim-smart"})
    session = session_of(site, source=source)
    facts = request_export(session, "20260101T020000Z")
    site.sandbox.control(faults=[{"path": "^/bulk/status/", "status": 404, "times": None, "body": ""}])
    attempt = claim_attempt(session, facts.export_id)
    stage(session, attempt)
    publish(session, attempt)
    receipt = write_receipt(session, attempt, stored_manifest(session, facts.export_id))
    assert (receipt.rows, receipt.files, receipt.watermark) == (0, 0, None)


def test_another_server_or_a_configured_instant_shares_no_watermark(site: Site) -> None:
    session = session_of(site)
    parameters = asked_for(session.source, session.profile)
    source = site.source
    elsewhere = source.model_copy(update={"fhir_url": "https://fhir.example.org/r4"})
    later = source.model_copy(
        update={"export": source.export.model_copy(update={"since": "2026-10-01T00:00:00Z"})}
    )
    marks = {fingerprint(each, parameters) for each in (source, elsewhere, later)}
    assert len(marks) == 3
    assert fingerprint(source, parameters) == fingerprint(site.source, parameters)
