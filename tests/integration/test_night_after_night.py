"""Incremental exports where `_since` is sound: watermark, deletes, pages, types that nobody asked for."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
from independent_reader import rows
from nightly_site import Site, open_site

from pipeline.exports.attempt import claim_attempt
from pipeline.exports.facts import Intent, Request
from pipeline.exports.manifests import open_manifest
from pipeline.exports.publishing import publish
from pipeline.exports.receipt import write_receipt
from pipeline.exports.staging import land_sidecars, stage_type, tables_of
from pipeline.exports.tidying import release


def test_a_system_export_goes_on_from_the_watermark_and_counts_what_was_deleted(tmp_path: Path) -> None:
    """Protocol facts 26 and 31; the manifest comes in pages."""
    with open_site(tmp_path, export={"level": "system", "group": None}, page_size=4) as site:
        first = site.facts(site.run_night()["export_id"])
        assert first.receipt is not None and first.manifest is not None
        assert first.manifest.pages > 1
        assert first.receipt.watermark == "2026-01-01T02:00:00.417Z"
        site.sandbox.control(night=2)
        second = site.facts(site.run_night()["export_id"])
        assert second.receipt is not None
        (_, job) = site.sandbox.control()["jobs"]
        assert dict(job["parameters"])["_since"] == "2026-01-01T02:00:00.417Z"
        assert second.receipt.deleted > 0
        assert second.receipt.watermark == "2026-01-02T02:00:00.417Z"
        assert 0 < second.receipt.rows < first.receipt.rows
        changed = rows(site.files_of("patient", second.export_id))
        assert all(row["meta"]["lastUpdated"] > "2026-01-01T02:00:00.417Z" for row in changed)
        log = (site.lake / "hosp/exports" / second.export_id / "log.ndjson").read_text()
        events = [json.loads(line) for line in log.split("\n") if line]
        assert [events[0]["eventId"], events[-1]["eventId"]] == ["kickoff", "export_complete"]
        assert events[-1]["eventDetail"]["resources"] == second.receipt.rows
        assert_types_beyond_the_static_ones(site, first.export_id)


def assert_types_beyond_the_static_ones(site: Site, export_id: str) -> None:
    """A system export brings Group, which the profile's list does not name: published all the same."""
    assert site.ids_in("group", export_id)
    instance = site.instance()
    assert export_id in instance.get_materialized_partitions(dg.AssetKey(["hosp", "group"]))
    assert json.loads((site.home / "known_types" / "hosp.json").read_text()) == ["Group"]


def test_what_the_server_ignored_is_read_from_its_error_file(tmp_path: Path) -> None:
    """Protocol facts 12 and 22: an export with a note of the server is published, and says so."""
    from pipeline.bulkdata.answers import Accepted
    from pipeline.bulkdata.parameters import KickoffParameters

    with open_site(tmp_path, patients=3, export={"types": ["Patient"]}) as site:
        session, export_id = site.session, "20260101T020000Z"
        parameters = KickoffParameters(
            "group", "demo", ("Patient",), organize_output_by="Patient", lenient=True
        )
        accepted = session.client.kick_off(parameters)
        assert isinstance(accepted, Accepted)
        intent = Intent(
            at=session.now(),
            number=1,
            owner=session.owner,
            parameters={"level": "group"},
            fingerprint=parameters.fingerprint(),
            since_reason="full",
        )
        session.ledger.write(export_id, "intent.json", intent)
        request = Request(at=session.now(), intent=1, status_url=accepted.status_url, owner=session.owner)
        session.ledger.write(export_id, "request.json", request)
        _wait_until_ready(site, accepted.status_url)
        attempt = claim_attempt(session, export_id)
        manifest = open_manifest(session, attempt)
        assert manifest.of_kind("error")
        for table in tables_of(manifest):
            stage_type(session, attempt, manifest, table)
        land_sidecars(session, attempt, manifest)
        publish(session, attempt, manifest, ())
        receipt = write_receipt(session, attempt, manifest)
        assert sum(receipt.error_entries.values()) > 0
        assert release(session, export_id)


def _wait_until_ready(site: Site, status_url: str) -> None:
    import time

    from pipeline.bulkdata.answers import Complete

    for _ in range(20):
        if isinstance(site.session.client.status(status_url), Complete):
            return
        time.sleep(1.1)
    raise AssertionError("the export is not ready")
