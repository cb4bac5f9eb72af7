"""What a whole night leaves behind, searched for what must not be there."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nightly_site import Site, open_site

_JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ")
_KEY = re.compile(rb"PRIVATE KEY|AccountKey=|[?&]sig=[A-Za-z0-9%]")
_BEARER = re.compile(rb"[Bb]earer [A-Za-z0-9._~+/-]{16,}")


@pytest.fixture(scope="module")
def faulty_night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str, str]]:
    """A night by command with refused files, cut files and a broken status, then one by daemon."""
    with open_site(tmp_path_factory.mktemp("secrets"), patients=6, export={"types": TYPES}) as site:
        site.sandbox.control(
            faults=[
                {
                    "path": "/bulk/files/",
                    "status": 403,
                    "times": 2,
                    "body": {"resourceType": "OperationOutcome"},
                },
                {"path": r"/0\.ndjson", "truncate_after": 700, "times": 2},
                {"path": r"/1\.ndjson", "truncate_after": 900, "cut": True, "times": 1},
                {
                    "path": "/bulk/status/",
                    "status": 500,
                    "times": 1,
                    "skip": 1,
                    "body": "<html>broken</html>",
                },
            ]
        )
        shown = []
        done = site.cli("run", "hosp", "--wait", check=False)
        shown.append(done.stdout + done.stderr)
        site.sandbox.control(faults=[{"path": r"/0\.ndjson", "truncate_after": 700, "times": 1}])
        done = site.cli("run", "hosp")
        shown.append(done.stdout + done.stderr)
        last = site.export_ids()[-1]
        site.spawn_daemon_until(lambda: site.facts(last).receipt is not None, 120)
        for arguments in (["exports"], ["show", f"hosp/{site.export_ids()[0]}"], ["check"]):
            done = site.cli(*arguments, check=False)
            shown.append(done.stdout + done.stderr)
        yield site, "\n".join(shown), site.export_ids()[-1]


TYPES = ["Patient", "Observation", "Encounter", "Condition", "DocumentReference"]


def test_the_faults_were_met_and_the_data_is_whole(faulty_night: tuple[Site, str, str]) -> None:
    site, shown, last = faulty_night
    assert site.facts(last).receipt is not None, shown
    for kind in TYPES:
        assert site.ids_in(kind.lower(), last) == site.ids_in_truth(1)[kind]


def test_no_token_assertion_key_or_signature_is_anywhere(faulty_night: tuple[Site, str, str]) -> None:
    site, shown, _ = faulty_night
    for name, data in everything(site, shown):
        for pattern in (_JWT, _KEY, _BEARER):
            assert not pattern.search(data), (name, pattern.pattern)


def test_no_resource_content_is_in_logs_events_metadata_or_facts(
    faulty_night: tuple[Site, str, str],
) -> None:
    site, shown, _ = faulty_night
    secrets = content(site)
    assert len(secrets) > 20
    for name, data in everything(site, shown):
        for secret in secrets:
            assert secret.encode() not in data, (name, secret)


def test_the_search_would_find_them(faulty_night: tuple[Site, str, str]) -> None:
    """Against a search that cannot fail: the raw files and tables, which do hold content, are found."""
    site, _, last = faulty_night
    names = {each.encode() for each in content(site)}
    parts = [Path(uri.removeprefix("file://")) for uri in site.files_of("patient", last)]
    import duckdb

    text = str(duckdb.sql(f"select * from read_parquet({[str(p) for p in parts]})").fetchall()).encode()
    assert any(name in text for name in names)


def content(site: Site) -> set[str]:
    """Words that only resources hold: names, streets, identifiers, narrative of this population."""
    found: set[str] = set()
    for patient in site.truth(1)["Patient"]:
        for name in patient.get("name", []):
            found.update(filter(None, [name.get("family"), name.get("text")]))
        for address in patient.get("address", []):
            found.update(address.get("line", []))
        found.update(each["value"] for each in patient.get("identifier", []) if "value" in each)
        found.update(each["value"] for each in patient.get("telecom", []) if "value" in each)
    return {each for each in found if len(each) >= 5}


def everything(site: Site, shown: str) -> Iterator[tuple[str, bytes]]:
    """Terminal, files of DAGSTER_HOME (databases as they are and row by row), facts, lineage, Delta logs."""
    yield "terminal", shown.encode()
    for path in sorted(site.home.rglob("*")):
        if path.is_file() and path.suffix != ".pem":
            yield str(path), path.read_bytes()
        if path.suffix == ".db":
            yield f"{path} rows", dump(path)
    yield "daemon and run workers", (site.folder / "processes.log").read_bytes()
    for path in sorted((site.lake / "hosp").rglob("*")):
        if path.is_file() and ("/raw/" not in str(path)) and (path.suffix in (".json", ".ndjson")):
            yield str(path), path.read_bytes()
    for table in ("_lineage", "_exports"):
        for uri in site.files_of(table):
            yield table, json.dumps(read(uri), default=str).encode()


def dump(path: Path) -> bytes:
    with sqlite3.connect(path) as database:
        return "\n".join(database.iterdump()).encode()


def read(uri: str) -> list[Any]:
    import duckdb

    return duckdb.sql(f"select * from read_parquet('{uri.removeprefix('file://')}')").fetchall()
