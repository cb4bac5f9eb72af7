"""`run --wait` killed with SIGKILL at every point; machine and network lost: the next one goes on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from deltalake import DeltaTable
from nightly_site import BIN, Site, eventually, open_site

from pipeline.orchestration import heartbeat
from pipeline.orchestration.local import follow_export
from pipeline.sandbox.process import start_sandbox
from pipeline.tables.definitions import table_name

TYPES = {"types": ["Patient", "Encounter", "Observation"]}

INGEST = [
    ("before", "put_new", r"/landed/", "between raw bytes and their fact"),
    ("behind", "put_new", r"/landed/", "between fact and conversion"),
    ("behind", "put_file", r"/tables/patient/.*parquet", "in the conversion, between a part and its fact"),
    ("behind", "commit", r"/tables/encounter$", "between two commits"),
    ("before", "put_new", r"/published/", "between the last commit and its fact"),
    ("before", "put_new", r"/receipts/", "between the last commit and the receipt"),
]


def killed(site: Site, when: str, what: str, pattern: str) -> None:
    script = Path(__file__).with_name("run_until_killed.py")
    done = subprocess.run(
        [sys.executable, str(script), when, what, pattern],
        env=site.environment,
        cwd=site.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == -signal.SIGKILL, (pattern, done.returncode, done.stderr + done.stdout)


def fetched(site: Site) -> Counter[str]:
    """How often each file was handed out, by the server's own log."""
    return Counter(
        re.split(r"[?]", entry["path"])[0]
        for entry in site.sandbox.access_log()
        if ".ndjson" in entry["path"] and entry["method"] == "GET"
    )


def landed(site: Site, export_id: str) -> set[str]:
    """The files that have landed, by the facts as they lie there."""
    facts = (site.lake / "hosp" / "exports" / export_id / "landed").glob("*.json")
    urls = [file["url"] for fact in facts for file in json.loads(fact.read_text())["files"]]
    return {re.sub(r"^https?://[^/]+", "", url) for url in urls}


def commits(site: Site, export_id: str) -> Counter[str]:
    """Table -> commits that changed rows of the export, by the Delta logs' own history."""
    found: Counter[str] = Counter()
    for log in (site.lake / "hosp" / "tables").glob("*/_delta_log"):
        for entry in DeltaTable(str(log.parent)).history():
            if entry.get("export_id") == export_id:
                found[log.parent.name] += 1
    return found


def assert_whole(site: Site, export_id: str) -> None:
    for kind in TYPES["types"]:
        assert site.ids_in(table_name(kind), export_id) == site.ids_in_truth(1)[kind]


def test_killed_at_every_point_of_its_way_it_is_finished_as_one_export(tmp_path: Path) -> None:
    """Issue 5: what has landed is never fetched again, what is published never published twice."""
    source = {"max_attempts": 20, "keep_raw": False}
    with open_site(tmp_path, patients=6, export=TYPES, source=source) as site:
        killed(site, "before", "put_new", r"/intent\.json")
        assert site.export_ids() == [], "no fact: its partition is all that is left"
        (orphan,) = site.instance().get_dynamic_partitions("hosp_exports")

        killed(site, "before", "put_new", r"/request\.json")
        (export_id,) = site.export_ids()
        assert export_id != orphan, "a partition that another process has opened is not taken"
        assert site.sandbox.control()["kickoffs"] == 1

        for when, what, pattern, where in INGEST:
            before, there = fetched(site), landed(site, export_id)
            committed = commits(site, export_id)
            killed(site, when, what, pattern)
            assert site.facts(export_id).receipt is None, where
            again = {url for url in there if fetched(site)[url] != before[url]}
            assert not again, (where, again)
            assert all(commits(site, export_id)[table] == number for table, number in committed.items()), (
                where
            )
        published = commits(site, export_id)
        assert set(published.values()) == {1}

        killed(site, "behind", "put_new", r"/receipts/")
        assert site.facts(export_id).released is None, "between receipt and release"
        assert_whole(site, export_id)
        raw = [path for path in (site.lake / "hosp" / "raw" / export_id).rglob("*") if path.is_file()]
        killed(site, "behind", "remove", r"/raw/")
        assert site.facts(export_id).released is not None and not site.facts(export_id).raw_dropped
        assert [path.exists() for path in raw].count(False) == 1, "while dropping raw bytes"
        next_night = site.run_night()["export_id"]
        assert site.facts(export_id).raw_dropped
        assert not any(path.exists() for path in raw)

        assert site.export_ids() == [export_id, next_night]
        assert site.sandbox.control()["kickoffs"] == 2, "the job of the killed request was adopted"
        assert commits(site, export_id) == published, "nothing is published twice"
        assert_whole(site, export_id)
        rows = DeltaTable(str(site.lake / "hosp/tables/_exports")).to_pyarrow_table().to_pylist()
        assert sorted(row["export_id"] for row in rows) == [export_id, next_night]


