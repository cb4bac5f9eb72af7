"""The doctor over a lake that real nights made, with contradictions made by hand on its files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ingest_by_hand import EXPORT, session_of, stage_everything, wait_until_ready
from nightly_site import Site, open_site

from pipeline.config import Config
from pipeline.exports.attempt import claim_attempt
from pipeline.exports.doctor import examine_lake
from pipeline.exports.facts import ClosingFact
from pipeline.exports.finding import Finding
from pipeline.exports.manifests import open_manifest
from pipeline.exports.owner import this_process
from pipeline.exports.publishing import publish
from pipeline.exports.session import Session

SMALL = {"types": ["Patient", "Encounter"]}


@dataclass
class Copy:
    """A lake of one's own to break."""

    folder: Path
    config: Config
    export_id: str

    @property
    def session(self) -> Session:
        source = self.config.source(None)
        return Session(self.config, source, this_process("test"), is_dead=lambda _: True)

    @property
    def facts(self) -> Path:
        return self.folder / "lake" / "hosp" / "exports" / self.export_id

    @property
    def tables(self) -> Path:
        return self.folder / "lake" / "hosp" / "tables"

    def examine(self) -> list[Finding]:
        return examine_lake(self.session)

    @property
    def checks(self) -> set[str]:
        return {each.check for each in self.examine()}


def copy_of(site: Site, folder: Path, export_id: str) -> Copy:
    shutil.copytree(site.lake, folder / "lake", dirs_exist_ok=True)
    shutil.copytree(site.home / "keys", folder / "keys", dirs_exist_ok=True)
    config = site.config.model_copy(update={"lake": str(folder / "lake"), "folder": folder})
    return Copy(folder, config, export_id)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    with open_site(tmp_path_factory.mktemp("doctor"), export=SMALL) as site:
        night = site.run_night()
        yield site, night["export_id"]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """An export whose run was killed between staging and publishing."""
    with open_site(tmp_path_factory.mktemp("staged"), export=SMALL) as site:
        wait_until_ready(site)
        session = session_of(site, "killed")
        attempt = claim_attempt(session, EXPORT)
        open_manifest(session, attempt)
        stage_everything(session, attempt)
        yield site, EXPORT


@pytest.fixture
def lake(published: tuple[Site, str], tmp_path: Path) -> Copy:
    return copy_of(published[0], tmp_path, published[1])


@pytest.fixture
def half(staged: tuple[Site, str], tmp_path: Path) -> Copy:
    return copy_of(staged[0], tmp_path, staged[1])


def test_a_healthy_lake_has_nothing(lake: Copy) -> None:
    assert lake.examine() == []


def test_an_export_that_goes_on_by_itself_is_a_note_only(half: Copy) -> None:
    assert {(each.severity, each.check) for each in half.examine()} == {("note", "claim-of-the-dead")}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])


