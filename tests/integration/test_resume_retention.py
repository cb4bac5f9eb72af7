"""The retention job: what nothing names goes, and nothing else. The oracle reads facts and logs by itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from azure_storage import Azurite
from deltalake import DeltaTable
from ingest_by_hand import ingest, session_of, stage_everything
from lake_on_azurite import lake_by_key
from nightly_site import Site, open_site

from pipeline.bulkdata.answers import Complete
from pipeline.errors import ExportError
from pipeline.exports.attempt import claim_attempt
from pipeline.exports.closing import close
from pipeline.exports.orphans import find_orphans
from pipeline.exports.owner import this_process
from pipeline.exports.repair import withdraw
from pipeline.exports.request import request_export
from pipeline.exports.retention import clean, remove_orphans
from pipeline.exports.session import Session, utc_now
from pipeline.lake.lake import Lake
from pipeline.lake.local import LocalLake


class Killed(BaseException):
    """In the place of a SIGKILL: nothing that is written afterwards counts."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = {"export_seconds": 0.05, "poll_seconds": 0.0, "patients": 2, "file_lines": 15}
    folder = tmp_path_factory.mktemp("site")
    export = {"types": ["Patient", "Encounter"], "since": "never"}
    with open_site(folder, export=export, **options) as site:
        yield site


@pytest.fixture
def site(opened: Site, tmp_path: Path) -> Site:
    """The installation with a lake of its own for each test."""
    settings = yaml.safe_load(opened.config_path.read_text())
    settings["lake"] = str(tmp_path / "lake")
    opened.config_path.write_text(yaml.safe_dump(settings))
    opened.sandbox.control(faults=[])
    return _Elsewhere(opened.folder, opened.sandbox, opened.patients, opened.seed)


class _Elsewhere(Site):
    @property
    def lake(self) -> Path:
        return Path(yaml.safe_load(self.config_path.read_text())["lake"])


def kick_off(site: Site, export_id: str) -> None:
    session = session_of(site, "request")
    facts = request_export(session, export_id)
    assert facts.request is not None
    for _ in range(200):
        if isinstance(session.client.status(facts.request.status_url), Complete):
            return
        time.sleep(0.02)
    raise AssertionError("never ready")


@contextlib.contextmanager
def killed_behind(monkeypatch: pytest.MonkeyPatch, write: int) -> Iterator[None]:
    """The process dies behind its n-th write of a file that is not its own last word."""
    count = [0]

    def deadly(whole: Callable[..., Any], place: int) -> Callable[..., Any]:
        def work(lake: LocalLake, *arguments: Any) -> Any:
            if count[0] >= write:
                raise Killed
            result = whole(lake, *arguments)
            count[0] += 1
            if count[0] >= write:
                raise Killed
            return result

        return work

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(LocalLake, "put_file", deadly(LocalLake.put_file, 1))
        patched.setattr(LocalLake, "put_new", deadly(LocalLake.put_new, 0))
        yield


def clean_at_once(session: Session) -> list[str]:
    """All that is unreferenced, whatever its age."""
    found = find_orphans(session, utc_now() + timedelta(seconds=1))
    assert found.left_alone == ()
    return [each.path for each in remove_orphans(session, found)]


# --- the oracle: facts and logs, read without the code that is tested -----------------------------------


