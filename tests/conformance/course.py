"""What every system must be able to do: a full export, an incremental one, a cancel."""

from __future__ import annotations

import json
import time
from typing import Any

from ingest_by_hand import ingest
from installation import Installation, truth_of

from pipeline.bulkdata.answers import Complete, InProgress
from pipeline.exports.facts import Receipt
from pipeline.exports.owner import this_process
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.sandbox.process import SandboxProcess

PATIENTS, SEED = 12, 11
TYPES = ("Patient", "Encounter")
FIRST_NIGHT = "2026-01-01T02:00:00.417Z"
"""The sandbox's transactionTime on night 1."""


def export_entry(**more: Any) -> dict[str, Any]:
    """The part `export` of a source."""
    return {"group": "demo", "types": list(TYPES), **more}


def session_of(site: Installation, source: str) -> Session:
    """One run without an orchestrator, in this process."""
    config = site.load()
    return Session(config, config.source(source), this_process("by-hand"), is_dead=lambda _: True)


def ready_by_hand(session: Session, export_id: str, seconds: float = 30) -> None:
    """Kicks off, and polls until the export is complete. Whatever is refused raises."""
    facts = request_export(session, export_id)
    assert facts.request is not None
    deadline = time.monotonic() + seconds
    while not isinstance(answer := session.client.status(facts.request.status_url), Complete):
        assert isinstance(answer, InProgress), answer
        assert time.monotonic() < deadline
        time.sleep(0.1)


def export_by_hand(session: Session, export_id: str) -> Receipt:
    """Kick-off, status, ingest and release by the functions that the assets call."""
    ready_by_hand(session, export_id)
    return ingest(session, export_id)


def full_export(site: Installation, source: str) -> str:
    """A night by the command line, compared with the server's own data; its id."""
    outcome = site.run(source)
    assert outcome["state"] == "published", outcome
    assert site.require_same(source, outcome["export_id"], truth_of(SEED, PATIENTS, 1, TYPES)) > PATIENTS
    export_id: str = outcome["export_id"]
    assert "released.json" in {
        name.rsplit("/", 1)[-1] for name in site.blobs(f"{source}/exports/{export_id}/")
    }
    return export_id


def incremental_export(site: Installation, source: str, box: SandboxProcess) -> dict[str, str]:
    """The second night from where the first ended: what has changed since, and only that.

    The kick-off's parameters as the server saw them.
    """
    box.control(night=2)
    site.entry(source)["export"]["since"] = FIRST_NIGHT
    site.write()
    try:
        export_id = "20260102T020000Z"
        export_by_hand(session_of(site, source), export_id)
        changed = truth_of(SEED, PATIENTS, 2, TYPES, since=FIRST_NIGHT)
        everything = truth_of(SEED, PATIENTS, 2, TYPES)
        assert 0 < sum(map(len, changed.values())) < sum(map(len, everything.values()))
        site.require_same(source, export_id, changed)
    finally:
        del site.entry(source)["export"]["since"]
        site.write()
        box.control(night=1)
    asked: dict[str, str] = dict(box.control()["jobs"][-1]["parameters"])
    assert asked["_since"] == FIRST_NIGHT
    return asked


def cancel(site: Installation, source: str, box: SandboxProcess) -> None:
    """An export that was kicked off is given up: the job on the server is deleted, nothing is published."""
    session = session_of(site, source)
    export_id = "20260103T020000Z"
    facts = request_export(session, export_id)
    assert facts.request is not None
    said = site.cli("cancel", f"{source}/{export_id}")
    assert "cancelled" in said.stdout + said.stderr
    deletes = [each for each in box.access_log() if each["method"] == "DELETE"]
    assert deletes[-1]["status"] == 202
    assert deletes[-1]["path"] in facts.request.status_url
    names = {name.rsplit("/", 1)[-1] for name in site.blobs(f"{source}/exports/{export_id}/")}
    assert "cancelled.json" in names
    shown = json.loads(site.cli("show", f"{source}/{export_id}", "--json").stdout)
    assert shown["state"] == "cancelled"


def bearers_at(log: list[dict[str, Any]]) -> set[str]:
    """The fingerprints of the bearer tokens that a server has seen."""
    return {each["bearer"] for each in log if each.get("bearer")}
