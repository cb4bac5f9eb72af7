"""What an operator does about an export, with the lake in Azure storage: the same as with one on a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from azure_storage import Azurite
from driven_by_hand import EXPORT, Drive
from installation import Installation, truth_of
from nightly_site import Site, open_site

from pipeline.config import Config
from pipeline.exports.flattening import make_flat
from pipeline.exports.overview import summaries, watching_session
from pipeline.exports.owner import this_process
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.state import Closed
from pipeline.sandbox.process import SandboxProcess, start_sandbox

PATIENTS, SEED = 6, 5
TYPES = ("Patient", "Encounter")
TABLES = ("patient", "encounter", "patient_flat", "_exports", "_lineage")
SANDBOX: dict[str, Any] = {
    "patients": PATIENTS,
    "seed": SEED,
    "export_seconds": 0.1,
    "poll_seconds": 0.0,
    "file_lines": 40,
}
ENTRY = {"export": {"group": "demo", "types": list(TYPES)}, "schedule": "0 0 29 2 *", "max_attempts": 1}


class Place(Protocol):
    """An installation, wherever its lake is."""

    cli: Callable[..., Any]


@contextmanager
def on_azure(folder: Path, azurite: Azurite) -> Iterator[tuple[Installation, SandboxProcess]]:
    site = Installation(folder, azurite, azurite.new_container(), [])
    with start_sandbox(jwks=site.new_key("hosp", "ES384"), night=1, **SANDBOX) as sandbox:
        auth = {"client_id": "nightly", "private_key": "file:keys/hosp.pem", "algorithm": "ES384"}
        site.sources.append({"name": "hosp", "fhir_url": sandbox.fhir_url, "auth": auth, **ENTRY})
        site.write()
        yield site, sandbox


@contextmanager
def on_disk(folder: Path) -> Iterator[Site]:
    with open_site(folder, source=ENTRY, **SANDBOX) as site:
        yield site


def session_of(config: Config) -> Session:
    return Session(config, config.source(None), this_process("test"), is_dead=lambda _: True)


def published(config: Config) -> None:
    """With a flat table."""
    site: Any = SimpleNamespace(config=config, source=config.source(None))
    Drive(site).to_the_end()
    make_flat(session_of(config), EXPORT, "Patient", ("patient_flat",))


def held(place: Place, config: Config, sandbox: SandboxProcess) -> None:
    """Its one attempt ended at files that are damaged at the server, which is over now."""
    damaged = {"path": r"\.ndjson", "times": None, "status": 200, "body": "<html>no</html>"}
    sandbox.control(faults=[damaged])
    request_export(session_of(config), EXPORT)
    # In a process of its own: while ours lives, whatever it has claimed is being worked on.
    place.cli("run", "hosp", "--wait", check=False)
    session = session_of(config)
    assert session.next_step(session.ledger.read(EXPORT)) == Closed("held")
    sandbox.control(faults=[])


def said(place: Place, *arguments: str) -> list[str]:
    done = place.cli(*arguments)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def shown(config: Config) -> tuple[str, str, str]:
    session = watching_session(config, config.source(None), is_dead=lambda _: True)
    told = summaries(session)[0]
    return told.state, told.reason, told.next_step


def facts_on(place: Installation | Site) -> list[str]:
    """The facts of the export, by name."""
    if isinstance(place, Installation):
        folder = f"hosp/exports/{EXPORT}/"
        return sorted(name.removeprefix(folder) for name in place.blobs(folder))
    below = place.lake / "hosp" / "exports" / EXPORT
    return sorted(str(path.relative_to(below)) for path in below.rglob("*") if path.is_file())


def test_a_published_export_is_withdrawn_on_azure_as_on_a_disk(tmp_path: Path, azurite: Azurite) -> None:
    """Its rows leave every table, `_exports` first; the job's deletion and the facts are the same."""
    with on_azure(tmp_path / "azure", azurite) as (site, _), on_disk(tmp_path / "disk") as local:
        config = site.load()
        for each in (config, local.config):
            published(each)
        assert site.require_same("hosp", EXPORT, truth_of(SEED, PATIENTS, 1, TYPES))
        assert all(site.table("hosp", table, EXPORT) for table in TABLES)
        raw = site.blobs(f"hosp/raw/{EXPORT}/")

        words = said(site, "withdraw", f"hosp/{EXPORT}")
        assert words == said(local, "withdraw", f"hosp/{EXPORT}")
        assert [table for table in TABLES if not any(f"{table}: the rows" in line for line in words)] == []
        assert [table for table in TABLES if site.table("hosp", table, EXPORT)] == []
        assert facts_on(site) == facts_on(local)
        assert {"withdrawing.json", "withdrawn.json", "released.json"} <= set(facts_on(site))
        assert shown(config) == shown(local.config)
        assert site.blobs(f"hosp/raw/{EXPORT}/") == raw != [], "raw bytes stay"
        assert said(site, "withdraw", f"hosp/{EXPORT}") == said(local, "withdraw", f"hosp/{EXPORT}")


def test_a_held_export_is_retried_on_azure_as_on_a_disk(tmp_path: Path, azurite: Azurite) -> None:
    with on_azure(tmp_path / "azure", azurite) as (site, sandbox), on_disk(tmp_path / "disk") as local:
        config = site.load()
        held(site, config, sandbox)
        held(local, local.config, local.sandbox)
        assert shown(config) == shown(local.config)
        assert site.blobs("hosp/tables/") == [], "nothing of it is visible"

        said(site, "retry", f"hosp/{EXPORT}", "--wait")
        said(local, "retry", f"hosp/{EXPORT}", "--wait")
        assert site.require_same("hosp", EXPORT, truth_of(SEED, PATIENTS, 1, TYPES))
        assert len(site.table("hosp", "_exports", EXPORT)) == 1
        assert facts_on(site) == facts_on(local)
        assert {"held.json", "retries/0001.json", "receipts/0002.json"} <= set(facts_on(site))
        assert shown(config) == shown(local.config)
        refused = site.cli("retry", f"hosp/{EXPORT}", check=False)
        assert refused.returncode == 2
        assert "`dagster job execute -m pipeline.definitions -j hosp_ingest --tags " in refused.stderr


def test_a_held_export_is_withdrawn_on_azure(tmp_path: Path, azurite: Azurite) -> None:
    """Protocol 35: the job on the server is deleted."""
    with on_azure(tmp_path, azurite) as (site, sandbox):
        held(site, site.load(), sandbox)
        words = said(site, "withdraw", f"hosp/{EXPORT}")
        assert any("the job on the server is deleted" in line for line in words)
        assert all(job["deleted"] for job in sandbox.control()["jobs"])
        assert "withdrawn.json" in facts_on(site)
