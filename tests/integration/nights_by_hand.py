"""Nights of a site, one after the other, supplements included, each on the clock of that night."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
from deltalake import DeltaTable
from driven_by_hand import Drive
from nightly_site import Site

from pipeline.exports.current import current_types, update_current
from pipeline.exports.ledger import Facts
from pipeline.exports.state import AskAgain
from pipeline.exports.successor import open_successor
from pipeline.sandbox import truth

Versions = dict[str, tuple[str, str]]
"""id -> versionId and lastUpdated."""


def moment(night: int) -> datetime:
    return datetime(2026, 1, 1, 2, tzinfo=UTC) + timedelta(days=night - 1)


def night_id(night: int) -> str:
    return moment(night).strftime("%Y%m%dT%H%M%SZ")


def drive(site: Site, night: int, export_id: str | None = None) -> Drive:
    skipped = moment(night) - datetime.now(UTC) + timedelta(minutes=1 if export_id else 0)
    return Drive(site, export_id or night_id(night), skipped=skipped)


def run_night(site: Site, night: int) -> Facts:
    """The night's export, published; its supplement too, where it needs one."""
    site.sandbox.control(night=night)
    driven = drive(site, night)
    facts = driven.to_the_end()
    assert facts.receipt is not None, driven.words()
    supplement = run_supplement(site, night, driven)
    assert supplement is None or supplement.receipt is not None
    return driven.to_the_end()


def run_supplement(site: Site, night: int, driven: Drive) -> Facts | None:
    """The last of the export runs that complete this one; None: it needs none."""
    session = driven.session()
    facts = session.ledger.read(driven.export_id)
    if not isinstance(session.next_step(facts), AskAgain):
        return None
    supplement = drive(site, night, open_successor(session, driven.export_id))
    found = supplement.to_the_end()
    return run_supplement(site, night, supplement) or found


def true_state(site: Site, night: int, types: list[str], group: str | None) -> dict[str, Versions]:
    """What the server has: read from the generator, not from our client."""
    found: dict[str, Versions] = {each: {} for each in types}
    level = "group" if group else "system"
    for resource_type, line in truth(site.seed, site.patients, night, group, level=level):
        if resource_type in found:
            resource = json.loads(line)
            meta = resource["meta"]
            assert resource["id"] not in found[resource_type]
            found[resource_type][resource["id"]] = (meta["versionId"], meta["lastUpdated"])
    return found


def versions_in(files: list[str], where: str = "true") -> Versions:
    if not files:
        return {}
    rows = duckdb.sql(
        "select id, meta.versionId, meta.lastUpdated "
        f"from read_parquet({files}, union_by_name=true) where {where}"
    ).fetchall()
    assert len({row[0] for row in rows}) == len(rows), "an id stands twice"
    return {row[0]: (row[1], row[2]) for row in rows}


def current_files(site: Site, table: str) -> list[str]:
    return sorted(DeltaTable(str(site.lake / "hosp" / "current" / table)).file_uris())


def update(site: Site) -> dict[str, Any]:
    session = site.session
    return {each: update_current(session, each) for each in current_types(session)}