def one(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


BREAKS: dict[str, tuple[str, Callable[[Copy], None]]] = {
    "a damaged fact": ("facts-damaged", lambda c: cut(c.facts / "request.json")),
    "request without intent": ("request-without-intent", lambda c: (c.facts / "intent.json").unlink()),
    "manifest without request": ("manifest-without-request", lambda c: (c.facts / "request.json").unlink()),
    "no publication": ("receipt-without-publication", lambda c: shutil.rmtree(c.facts / "published")),
    "a landed fact is damaged": ("landed-damaged", lambda c: cut(one(c.facts / "landed", "*.json"))),
    "raw bytes are gone": ("raw-missing", lambda c: shutil.rmtree(c.folder / "lake/hosp/raw")),
    "raw bytes are cut": (
        "raw-missing",
        lambda c: cut(next(p for p in (c.folder / "lake/hosp/raw").rglob("*") if p.is_file())),
    ),
    "a part is gone": ("parts-missing", lambda c: one(c.tables / "patient", "*.parquet").unlink()),
    "a part is cut": ("parts-missing", lambda c: cut(one(c.tables / "patient", "*.parquet"))),
    "a table is gone": ("rows-differ", lambda c: shutil.rmtree(c.tables / "patient")),
    "the log is unreadable": (
        "log-unreadable",
        lambda c: cut(one(c.tables / "patient/_delta_log", "*.json")),
    ),
    "a version of the log is gone": (
        "log-incomplete",
        lambda c: (c.tables / f"patient/_delta_log/{0:020d}.json").unlink(),
    ),
    "no row in _exports": ("exports-row", lambda c: shutil.rmtree(c.tables / "_exports")),
    "no facts": ("rows-without-facts", lambda c: shutil.rmtree(c.facts)),
    "the receipt is gone": ("publish-cut", lambda c: shutil.rmtree(c.facts / "receipts")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_contradiction_is_found_and_says_how_to_mend_it(lake: Copy, name: str) -> None:
    check, break_it = BREAKS[name]
    break_it(lake)
    findings = lake.examine()
    (found, *_) = [each for each in findings if each.check == check]
    assert found.mend
    assert found.what
    assert found.where


def test_one_broken_thing_hides_no_other(lake: Copy) -> None:
    cut(lake.facts / "request.json")
    cut(one(lake.tables / "patient/_delta_log", "*.json"))
    one(lake.tables / "encounter", "*.parquet").unlink()
    assert {"facts-damaged", "log-unreadable", "parts-missing"} <= lake.checks


def test_missing_manifest_pages_are_found(lake: Copy) -> None:
    path = lake.facts / "manifest.json"
    first = json.loads(path.read_text())
    path.write_text(json.dumps({**first, "pages": 2}))
    assert "manifest-pages" in lake.checks


def test_a_receipt_that_says_other_rows_than_the_table_is_found(lake: Copy) -> None:
    path = one(lake.facts / "receipts", "*.json")
    receipt = json.loads(path.read_text())
    receipt["tables"]["patient"]["rows"] += 1
    path.write_text(json.dumps(receipt))
    assert "rows-differ" in lake.checks


def test_a_raw_file_that_no_fact_names_is_a_note(lake: Copy) -> None:
    folder = lake.folder / "lake/hosp/raw" / lake.export_id / "patient"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0001-orphan.ndjson").write_bytes(b"{}")
    assert [(each.severity, each.check) for each in lake.examine()] == [("note", "raw-orphans")]


def test_a_job_that_was_never_given_back_is_a_note(lake: Copy) -> None:
    (lake.facts / "released.json").unlink()
    assert lake.examine() == [], "it is still tried"
    path = one(lake.facts / "receipts", "*.json")
    receipt = json.loads(path.read_text())
    path.write_text(json.dumps({**receipt, "at": "2020-01-01T00:00:00Z"}))
    assert "not-released" in lake.checks


def test_a_watermark_that_goes_back_and_hosts_that_take_turns_are_found(lake: Copy) -> None:
    for number, host in enumerate(["other-host", None]):
        later = lake.facts.with_name(f"2099010{number + 1}T020000Z")
        shutil.copytree(lake.facts, later)
        for path in [*later.glob("receipts/*.json"), *later.glob("attempts/*.json"), later / "intent.json"]:
            fact = json.loads(path.read_text())
            fact["at"] = f"2099-01-0{number + 1}T02:00:00Z"
            if host:
                fact["owner"]["host"] = host
            if "watermark" in fact:
                fact["watermark"] = "2001-01-01T00:00:00Z"
            path.write_text(json.dumps(fact))
    assert {"watermark-back", "two-installations"} <= lake.checks


def test_a_staged_part_that_is_gone_is_found_while_it_is_needed(half: Copy) -> None:
    one(half.tables / "patient", "*.parquet").unlink()
    assert "staged-missing" in half.checks


def test_an_export_past_its_deadline_is_shown(half: Copy) -> None:
    shutil.rmtree(half.facts / "attempts")
    assert "overdue" not in half.checks
    source = half.config.source(None).model_copy(update={"deadline_hours": 1e-6})
    half.config = half.config.model_copy(update={"sources": (source,)})
    assert "overdue" in half.checks


def test_a_held_export_is_shown(half: Copy) -> None:
    (half.facts / "held.json").write_text(
        ClosingFact(at=datetime.now(UTC), reason="the disk is full", advice="make room").model_dump_json()
    )
    held = next(each for each in half.examine() if each.check == "held")
    assert "the disk is full" in held.what
    assert held.severity == "warning"


def test_a_publish_that_was_cut_goes_on_by_itself_or_needs_somebody(half: Copy) -> None:
    session = session_of_copy(half)
    attempt = claim_attempt(session, half.export_id)
    stage_everything(session, attempt)
    publish(session, attempt, open_manifest(session, attempt), ())
    found = next(each for each in half.examine() if each.check == "publish-cut")
    assert found.severity == "note", "the next attempt finishes it"
    (half.facts / "held.json").write_text(
        ClosingFact(at=datetime.now(UTC), reason="the disk is full").model_dump_json()
    )
    found = next(each for each in half.examine() if each.check == "publish-cut")
    assert found.severity == "error"
    assert "retry" in found.mend


def session_of_copy(copy: Copy) -> Session:
    source = copy.config.source(None)
    return Session(copy.config, source, this_process("again"), is_dead=lambda _: True)


def test_keys_and_a_lake_that_everybody_may_read_are_found(published: tuple[Site, str]) -> None:
    """In a folder that everybody may enter: pytest's own are private."""
    folder = Path("/tmp") / f"doctor-open-{os.getpid()}"
    try:
        folder.mkdir(mode=0o755)
        copy = copy_of(published[0], folder, published[1])
        for each in (folder / "lake", folder / "lake/hosp"):
            each.chmod(0o755)
        assert copy.checks == {"lake-readable"}
        (folder / "lake").chmod(0o700)
        assert copy.checks == set()
        key = folder / "keys" / "hosp.pem"
        key.chmod(0o644)
        assert copy.checks == set(), "nobody else can enter its folder"
        (folder / "keys").chmod(0o755)
        (found,) = copy.examine()
        assert (found.severity, found.check, found.where) == ("error", "key-readable", str(key))
        assert "everybody" in found.what
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_lake_that_is_not_there_is_told_and_raises_nothing(lake: Copy) -> None:
    shutil.rmtree(lake.folder / "lake")
    assert lake.examine() == []
    (lake.folder / "lake").mkdir()
    (lake.folder / "lake" / "hosp").write_text("a file where the source's folder should be")
    lake.examine()
