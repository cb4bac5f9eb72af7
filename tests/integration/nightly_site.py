"""A whole installation in a folder: configuration, key, lake, DAGSTER_HOME, and its own sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import yaml
from deltalake import DeltaTable

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.signers import PemSigner
from pipeline.config import Config, Source, load_config
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.sandbox import truth
from pipeline.sandbox.process import SandboxProcess, start_sandbox

BIN = Path(sys.executable).parent

PATIENCE = 4
"""Times what a thing may take here: for slower machines. It costs nothing where all goes well."""

DAGSTER_YAML = Path(__file__).parents[2] / "dagster_home" / "dagster.yaml"


@dataclass
class Site:
    """One source named `hosp` that exports from `sandbox`."""

    folder: Path
    sandbox: SandboxProcess
    patients: int
    seed: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config_path(self) -> Path:
        return self.folder / "home" / "exports.yaml"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    @property
    def source(self) -> Source:
        return self.config.source(None)

    @property
    def session(self) -> Session:
        return Session(self.config, self.source, this_process("test"))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "EXPORTS_CONFIG": str(self.config_path),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `fhir-export` as a user would."""
        done = subprocess.run(
            [str(BIN / "fhir-export"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 240,
            check=False,
            cwd=self.folder,
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def run_night(self, check: bool = True) -> dict[str, Any]:
        """`fhir-export run --wait --json`; its last line."""
        done = self.cli("run", "hosp", "--wait", "--json", check=check)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """A process of its own group, with its output in a log of the site."""
        log = (self.folder / "processes.log").open("ab")
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
        )
        log.close()
        self.processes.append(process)
        return process

    def daemon(self) -> subprocess.Popen[bytes]:
        return self.spawn(str(BIN / "dagster-daemon"), "run", "-m", "pipeline.definitions")

    def spawn_daemon_until(self, done: Callable[[], bool], seconds: float) -> None:
        """A daemon for as long as it takes, and until every run that it has launched is over."""
        daemon = self.daemon()
        eventually(done, seconds)
        eventually(lambda: all(run.is_finished for run in self.instance().get_runs()), 60)
        self.kill(daemon, signal.SIGTERM)

    def kill(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        """Ends a process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait(60)

    def dagster(self, *arguments: str) -> None:
        subprocess.run(
            [str(BIN / "dagster"), *arguments, "-m", "pipeline.definitions"],
            env=self.environment,
            check=True,
            capture_output=True,
            cwd=self.folder,
            timeout=PATIENCE * 120,
        )

    def facts(self, export_id: str) -> Facts:
        return self.session.ledger.read(export_id)

    def export_ids(self) -> list[str]:
        return self.session.ledger.export_ids()

    def files_of(self, table: str, export_id: str | None = None) -> list[str]:
        """The committed Parquet files, as delta-rs lists them."""
        uris = DeltaTable(str(self.lake / "hosp" / "tables" / table)).file_uris()
        return sorted(uri for uri in uris if export_id is None or f"export_id={export_id}/" in uri)

    def ids_in(self, table: str, export_id: str) -> list[str]:
        """Every id of one export, by DuckDB."""
        files = self.files_of(table, export_id)
        if not files:
            return []
        return sorted(row[0] for row in duckdb.sql(f"select id from read_parquet({files})").fetchall())

    def truth(self, night: int, group: str | None = "demo") -> dict[str, list[dict[str, Any]]]:
        """What the server has, by type: read from the generator, not from our client."""
        found: dict[str, list[dict[str, Any]]] = {}
        for resource_type, line in truth(self.seed, self.patients, night, group):
            found.setdefault(resource_type, []).append(json.loads(line))
        return found

    def ids_in_truth(self, night: int) -> dict[str, list[str]]:
        return {kind: sorted(each["id"] for each in rows) for kind, rows in self.truth(night).items()}


@contextmanager
def open_site(
    folder: Path,
    *,
    patients: int = 12,
    seed: int = 7,
    export: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **sandbox_options: Any,
) -> Iterator[Site]:
    """Makes the installation and starts the sandbox; stops everything at the end."""
    home = folder / "home"
    home.mkdir(parents=True)
    asked = {"group": "demo", **(export or {})}
    if asked.get("level", "group") == "group":
        asked.setdefault("since", "never")  # each night whole; test_group_membership has the others
    (home / "dagster.yaml").write_text(DAGSTER_YAML.read_text())
    pem = generate_key("ES384")
    write_private_key(home / "keys" / "hosp.pem", pem)
    signer = PemSigner.from_pem(pem, "ES384")
    options = {"export_seconds": 1.0, "poll_seconds": 1.0, "file_lines": 40, **sandbox_options}
    with start_sandbox(
        patients=patients,
        seed=seed,
        night=1,
        jwks={"keys": [signer.public_jwk()]},
        access_log=folder / "access.log",
        **options,
    ) as sandbox:
        entry = {
            "name": "hosp",
            "fhir_url": sandbox.fhir_url,
            "auth": {"client_id": "nightly", "private_key": "file:keys/hosp.pem", "algorithm": "ES384"},
            "export": asked,
            "schedule": "* * * * *",
            "flat": False,  # they take half a second a type; test_flat_assets and the demo have them
            "current": False,  # test_current_* and the demo have them
            **(source or {}),
        }
        (home / "exports.yaml").write_text(
            yaml.safe_dump({"lake": str(folder / "lake"), "sources": [entry], **(config or {})})
        )
        site = Site(folder, sandbox, patients, seed)
        try:
            yield site
        finally:
            for process in site.processes:
                if process.poll() is None:
                    site.kill(process)


def eventually(what: Callable[[], Any], seconds: float = 60, every: float = 0.2) -> Any:
    """The first true value of `what`; fails loudly when there is none in time."""
    deadline = time.monotonic() + PATIENCE * seconds
    while time.monotonic() < deadline:
        value = what()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"nothing in {PATIENCE * seconds} s: {what}")