def test_after_a_kill_the_manifest_may_come_in_another_order(tmp_path: Path) -> None:
    """Chaos seed 32: facts know a file by its place in the manifest as it was stored (design, Facts)."""
    with open_site(tmp_path, patients=6, export=TYPES) as site:
        killed(site, "behind", "put_new", r"/landed/")
        (export_id,) = site.export_ids()
        facts = site.lake / "hosp" / "exports" / export_id
        other_order = {"path": r"/bulk/status/[^/]+$", "answer": 200, "changes": ["reordered"], "times": None}
        site.sandbox.control(faults=[other_order])
        said = site.run_night()
        assert (said["state"], said["export_id"]) == ("published", export_id)
        assert_whole(site, export_id)
        listed = json.loads((facts / "manifest.json").read_text())["page"]["output"]
        for fact in (facts / "landed").glob("*.json"):
            for file in json.loads(fact.read_text())["files"]:
                assert file["url"] == listed[file["index"]]["url"].partition("?")[0], fact.name


def test_killed_while_the_server_works_the_next_command_polls_on_and_says_so(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=3, export={"types": ["Patient"]}, export_seconds=6.0) as site:
        command = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
        eventually(lambda: sum("/bulk/status/" in e["path"] for e in site.sandbox.access_log()) >= 2)
        site.kill(command)
        (export_id,) = site.export_ids()
        done = site.cli("run", "hosp", "--wait", "--json")
        assert f"going on with export hosp/{export_id}, which was open: running" in done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["export_id"] == export_id
        assert site.sandbox.control()["kickoffs"] == 1
        other = site.cli("run", "hosp", "--wait", "--json")
        assert json.loads(other.stdout.splitlines()[-1])["export_id"] != export_id, "none was open"


def test_new_opens_another_export_beside_an_open_one(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=3, export={"types": ["Patient"]}, export_seconds=20.0) as site:
        first = json.loads(site.cli("run", "hosp", "--json").stdout.splitlines()[-1])
        assert first["state"] == "running"
        again = site.cli("run", "hosp", "--json")
        assert json.loads(again.stdout.splitlines()[-1]) == first
        second = json.loads(site.cli("run", "hosp", "--new", "--json").stdout.splitlines()[-1])
        assert second["export_id"] != first["export_id"]
        assert site.sandbox.control()["kickoffs"] == 2
        third = json.loads(site.cli("run", "hosp", "--json").stdout.splitlines()[-1])
        assert third["export_id"] == first["export_id"], "the oldest open one"


def stop_between_transactions(process: subprocess.Popen[bytes], home: Path) -> None:
    """One that is stopped while it writes to Dagster's SQLite would keep everybody else out of it."""
    for _ in range(100):
        process.send_signal(signal.SIGSTOP)
        if all(is_free(database) for database in home.rglob("*.db")):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("it writes to Dagster's database all the time")


def is_free(database: Path) -> bool:
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def test_two_commands_at_once_work_on_one_export_and_both_tell_its_end(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=4, export=TYPES) as site:
        site.sandbox.control(faults=[{"path": r"\.ndjson", "delay": 3, "times": 1}])
        first = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
        (export_id,) = eventually(lambda: [e for e in site.export_ids() if site.facts(e).claims], 120, 0.05)
        stop_between_transactions(first, site.home)  # alive, and as slow as it takes
        busy = site.cli("run", "hosp", check=False)
        assert busy.returncode == 5, busy.stderr
        assert "ingest by run" in busy.stderr
        second = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
        log = site.folder / "processes.log"
        eventually(lambda: "waiting for it" in log.read_text(), 120)
        first.send_signal(signal.SIGCONT)
        assert (first.wait(120), second.wait(120)) == (0, 0)
        assert log.read_text().count(f"hosp/{export_id} is published") == 2
        assert site.export_ids() == [export_id]
        assert len(site.facts(export_id).claims) == 1
        assert set(commits(site, export_id).values()) == {1}
        assert_whole(site, export_id)


