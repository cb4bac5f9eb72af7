"""A rotation, seen by a server that caches our JWK Set: no sign-in fails at any moment of it.

`fhir-export jwks --serve` and `keys rotate` are real processes, the FHIR server is the sandbox, Key Vault the
stand-in of pipeline.sandbox.cloud; between server and keys stands a cache that does not ask again in time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from authority import Authority

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.tokens import SmartTokenSource
from pipeline.config import load_config
from pipeline.errors import AuthError, ConfigError
from pipeline.exports.connection import ring_for, signer_for
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.sandbox.process import SandboxProcess, start_sandbox
from pipeline.terminal.key_rotation import rotate

PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
CACHE_SECONDS = 0.6
WAIT_SECONDS = 3.0
SECRET = "correct-horse-battery-staple-2"


def cli(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--config", str(config), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=config.parent,
        env={**os.environ, "COLUMNS": "160"},
    )


@contextmanager
def served_keys(config: Path) -> Iterator[str]:
    """The URL of a running `jwks --serve`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "--config", str(config), "jwks", "--serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=config.parent,
    )
    try:
        assert server.stderr is not None
        yield server.stderr.readline().split()[-1]
    finally:
        server.kill()
        server.communicate()


@dataclass
class Caching:
    """A cache at `url` that asks again after `seconds`."""

    seconds: float
    url: str = ""


@contextmanager
def caching(upstream: str, seconds: float) -> Iterator[Caching]:
    """Gives what `upstream` gave up to `seconds` ago, whatever that said about caching."""
    cache = Caching(seconds)
    lock = threading.Lock()
    held: list[Any] = [b"", -1e9]

    class Cache(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                if time.monotonic() > held[1] + cache.seconds:
                    with urllib.request.urlopen(upstream, timeout=10) as answer:
                        held[:] = [answer.read(), time.monotonic()]
            self.send_response(200)
            self.send_header("Content-Length", str(len(held[0])))
            self.end_headers()
            self.wfile.write(held[0])

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Cache)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        cache.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        yield cache
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_config(folder: Path, fhir_url: str, wait_seconds: float, private_key: str, **more: Any) -> Path:
    source = {
        "name": "hosp_a",
        "fhir_url": fhir_url,
        "auth": {"client_id": "nightly", "private_key": private_key, "algorithm": "ES384"},
        "export": {"group": "demo"},
    }
    path = folder / "exports.yaml"
    content = {
        "lake": "lake",
        "key_rotation": {"wait_minutes": wait_seconds / 60},
        "sources": [source],
        **more,
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        yield running


@pytest.fixture(params=["file", "keyvault"])
def keys(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, Any]]:
    """A reference to a private key, and what else the configuration needs for it."""
    if request.param == "file":
        write_private_key(tmp_path / "keys" / "hosp_a.pem", generate_key("ES384"))
        return "file:keys/hosp_a.pem", {}
    cloud: CloudProcess = request.getfixturevalue("cloud")
    name = f"hosp-a-{os.urandom(4).hex()}"
    cloud.vault_key(name)
    application = cloud.register_application(secret=SECRET, vault_roles=["Key Vault Crypto Officer"])
    monkeypatch.setenv("VAULT_CLIENT_SECRET", SECRET)
    auth = {
        "kind": "service-principal",
        "tenant_id": cloud.tenant,
        "client_id": application["client_id"],
        "client_secret": "env:VAULT_CLIENT_SECRET",
        "authority": cloud.authority,
        "verify_challenge_resource": False,
    }
    return f"keyvault:{cloud.vault_url}/keys/{name}", {"keyvault_auth": auth}


class SigningIn:
    """Signs in again and again, as a sensor would that lives through the rotation."""

    def __init__(self, config: Path, sandbox: SandboxProcess) -> None:
        loaded = load_config(config)
        source = loaded.source(None)
        self.signer = signer_for(loaded, source)
        self.tokens = SmartTokenSource(
            self.signer,
            "nightly",
            "system/*.rs",
            fhir_url=source.fhir_url,
            token_url=sandbox.token_url,
        )
        self.outcomes: list[tuple[str, bool]] = []
        """Which kid signed, and whether it was accepted."""

    def during(self, seconds: float) -> None:
        with httpx.Client() as http:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    self.tokens.fetch(http)
                except AuthError as refused:
                    assert "kid" in str(refused)
                    accepted = False
                else:
                    accepted = True
                self.outcomes.append((self.signer.kid, accepted))
                time.sleep(0.02)

    def while_rotating(self, config: Path) -> dict[str, Any]:
        thread = threading.Thread(target=self.during, args=(0.5,))
        thread.start()
        rotated = cli(config, "keys", "rotate", "hosp_a", "--json")
        thread.join()
        assert rotated.returncode == 0, rotated.stderr
        result: dict[str, Any] = json.loads(rotated.stdout)
        return result