def facts_in(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def referenced(lake: Path) -> set[str]:
    named: set[str] = set()
    for export in (lake / "hosp" / "exports").iterdir():
        named |= {fact["raw"] for fact in facts_in(export, "landed/*.json")}
        receipts = facts_in(export, "receipts/*.json")
        named |= {path for fact in receipts for path in fact["quarantine"]}
        settled = max((fact["attempt"] for fact in receipts), default=0)
        over = {path.stem for path in export.glob("*.json")} & {"gone", "cancelled", "rejected", "withdrawn"}
        for fact in [] if over else facts_in(export, "staged/*/*.json"):
            if fact["attempt"] > settled:
                named |= {f"hosp/tables/{part['table']}/{part['path']}" for part in fact["parts"]}
                named |= {part["path"] for part in fact["quarantine"]}
    for log in (lake / "hosp" / "tables").glob("*/_delta_log"):
        named |= {str(Path(uri).relative_to(lake)) for uri in DeltaTable(str(log.parent)).file_uris()}
    return named


def present(lake: Path) -> set[str]:
    """Every file that could be an orphan."""
    found = [path for path in (lake / "hosp").rglob("*") if path.is_file()]
    names = {str(path.relative_to(lake)) for path in found}
    return {name for name in names if not re.match(r"hosp/exports/|hosp/tables/[^/]+/_delta_log/", name)}


def shown(lake: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every table as DuckDB reads it."""
    tables = sorted(log.parent for log in (lake / "hosp" / "tables").glob("*/_delta_log"))
    files = {table.name: DeltaTable(str(table)).file_uris() for table in tables}
    return {
        name: sorted(duckdb.sql(f"SELECT COLUMNS(*)::VARCHAR FROM read_parquet({uris})").fetchall(), key=str)
        for name, uris in files.items()
        if uris
    }


# --- any order of what can happen -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happened_what_is_named_stays_and_nothing_else_does(
    site: Site, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Design, Facts: state is which facts exist; issue 5: the job never touches what is referenced."""
    draw = random.Random(seed)
    exports, over = lived_through(site, monkeypatch, draw)
    strew(site, exports, draw)

    before, named = shown(site.lake), referenced(site.lake)
    lost = {path for path in named if not (site.lake / path).exists()}
    gone = clean_at_once(session_of(site, "clean"))
    assert not {path for path in named if not (site.lake / path).exists()} - lost
    assert shown(site.lake) == before
    assert present(site.lake) == named - lost, "what nothing names is gone"
    assert not named & set(gone)
    assert clean_at_once(session_of(site, "clean")) == []

    downloads = downloaded(site)
    for export_id in exports:
        facts = session_of(site, "look").ledger.read(export_id)
        if export_id in over or not facts.request or facts.receipt:
            continue
        whole = bool(facts.manifest) and set(landed_indices(site, export_id)) >= {0, 1}
        receipt = ingest(session_of(site, f"end {export_id}"), export_id)
        assert receipt.rows == sum(len(ids) for ids in wanted(site).values())
        assert not whole or downloaded(site) == downloads, "what has landed is not fetched again"
        downloads = downloaded(site)
    for export_id in exports:
        if session_of(site, "look").ledger.read(export_id).receipt and export_id not in over:
            for kind, ids in wanted(site).items():
                assert site.ids_in(kind.lower(), export_id) == ids


def lived_through(
    site: Site, monkeypatch: pytest.MonkeyPatch, draw: random.Random
) -> tuple[list[str], set[str]]:
    """Exports in any state; those that are over for good apart."""
    exports: list[str] = []
    over: set[str] = set()
    for number in range(draw.randint(5, 9)):
        act = draw.choice(["new", "stage", "kill", "kill", "publish", "again", "hold", "withdraw"])
        session = session_of(site, f"run {number}")
        usable = [each for each in exports if each not in over]
        if act == "new" or not usable:
            exports.append(f"202601{len(exports) + 1:02d}T020000Z")
            kick_off(site, exports[-1])
            continue
        export_id = draw.choice(usable)
        try:
            if act == "stage":
                stage_everything(session, claim_attempt(session, export_id))
            elif act == "kill":
                with killed_behind(monkeypatch, draw.randint(2, 14)):
                    ingest(session, export_id)
            elif act in ("publish", "again"):
                ingest(session, export_id)
            elif act == "hold" and not session.ledger.read(export_id).receipt:
                close(session, export_id, "held", "too many bad lines")
            elif act == "withdraw":
                withdraw(session, export_id)
                over.add(export_id)
        except ExportError as refused:
            assert act in ("stage", "kill", "publish", "again", "withdraw"), (act, refused)
    return exports, over


def strew(site: Site, exports: list[str], draw: random.Random) -> None:
    """What a SIGKILL leaves between a file and the fact that would name it."""
    for export_id in draw.sample(exports, min(2, len(exports))):
        for path in (
            f"hosp/raw/{export_id}/patient/000000-0009-deadbeef.ndjson",
            f"hosp/tables/patient/export_id={export_id}/part-0009-{draw.getrandbits(64):x}.parquet",
            f"hosp/tables/never_seen/export_id={export_id}/part-0001-{draw.getrandbits(64):x}.parquet",
            f"hosp/quarantine/{export_id}/0009/patient-00000.ndjson",
            f"hosp/exports/{export_id}/.unfinished-{draw.getrandbits(64):x}",
        ):
            (site.lake / path).parent.mkdir(parents=True, exist_ok=True)
            (site.lake / path).write_bytes(b"half")


def downloaded(site: Site) -> int:
    return sum(".ndjson" in entry["path"] for entry in site.sandbox.access_log())


def landed_indices(site: Site, export_id: str) -> list[int]:
    batches = session_of(site, "look").ledger.landed(export_id)
    return [file.index for batch in batches for file in batch.files]


def wanted(site: Site) -> dict[str, list[str]]:
    truth = site.ids_in_truth(1)
    return {kind: truth[kind] for kind in ("Patient", "Encounter")}


# --- every doubt keeps ----------------------------------------------------------------------------------

EXPORT = "20260101T020000Z"


def published(site: Site, export_id: str = EXPORT) -> Site:
    kick_off(site, export_id)
    ingest(session_of(site, "night"), export_id)
    return site


def put(site: Site, path: str, days: float = 0) -> Path:
    file = site.lake / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"orphan")
    age(file, days)
    return file


def age(file: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(file, (then, then))


def everything_old(site: Site, days: float = 100) -> None:
    for path in (site.lake / "hosp").rglob("*"):
        if path.is_file():
            age(path, days)


def kinds(site: Site) -> dict[str, tuple[int, int]]:
    return clean(session_of(site, "clean")).kinds()


def test_younger_files_stay_and_a_dry_run_removes_nothing(site: Site) -> None:
    published(site)
    everything_old(site)
    young = put(site, f"hosp/raw/{EXPORT}/patient/x.ndjson", days=6.9)
    inside_margin = put(site, f"hosp/raw/{EXPORT}/patient/z.ndjson", days=7 + 60 / 86_400)
    old = put(site, f"hosp/raw/{EXPORT}/patient/y.ndjson", days=7.1)
    dry = clean(session_of(site, "clean"), dry_run=True)
    assert [each.path for each in dry.orphans] == [f"hosp/raw/{EXPORT}/patient/y.ndjson"]
    assert old.exists()
    assert kinds(site) == {"raw": (1, 6)}
    assert young.exists() and inside_margin.exists() and not old.exists()


@pytest.mark.parametrize("fact", ["landed", "staged", "attempts"])
def test_an_export_with_a_fact_that_cannot_be_read_is_left_alone_and_named(site: Site, fact: str) -> None:
    published(site)
    damaged = next((site.lake / "hosp" / "exports" / EXPORT).glob(f"{fact}/**/*.json"))
    damaged.write_text("{")
    orphans = [
        put(site, f"hosp/raw/{EXPORT}/patient/x.ndjson"),
        put(site, f"hosp/tables/patient/export_id={EXPORT}/part-0009-x.parquet"),
        put(site, f"hosp/quarantine/{EXPORT}/0009/patient-00000.ndjson"),
    ]
    everything_old(site)
    cleaned = clean(session_of(site, "clean"))
    assert cleaned.orphans == ()
    assert all(each.exists() for each in orphans)
    assert [each.split(":")[0] for each in cleaned.left_alone] == [f"export {EXPORT}"]


def test_a_table_whose_log_cannot_be_read_is_left_alone_and_the_others_are_not(site: Site) -> None:
    """Also what no receipt speaks of."""
    published(site)
    later = "20260102T020000Z"
    kick_off(site, later)
    close(session_of(site, "close"), later, "gone", "the job is gone")
    (site.lake / "hosp/tables/patient/_delta_log/00000000000000000000.json").write_text("{")
    kept = [
        put(site, f"hosp/tables/patient/export_id={each}/part-0009-x.parquet") for each in (EXPORT, later)
    ]
    gone = put(site, f"hosp/tables/encounter/export_id={EXPORT}/part-0009-x.parquet")
    everything_old(site)
    cleaned = clean(session_of(site, "clean"))
    assert [each.path for each in cleaned.orphans] == [str(gone.relative_to(site.lake))]
    assert all(each.exists() for each in kept)
    assert "table patient" in cleaned.left_alone[0]


def test_files_of_an_export_without_facts_stay_for_somebody_has_moved_the_facts(site: Site) -> None:
    published(site)
    (site.lake / "hosp/exports" / EXPORT).rename(site.folder / f"moved-{time.time_ns()}")
    everything_old(site)
    before = present(site.lake)
    cleaned = clean(session_of(site, "clean"))
    assert (cleaned.orphans, present(site.lake)) == ((), before)
    assert "moved the facts" in cleaned.left_alone[0]


def test_an_export_that_somebody_works_on_is_left_alone(site: Site) -> None:
    kick_off(site, EXPORT)
    alive = Session(site.config, site.source, this_process("alive"))
    stage_everything(alive, claim_attempt(alive, EXPORT))
    orphan = put(site, f"hosp/raw/{EXPORT}/patient/x.ndjson")
    everything_old(site)
    cleaned = clean(Session(site.config, site.source, this_process("clean")))
    assert orphan.exists()
    assert cleaned.left_alone == (f"export {EXPORT}: run alive is at work on it",)
    assert kinds(site) == {"raw": (1, 6)}, "when that run is over"


def test_what_happens_between_the_listing_and_the_removal_keeps_the_files(site: Site) -> None:
    """Somebody begins to ingest a closed export by hand, whose staged parts nothing protects."""
    kick_off(site, EXPORT)
    session = session_of(site, "stage")
    stage_everything(session, claim_attempt(session, EXPORT))
    close(session, EXPORT, "gone", "the job is gone")
    found = find_orphans(session, utc_now() + timedelta(seconds=1))
    assert {each.kind for each in found.orphans} == {"part"}
    claim_attempt(session_of(site, "by hand"), EXPORT)
    assert remove_orphans(session, found) == ()


def test_readers_of_an_older_version_keep_its_files_for_as_long_as_orphans_are_kept(site: Site) -> None:
    published(site)
    table = site.lake / "hosp/tables/patient"
    first = DeltaTable(str(table)).version()
    ingest(session_of(site, "again"), EXPORT)
    everything_old(site)
    newest = max((table / "_delta_log").glob("*.json"))
    age(newest, days=3)
    assert "part" not in kinds(site) or site.ids_in("patient", EXPORT)
    old = DeltaTable(str(table), version=first).file_uris()
    assert len(duckdb.sql(f"SELECT id FROM read_parquet({old})").fetchall()) == len(wanted(site)["Patient"])
    everything_old(site)
    assert kinds(site)["part"][0] >= 1
    assert not any(Path(each).exists() for each in old)
    assert site.ids_in("patient", EXPORT) == wanted(site)["Patient"]


@pytest.mark.parametrize(("state", "goes"), [(None, False), ("held", False), ("cancelled", True)])
def test_the_bytes_of_files_that_failed_verification_stay_until_the_export_is_over(
    site: Site, state: str | None, goes: bool
) -> None:
    kick_off(site, EXPORT)
    if state:
        long_ago = replace(session_of(site, "night"), now=lambda: utc_now() - timedelta(days=50))
        close(long_ago, EXPORT, state, "by hand")
    rejected = put(site, f"hosp/raw/{EXPORT}/rejected/output-000000", days=60)
    assert kinds(site) == ({"rejected": (1, 6)} if goes else {})
    assert rejected.exists() is not goes


def test_raw_bytes_go_after_raw_days_and_a_killed_drop_is_finished(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design, Facts: raw bytes are dropped only after receipt and release, by a step that can be resumed."""
    published(site)
    unpublished = "20260102T020000Z"
    kick_off(site, unpublished)
    session = session_of(site, "stage")
    stage_everything(session, claim_attempt(session, unpublished))
    later = {"now": lambda: utc_now() + timedelta(days=31)}
    files = len(list((site.lake / "hosp/raw" / EXPORT).rglob("*.ndjson*")))
    limited = site.config.retention.model_copy(update={"raw_days": 30.0})
    config = site.config.model_copy(update={"retention": limited})
    cleaning = replace(session_of(site, "clean"), config=config)
    assert clean(cleaning).old_raw == (), "too young"
    cleaning = replace(cleaning, **later)  # type: ignore[arg-type]
    removed = []

    def deadly(lake: LocalLake, relative: str) -> None:
        (lake.local_root / relative).unlink()
        removed.append(relative)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(LocalLake, "remove", deadly)
        clean(cleaning)
    assert len(removed) == 1
    assert not session.ledger.read(EXPORT).raw_dropped
    (old,) = clean(cleaning).old_raw
    assert (old.export_id, old.files) == (EXPORT, files - 1)
    assert session.ledger.read(EXPORT).raw_dropped
    assert list((site.lake / "hosp/raw" / unpublished).rglob("*.ndjson*"))
    assert clean(cleaning).old_raw == ()
    assert ingest(session_of(site, "end"), unpublished).rows == sum(len(i) for i in wanted(site).values())


# --- by people, by Dagster, on Azure --------------------------------------------------------------------


def test_the_command_lists_in_a_dry_run_and_removes_without(site: Site) -> None:
    published(site)
    orphan = put(site, f"hosp/tables/patient/export_id={EXPORT}/part-0009-x.parquet", days=9)
    dry = site.cli("clean", "hosp", "--dry-run")
    assert str(orphan.relative_to(site.lake)) in dry.stdout
    assert orphan.exists()
    (done,) = json.loads(site.cli("clean", "--json").stdout)
    assert done["kinds"] == {"part": {"files": 1, "bytes": 6}}
    assert not orphan.exists()
    assert "nothing to remove" in site.cli("clean").stderr


def test_the_retention_job_runs_by_its_schedule_and_removes_the_same(site: Site) -> None:
    import dagster as dg

    from pipeline.orchestration.factory import build_source

    published(site)
    orphan = put(site, f"hosp/raw/{EXPORT}/patient/x.ndjson", days=9)
    definitions = build_source(site.config, site.source)
    schedule = definitions.resolve_schedule_def("hosp_retention_schedule")
    assert (schedule.cron_schedule, schedule.default_status) == (
        "30 4 * * 0",
        dg.DefaultScheduleStatus.RUNNING,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        done = definitions.resolve_job_def("hosp_retention").execute_in_process(instance=instance)
    assert done.success
    assert not orphan.exists()
    none = site.config.model_copy(
        update={"retention": site.config.retention.model_copy(update={"schedule": None})}
    )
    names = {each.name for each in build_source(none, site.source).schedules or ()}
    assert names == {"hosp_schedule"}


def test_on_azure_the_same_files_go_and_stay(site: Site, azurite: Azurite, tmp_path: Path) -> None:
    """The age is the blob's own; nothing there can be made older, so everything counts as old."""
    lake = lake_by_key(azurite)
    published(site)
    strew(site, [EXPORT], random.Random(1))
    put(site, f"hosp/exports/{EXPORT}/.unfinished-1")
    copies = sorted(path for path in site.lake.rglob("*") if path.is_file() and ".spool" not in path.parts)
    for path in copies:
        lake.put_file(path, path.relative_to(site.lake).as_posix())
    session = session_of(site, "clean")
    session.__dict__["lake"] = lake
    named = referenced(site.lake)
    gone = clean_at_once(session)
    left = {name.removeprefix("night/") for name in azurite.names(container_of(lake), "night/hosp/")}
    assert named <= left
    assert not set(gone) & left
    assert len(gone) >= 6
    young = find_orphans(session, utc_now() - timedelta(minutes=10))
    assert young.orphans == ()


def container_of(lake: Lake) -> str:
    return lake.root.partition("/")[0]
