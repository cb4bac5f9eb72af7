"""A whole installation with its lake in Azurite: configuration, keys, DAGSTER_HOME, any number of sources.

What it tells of the lake it reads by other code than the pipeline's: Azure's SDK, delta-rs and DuckDB.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from azure_storage import ACCOUNT, KEY, Azurite
from deltalake import DeltaTable
from independent_reader import differences, parse, rows

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.signers import PemSigner
from pipeline.config import Config, load_config

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]

Truth = Mapping[str, list[dict[str, Any]]]
"""Resource type -> resources as the server has them, numbers as `independent_reader.Lexeme`."""


@dataclass
class Installation:
    """`sources` are entries of exports.yaml; `lake_auth` says how the lake in `container` is opened."""

    folder: Path
    azurite: Azurite
    container: str
    sources: list[dict[str, Any]]
    lake_auth: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "dagster.yaml").write_text((REPOSITORY / "dagster_home" / "dagster.yaml").read_text())
        self.environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "EXPORTS_CONFIG": str(self.config_path),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            **self.environment,
        }
        self.write()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def config_path(self) -> Path:
        return self.home / "exports.yaml"

    def write(self) -> None:
        """The configuration as it is now."""
        auth = self.lake_auth or {
            "kind": "connection-string",
            "connection_string": self.secret("lake-connection", self.azurite.connection_string),
        }
        lake = f"abfs://{self.container}@{ACCOUNT}.dfs.core.windows.net/lake"
        self.config_path.write_text(
            yaml.safe_dump({"lake": lake, "lake_auth": auth, "sources": self.sources, **self.config})
        )

    def secret(self, name: str, value: str) -> str:
        """Keeps a secret in a file; the reference to it."""
        path = self.home / "secrets" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(value)
        path.chmod(0o600)
        return f"file:secrets/{name}"

    def load(self) -> Config:
        return load_config(self.config_path)

    def entry(self, name: str) -> dict[str, Any]:
        """The source's part of the configuration; after a change call `write`."""
        return next(each for each in self.sources if each["name"] == name)

    def new_key(self, name: str, algorithm: str = "RS384") -> dict[str, Any]:
        """Makes home/keys/NAME.pem; its public JWK Set."""
        path = self.home / "keys" / f"{name}.pem"
        pem = generate_key(algorithm)  # type: ignore[arg-type]
        write_private_key(path, pem)
        return {"keys": [PemSigner.from_pem(pem, algorithm).public_jwk()]}  # type: ignore[arg-type]

    def cli(
        self, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`fhir-export` as a user would run it."""
        done = subprocess.run(
            [str(BIN / "fhir-export"), *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=self.folder,
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def check(self, source: str, **environment: str) -> dict[str, dict[str, str]]:
        """`fhir-export check --json`: verdict name -> status, cause, advice."""
        done = self.cli("check", source, "--json", check=False, **environment)
        assert done.stdout, done.stderr
        return {each["name"]: each for each in json.loads(done.stdout)}

    def require_green(self, source: str, **environment: str) -> set[str]:
        """Nothing that `check` looks at is bad; the names of what it found in order."""
        found = self.check(source, **environment)
        assert [each for each in found.values() if each["status"] == "bad"] == []
        return {name for name, each in found.items() if each["status"] == "ok"}

    def run(self, source: str, *, check: bool = True) -> dict[str, Any]:
        """`fhir-export run --wait --json`: its last line."""
        done = self.cli("run", source, "--wait", "--json", check=check)
        assert done.stdout.strip(), done.stderr
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The same in a process group of its own, to be killed."""
        log = (self.folder / "processes.log").open("ab")
        return subprocess.Popen(
            [str(BIN / "fhir-export"), *arguments],
            env=self.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
        )

    def beside(self, folder: Path, entry: dict[str, Any]) -> Installation:
        """Another one with that source, the same lake and the same keys."""
        other = Installation(folder, self.azurite, self.container, [entry])
        shutil.copytree(self.home / "keys", other.home / "keys")
        return other

    @contextmanager
    def daemon(self) -> Iterator[Path]:
        """Dagster's daemon with every schedule of the sources and every status sensor on; its log."""
        for arguments in (["schedule", "start", "--start-all"], *self._sensors()):
            subprocess.run(
                [str(BIN / "dagster"), *arguments, "-m", "pipeline.definitions"],
                env=self.environment,
                cwd=self.folder,
                check=True,
                capture_output=True,
                timeout=180,
            )
        log = self.folder / "daemon.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(BIN / "dagster-daemon"), "run", "-m", "pipeline.definitions"],
                env=self.environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield log
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)

    def _sensors(self) -> list[list[str]]:
        return [["sensor", "start", f"{each['name']}_status"] for each in self.sources]

    # --- the lake, by other code ---

    def blobs(self, prefix: str) -> list[str]:
        """Names below the lake's root."""
        return [name.removeprefix("lake/") for name in self.azurite.names(self.container, f"lake/{prefix}")]

    def read(self, name: str) -> bytes:
        data: bytes = self.azurite.container(self.container).download_blob(f"lake/{name}").readall()
        return data

    def fact(self, source: str, export_id: str, name: str) -> dict[str, Any]:
        """One of the write-once facts, such as `receipts/0001.json`."""
        found: dict[str, Any] = json.loads(self.read(f"{source}/exports/{export_id}/{name}"))
        return found

    def table(self, source: str, table: str, export_id: str) -> list[dict[str, Any]]:
        """The rows of one export, as DuckDB reads the files that the Delta log names."""
        options = {
            "azure_storage_account_name": ACCOUNT,
            "azure_storage_account_key": KEY,
            "azure_storage_endpoint": self.azurite.endpoint,
            "azure_allow_http": "true",
        }
        uri = f"az://{self.container}/lake/{source}/tables/{table}"
        live = [
            path
            for path in DeltaTable(uri, storage_options=options).file_uris()
            if f"export_id={export_id}/" in path
        ]
        local = self.folder / "read" / uuid.uuid4().hex
        local.mkdir(parents=True)
        files = []
        for number, path in enumerate(live):
            name = path[path.index(f"{source}/tables/") :]
            (local / f"{number}.parquet").write_bytes(self.read(name))
            files.append(str(local / f"{number}.parquet"))
        return rows(files)

    def require_same(self, source: str, export_id: str, truth: Truth) -> int:
        """Every resource of `truth` is in its table once, equal in every element; how many there are."""
        count = 0
        for resource_type, resources in truth.items():
            found = {row["id"]: row for row in self.table(source, resource_type.lower(), export_id)}
            assert sorted(found) == sorted(each["id"] for each in resources), resource_type
            for each in resources:
                assert differences(found[each["id"]], each) == [], (resource_type, each["id"])
            count += len(resources)
        return count


def truth_of(
    seed: int, patients: int, night: int, types: tuple[str, ...], *, since: str | None = None
) -> Truth:
    """What the sandbox has that night, from its generator; `since`: what was written after that instant."""
    from pipeline.sandbox import truth

    after = datetime.fromisoformat(since) if since else None
    found: dict[str, list[dict[str, Any]]] = {each: [] for each in types}
    for resource_type, line in truth(seed, patients, night):
        if resource_type not in found:
            continue
        resource = parse(line)
        if after is None or datetime.fromisoformat(resource["meta"]["lastUpdated"]) > after:
            found[resource_type].append(resource)
    return found
