"""One seed's world in a folder: sandbox, configuration, keys, lake, DAGSTER_HOME, and what it all wrote."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from chaos.plan import FaultPlan, Plan
from pipeline.sandbox.process import SandboxProcess, start_sandbox

BIN = Path(sys.executable).parent
SOURCE = "hosp"
ROOT = Path(__file__).parents[2]


class Site:
    """One source, `hosp`, that exports from a sandbox which faults are scripted into."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.home = folder / "home"
        self.lake = folder / "lake"
        self.logs = folder / "logs"
        self.keys = folder / "home" / "keys"
        self.access_log = folder / "access.log"
        self.used: dict[str, int] = {}
        """Faults that happened, by kind."""
        self._faults: list[FaultPlan] = []
        self._counted: list[int] = []
        self._sandbox: SandboxProcess | None = None
        self._port = free_port()
        self._jwks: dict[str, Any] = {"keys": []}
        for each in (self.keys, self.logs, folder / "tmp"):
            each.mkdir(parents=True)

    @property
    def sandbox(self) -> SandboxProcess:
        assert self._sandbox is not None
        return self._sandbox

    @property
    def source_folder(self) -> Path:
        return self.lake / SOURCE

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "EXPORTS_CONFIG": str(self.home / "exports.yaml"),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> None:
        """Keys, configuration, server."""
        self._new_key("hosp")
        self._new_key("oracle")
        settings = (ROOT / "dagster_home" / "dagster.yaml").read_text()
        (self.home / "dagster.yaml").write_text(settings)
        self.start_server()
        entry = {
            "name": SOURCE,
            "fhir_url": self.sandbox.fhir_url,
            "auth": {
                "client_id": "nightly",
                "private_key": "file:keys/hosp.pem",
                "algorithm": "ES384",
                "kid": "hosp",
            },
            "export": {"group": "demo", **({"types": list(self.plan.types)} if self.plan.types else {})},
            "timeouts": {"connect_seconds": 2, "read_seconds": 5, "answer_seconds": 10},
            "knobs": {"first_poll": 0.5, "longest_poll": 3.0},
            "schedule": "* * * * *",
            "flat": False,
            "current": False,
            **self.plan.source,
        }
        config = {"lake": str(self.lake), "executor": self.plan.executor, "sources": [entry]}
        (self.home / "exports.yaml").write_text(yaml.safe_dump(config))

    def start_server(self) -> None:
        """The sandbox, at the same port each time, with the state of before."""
        self._sandbox = start_sandbox(
            jwks=self._jwks,
            port=self._port,
            state=self.folder / "server-state",
            access_log=self.access_log,
            **self.plan.sandbox,
        )

    def restart_server(self, seconds: float) -> None:
        """Killed, away for a while, started again with what is left of the script of faults."""
        self.count_faults()
        self.sandbox.kill()
        time.sleep(seconds)
        self.start_server()
        self._post()

    def pause_server(self, seconds: float) -> None:
        """It takes connections and answers nothing for a while."""
        os.kill(self.sandbox.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(self.sandbox.pid, signal.SIGCONT)

    def set_faults(self, faults: tuple[FaultPlan, ...]) -> None:
        """A new script; none clears it."""
        self.count_faults()
        self._faults = list(faults)
        self._counted = [0] * len(faults)
        self._post()

    def count_faults(self) -> None:
        """Takes over how often each fault of the script has happened."""
        told = self.sandbox.control()["faults"]
        for number, (fault, state) in enumerate(zip(self._faults, told, strict=True)):
            self.used[fault.kind] = self.used.get(fault.kind, 0) + state["used"] - self._counted[number]
            self._counted[number] = state["used"]

    def _post(self) -> None:
        script, kept = [], []
        for fault, used in zip(self._faults, self._counted, strict=True):
            times = fault.script.get("times", 1)
            if times is None or times > used:
                left = {**fault.script, "times": None if times is None else times - used}
                script.append(left)
                kept.append(fault)
        self._faults, self._counted = kept, [0] * len(kept)
        self.sandbox.control(faults=script)

    def log(self) -> list[dict[str, Any]]:
        """What the server was asked; a line that is being written is left out."""
        if not self.access_log.exists():
            return []
        lines = self.access_log.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `fhir-export` to its end; its output is kept for the search for secrets."""
        done = subprocess.run(
            [str(BIN / "fhir-export"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            cwd=self.folder,
        )
        with (self.logs / "commands.log").open("a") as log:
            log.write(f"$ {arguments}\n{done.stdout}{done.stderr}\n")
        return done

    def stop(self) -> None:
        """Ends the server."""
        if self._sandbox is not None:
            with suppress(ProcessLookupError):
                os.kill(self._sandbox.pid, signal.SIGCONT)
            self._sandbox.stop()

    def _new_key(self, name: str) -> None:
        private = ec.generate_private_key(ec.SECP384R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.keys / f"{name}.pem"
        path.write_bytes(pem)
        path.chmod(0o600)
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
        self._jwks["keys"].append({**public, "kid": name, "alg": "ES384", "use": "sig"})


@contextmanager
def open_site(folder: Path, plan: Plan) -> Iterator[Site]:
    """Makes it, and stops the server at the end; the folder stays."""
    site = Site(folder, plan)
    try:
        site.start()
        yield site
    finally:
        site.stop()


def free_port() -> int:
    """A TCP port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
