"""A process killed while Dagster first made its database: the next one goes on (chaos seed 23)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from nightly_site import BIN, Site, open_site

SMALL = {"types": ["Patient"]}
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, patients=3, export=SMALL) as opened:
        yield opened


def leave_half_made(site: Site, kept: int) -> None:
    """What SIGKILL left: so many of the tables, and no alembic version; Dagster makes it complete no more."""
    site.instance().dispose()
    index = site.home / "history" / "runs" / "index.db"
    with closing(sqlite3.connect(index)) as database:
        names = [name for (name,) in database.execute(TABLES) if name != "alembic_version"]
        for name in ["alembic_version", *names[kept:]]:
            database.execute(f"DROP TABLE {name}")
        database.commit()
    assert tables(index) == kept


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_command_completes_the_tables(kept: int, site: Site) -> None:
    leave_half_made(site, kept)
    assert site.run_night()["state"] == "published"
    assert site.instance().get_dynamic_partitions("hosp_exports") == site.export_ids()


def test_a_daemon_completes_the_tables(site: Site) -> None:
    leave_half_made(site, 0)
    site.dagster("schedule", "start", "hosp_schedule")
    site.spawn_daemon_until(lambda: any(site.facts(each).receipt for each in site.export_ids()), 180)


def test_wherever_the_first_command_is_killed_the_next_one_publishes(site: Site) -> None:
    """Killed for real, a little later each time after the database's file is there."""
    index = site.home / "history" / "runs" / "index.db"
    for later in (0.0, 0.03, 0.1):
        for path in sorted((site.home / "history").rglob("*.db*")):
            path.unlink()
        process = site.spawn(str(BIN / "fhir-export"), "run", "hosp")
        until = time.monotonic() + 60
        while not index.exists() and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(later)
        assert process.poll() is None, "it must be killed at work"
        site.kill(process)
        made = tables(index)
        assert site.run_night()["state"] == "published", f"{made} tables had been made"


def tables(index: Path) -> int:
    with closing(sqlite3.connect(index)) as database:
        return len(database.execute(TABLES).fetchall())
