"""The steps of an export one after the other, in this process: what sensor and assets do, without Dagster."""

from __future__ import annotations

import time

from nightly_site import Site

from pipeline.bulkdata.answers import Complete
from pipeline.exports.attempt import Attempt, claim_attempt, recorded
from pipeline.exports.facts import Receipt
from pipeline.exports.manifests import open_manifest
from pipeline.exports.owner import this_process
from pipeline.exports.publishing import publish
from pipeline.exports.receipt import write_receipt
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.staging import groups_of, land_sidecars, stage_type
from pipeline.exports.tidying import release

EXPORT = "20260101T020000Z"


def session_of(site: Site, run_id: str) -> Session:
    """A run that is over as soon as another asks: what a killed run looks like."""
    return Session(site.config, site.source, this_process(run_id), is_dead=lambda _: True)


def wait_until_ready(site: Site) -> str:
    """Kicks off `EXPORT`, and waits for the server."""
    session = session_of(site, "request")
    facts = request_export(session, EXPORT)
    assert facts.request is not None
    for _ in range(100):
        if isinstance(session.client.status(facts.request.status_url), Complete):
            return EXPORT
        time.sleep(0.1)
    raise AssertionError("never ready")


def stage_everything(session: Session, attempt: Attempt) -> None:
    manifest = open_manifest(session, attempt)
    for group in groups_of(manifest):
        stage_type(session, attempt, manifest, group)
    land_sidecars(session, attempt, manifest)


def ingest(session: Session, export_id: str = EXPORT) -> Receipt:
    """A whole attempt; whatever goes wrong is written down and raised."""
    attempt = claim_attempt(session, export_id)
    with recorded(session, attempt):
        stage_everything(session, attempt)
        manifest = open_manifest(session, attempt)
        publish(session, attempt, manifest, ())
        receipt = write_receipt(session, attempt, manifest)
    release(session, export_id)
    return receipt
