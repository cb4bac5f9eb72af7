"""Starting the server as a process of its own, for the demo and the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pipeline.errors import Unreachable
from pipeline.sandbox.ending import end

_START_SECONDS = 60.0


class SandboxProcess:
    """A running sandbox. `base_url` has no final slash, `fhir_url` is what a client is configured with.

    `audience` is what a client assertion must name, with azure-fhir and azure-export an Entra token.
    `storage_url` is the second origin of apim, aidbox and smartbox, `tenant` the one of smartbox.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ready: Mapping[str, Any],
        folder: tempfile.TemporaryDirectory[str],
        log: Path,
        tenant: str | None = None,
    ) -> None:
        self._process = process
        self._folder = folder
        self._log = log
        self.base_url: str = ready["base_url"]
        self.fhir_url: str = ready.get("fhir_url", self.base_url + "/fhir")
        self._token_url: str | None = ready.get("token_url", self.base_url + "/auth/token")
        self.audience: str = ready.get("audience", self.base_url + "/auth/token")
        self.storage_url: str | None = ready.get("storage_url")
        self.tenant = tenant

    @property
    def token_url(self) -> str:
        """The token endpoint; ValueError for azure-fhir and azure-export, whose tokens are Entra's."""
        if self._token_url is None:
            raise ValueError("This stand-in has no token endpoint: its tokens are Entra's")
        return self._token_url

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    @property
    def jwks_file(self) -> Path:
        """Where a JWK Set given as a dict lies; overwrite it to rotate keys."""
        return Path(self._folder.name) / "jwks.json"

    def control(self, **changes: Any) -> dict[str, Any]:
        """Change `night`, `faults` or `revoke_tokens`, or only report; returns the state afterwards.

        ValueError with the server's reason where it refuses.
        """
        data = json.dumps(changes).encode() if changes else None
        request = urllib.request.Request(self.base_url + "/control", data)  # noqa: S310 - our own http URL
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                state: dict[str, Any] = json.load(answer)
                return state
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error)["issue"][0]["diagnostics"]) from None

    def access_log(self) -> list[dict[str, Any]]:
        """One entry per finished request, oldest first: method, path, query, auth (scheme), status, ..."""
        if not self._log.exists():
            return []
        return [json.loads(text) for text in self._log.read_text(encoding="utf-8").split("\n") if text]

    def stop(self) -> int:
        """End it with SIGTERM, after ten seconds with SIGKILL; returns its exit code. May be called again."""
        return end(self._process)

    def kill(self) -> int:
        """End it with SIGKILL, as a crash would; returns its exit code."""
        self._process.kill()
        self._process.wait()
        return end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()


def start_sandbox(
    *,
    patients: int = 100,
    seed: int = 1,
    night: int = 1,
    jwks: Mapping[str, Any] | Path | str | None = None,
    **options: Any,
) -> SandboxProcess:
    """Start a sandbox with this interpreter and wait until it answers; a `with` block ends it.

    It also ends when this process does. `jwks` is a JWK Set, a file or a URL; further `options` are those of
    the command line, with underscores (`export_seconds=0.5`, `one_at_a_time=True`, ...). `stand_in` is
    `--as`, `storage` may be a connection string, `token_keys` a JWK Set, `faults` a list. Raises Unreachable
    where it does not start.
    """
    folder = tempfile.TemporaryDirectory(prefix="sandbox-")
    path = Path(folder.name)
    if isinstance(jwks, Mapping):
        jwks = _kept(path / "jwks.json", json.dumps(jwks))
    if isinstance(options.get("token_keys"), Mapping):
        options["token_keys"] = _kept(path / "token-keys.json", json.dumps(options["token_keys"]))
    if isinstance(options.get("storage"), str) and "=" in options["storage"]:
        options["storage"] = _kept(path / "storage.txt", options["storage"])
    if isinstance(options.get("faults"), list):
        options["faults"] = _kept(path / "faults.yaml", json.dumps(options["faults"]))
    log = Path(options.pop("access_log", None) or path / "access.ndjson")
    ready = path / "ready.json"
    settings = {
        "patients": patients,
        "seed": seed,
        "night": night,
        "jwks": jwks,
        "access_log": log,
        **options,
    }
    command = [sys.executable, "-m", "pipeline.sandbox", "--ready-file", str(ready), "--until-stdin-closes"]
    command += _flags(settings)
    # The folder of the package first, so that it starts from any folder, installed or not.
    search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    process = subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    )
    try:
        tenant = options.get("tenant", "my-clinic") if options.get("stand_in") == "smartbox" else None
        return SandboxProcess(process, _wait(process, ready), folder, log, tenant)
    except BaseException:
        process.kill()
        process.wait()
        folder.cleanup()
        raise


def _kept(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def _flags(settings: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in settings.items():
        flag = "--as" if name == "stand_in" else "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags


def _wait(process: subprocess.Popen[bytes], ready: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if ready.exists():
            told: dict[str, Any] = json.loads(ready.read_bytes())
            return told
        if process.poll() is not None:
            raise Unreachable(
                f"The sandbox ended at once with exit code {process.returncode}", "See its output above"
            )
        time.sleep(0.03)
    raise Unreachable(f"The sandbox did not start within {_START_SECONDS:.0f} seconds")