def test_a_database_that_somebody_else_keeps_locked_is_told_as_such(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=3, export={"types": ["Patient"]}, export_seconds=20.0) as site:
        site.cli("run", "hosp")
        (database,) = site.home.rglob("runs.db")
        with closing(sqlite3.connect(database, isolation_level=None)) as keeper:
            keeper.execute("BEGIN EXCLUSIVE")
            done = site.cli("run", "hosp", "--wait", check=False)
        assert done.returncode == 7, done.stderr
        assert f"Dagster's database in {site.home} is locked" in done.stderr
        assert "Run the command again" in done.stderr
        assert "Traceback" not in done.stderr
        assert site.run_night()["export_id"] == site.export_ids()[0]
        assert len(site.export_ids()) == 1


def test_a_claim_of_a_machine_that_was_started_anew_is_taken_over(tmp_path: Path) -> None:
    """Its boot id is another one now (the fact is data: a boot cannot be tried here)."""
    with open_site(tmp_path, patients=4, export=TYPES) as site:
        killed(site, "behind", "put_new", r"/landed/")
        (export_id,) = site.export_ids()
        claim = site.lake / "hosp" / "exports" / export_id / "attempts" / "0001.json"
        fact = json.loads(claim.read_text())
        fact["owner"]["boot"] = "another-boot pid:[1]"
        fact["owner"]["pid"] = 1
        claim.write_text(json.dumps(fact))
        there, before = landed(site, export_id), fetched(site)
        assert there
        assert site.run_night()["export_id"] == export_id
        assert all(fetched(site)[url] == before[url] for url in there)
        assert_whole(site, export_id)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_command_on_a_machine_that_is_gone_is_taken_over_when_it_gives_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is started anew has another name: nothing here tells whether that process lives."""
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 25.0)
    with open_site(tmp_path, patients=4, export=TYPES) as site:
        site.sandbox.control(faults=[{"path": r"\.ndjson", "delay": 25, "times": 1, "skip": 1}])
        elsewhere = f"hostname gone && exec {BIN / 'fhir-export'} run hosp --wait"
        command = site.spawn("unshare", "--uts", "sh", "-c", elsewhere)
        (export_id,) = eventually(lambda: [e for e in site.export_ids() if site.facts(e).claims], 90)
        assert site.facts(export_id).claims[0].owner.host == "gone"
        monkeypatch.setenv("DAGSTER_HOME", str(site.home))
        said: list[str] = []
        threading.Timer(20, lambda: site.kill(command)).start()
        begun = time.monotonic()
        outcome = follow_export(site.config, site.source, export_id, said.append)
        assert outcome.state == "published", outcome
        assert time.monotonic() - begun > 20, "it waits while the other one lives"
        assert any("gone is taken to be gone" in each for each in said)
        assert [claim.number for claim in site.facts(export_id).claims] == [1, 2]
        assert_whole(site, export_id)


def test_the_server_is_gone_in_the_middle_of_a_file_and_comes_back(tmp_path: Path) -> None:
    """What has landed stays, the rest comes from the server that is there again."""
    options = {"export_seconds": 0.5, "poll_seconds": 1.0, "file_lines": 40, "state": tmp_path / "state"}
    with open_site(tmp_path / "site", patients=6, export=TYPES, **options) as site:
        site.sandbox.control(faults=[{"path": r"\.ndjson", "delay": 60, "times": 1, "skip": 1}])
        command = site.spawn(str(BIN / "fhir-export"), "run", "hosp", "--wait")
        eventually(lambda: any(landed(site, each) for each in site.export_ids()), 90)
        (export_id,) = site.export_ids()
        there, before = landed(site, export_id), fetched(site)
        port = urlsplit(site.sandbox.base_url).port
        jwks = json.loads(site.sandbox.jwks_file.read_text())
        site.sandbox.kill()
        time.sleep(3)
        log = tmp_path / "later.log"
        with start_sandbox(
            patients=6, seed=site.seed, jwks=jwks, access_log=log, port=port, **options
        ) as again:
            assert command.wait(300) == 0
            assert again.control()["kickoffs"] <= 1
        assert site.export_ids() == [export_id]
        later = [json.loads(line)["path"] for line in log.read_text().splitlines()]
        assert not there & {re.split(r"[?]", path)[0] for path in later}
        assert before
        assert set(commits(site, export_id).values()) == {1}
        assert_whole(site, export_id)