def test_no_sign_in_fails_at_any_moment_of_a_rotation_that_waits_longer_than_caches_keep(
    tmp_path: Path, keys: tuple[str, dict[str, Any]]
) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9/fhir", WAIT_SECONDS, keys[0], **keys[1])
    with (
        served_keys(config) as upstream,
        caching(upstream, CACHE_SECONDS) as cache,
        start_sandbox(patients=1, jwks=cache.url) as sandbox,
    ):
        signing_in = SigningIn(config, sandbox)
        signing_in.during(0.3)
        before = signing_in.outcomes[0][0]
        rotation = signing_in.while_rotating(config)
        signing_in.during(2 * WAIT_SECONDS + 2 * CACHE_SECONDS)
        with urllib.request.urlopen(upstream, timeout=10) as answer:
            published = json.load(answer)["keys"]
            assert answer.headers["Cache-Control"] == "public, max-age=1", "a third of the wait"
    assert [each for each in signing_in.outcomes if not each[1]] == []
    used = [kid for kid, _ in signing_in.outcomes]
    assert set(used) == {before, rotation["kid"]}
    assert used == sorted(used, key=[before, rotation["kid"]].index), "one switch, and never back"
    assert [jwk["kid"] for jwk in published] == [rotation["kid"]], "the former one is published no more"
    assert not PRIVATE_MEMBERS & published[0].keys()


def test_without_a_wait_a_server_that_caches_refuses_for_a_while(tmp_path: Path) -> None:
    """The same with wait 0 fails: so the test above can fail, and the wait is what helps."""
    write_private_key(tmp_path / "hosp_a.pem", generate_key("ES384"))
    config = write_config(tmp_path, "http://127.0.0.1:9/fhir", 0, "file:hosp_a.pem")
    loaded = load_config(config)
    with (
        served_keys(config) as upstream,
        caching(upstream, 3600) as cache,
        start_sandbox(patients=1, jwks=cache.url) as sandbox,
    ):
        signing_in = SigningIn(config, sandbox)
        signing_in.during(0.2)
        assert all(accepted for _, accepted in signing_in.outcomes)
        rotation = ring_for(loaded, loaded.source(None)).rotate()
        begun = len(signing_in.outcomes)
        signing_in.during(0.3)
        assert set(signing_in.outcomes[begun:]) == {(rotation.kid, False)}
        cache.seconds = 0
        signing_in.during(0.3)
    assert signing_in.outcomes[-1] == (rotation.kid, True)


def test_a_rotated_key_is_served_without_a_restart_and_an_absent_one_is_served_on(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "hosp_a.pem"
    write_private_key(key, generate_key("ES384"))
    config = write_config(tmp_path, "http://127.0.0.1:9/fhir", 900, "file:keys/hosp_a.pem")

    def kids() -> list[str]:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.headers["Cache-Control"] == "public, max-age=300"
            return [jwk["kid"] for jwk in json.load(answer)["keys"]]

    with served_keys(config) as url:
        (first,) = kids()
        rotated = cli(config, "keys", "rotate", "hosp_a", "--json")
        coming = json.loads(rotated.stdout)["kid"]
        deadline = time.monotonic() + 10
        while kids() != [first, coming]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        key.rename(key.with_name("aside"))
        time.sleep(2.2)
        assert kids() == [first, coming]
    key.with_name("aside").rename(key)
    printed = cli(config, "jwks")
    assert [jwk["kid"] for jwk in json.loads(printed.stdout)["keys"]] == [first, coming]
    for other in (("--key", str(key)), ("hosp_a",)):
        assert json.loads(cli(config, "jwks", *other).stdout) == json.loads(printed.stdout)


def test_keys_rotate_says_what_it_did_and_what_is_left_to_do(tmp_path: Path) -> None:
    write_private_key(tmp_path / "keys" / "hosp_a.pem", generate_key("ES384"))
    config = write_config(tmp_path, "https://fhir.example.org/r4", 900, "file:keys/hosp_a.pem")
    content = yaml.safe_load(config.read_text())
    (source,) = content["sources"]
    content["sources"] += [
        {**source, "name": "apim", "profile": "apim-smart"},
        {**source, "name": "lone", "auth": {**source["auth"], "private_key": "env:HOSP_A_KEY"}},
        {**source, "name": "open", "auth": {"kind": "none"}},
    ]
    config.write_text(yaml.safe_dump(content))

    done = cli(config, "keys", "rotate", "hosp_a")
    assert done.returncode == 0, done.stderr
    note = json.loads((tmp_path / "keys" / "hosp_a.next.pem.json").read_text())
    assert note["kid"] in done.stderr
    assert "signs from 20" in done.stderr
    assert "the same key signs for apim" in done.stderr
    assert "if the server reads our JWK Set from a URL" in done.stderr
    assert "if it was pasted in" in done.stderr
    assert "!" not in done.stderr, "a quarter of an hour is enough"
    assert "PRIVATE" not in done.stderr + done.stdout

    again = cli(config, "keys", "rotate", "hosp_a")
    assert again.returncode == 2
    assert note["kid"] in again.stderr
    assert "under way" in again.stderr

    loaded = load_config(config)
    minute = timedelta(minutes=1)
    for name, words in (("lone", "env:HOSP_A_KEY"), ("open", "no key of ours")):
        with pytest.raises(ConfigError, match=words):
            rotate(loaded, loaded.source(name), minute)
    (tmp_path / "keys" / "hosp_a.next.pem.json").unlink()
    pasted = "\n".join(rotate(loaded, loaded.source("apim"), minute).lines)
    assert "named value JWKS" in pasted
    assert "! servers keep keys for minutes" in pasted
    printed = cli(config, "jwks")
    assert printed.returncode == 2, "the key of lone is missing"
    assert len(json.loads(printed.stdout)["keys"]) == 2
    assert "apim: paste `fhir-export jwks apim` into API Management: the named value JWKS" in printed.stderr
