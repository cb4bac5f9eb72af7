"""The assertion names the very URL that it is posted to, by what the server itself has recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest

from pipeline.auth.keys import generate_key
from pipeline.bulkdata.profiles import PROFILES
from pipeline.config import Config
from pipeline.exports.connection import connect


@dataclass
class Recorder:
    """A FHIR server with a sign-in at `token_path`; `posted`: each token request's URL and members."""

    origin: str = ""
    token_path: str = "/auth/token"
    by_statement: bool = False
    """Whether the CapabilityStatement names the endpoint, and no SMART configuration does."""
    posted: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def document(self, path: str) -> dict[str, Any] | None:
        endpoint = self.origin + self.token_path
        if path.endswith("/.well-known/smart-configuration") and not self.by_statement:
            return {"token_endpoint": endpoint}
        if not path.endswith("/metadata"):
            return None
        uris = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
        extension = [{"url": uris, "extension": [{"url": "token", "valueUri": endpoint}]}]
        rest = [{"mode": "server", "security": {"extension": extension}}]
        return {"resourceType": "CapabilityStatement", "rest": rest}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(made.document(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            as_json = "json" in self.headers["content-type"]
            form = json.loads(body) if as_json else {name: each[0] for name, each in parse_qs(body).items()}
            made.posted.append((f"http://{self.headers['host']}{self.path}", form))
            self.say({"access_token": "t0ken", "token_type": "bearer", "expires_in": 300})

        def say(self, document: dict[str, Any] | None) -> None:
            body = json.dumps(document).encode()
            self.send_response(404 if document is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.origin = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def sign_in(recorder: Recorder, folder: Path, **settings: Any) -> tuple[str, str]:
    """The URL posted to and the assertion's `aud`, by the recorded request."""
    (folder / "key.pem").write_bytes(generate_key("ES384"))
    auth = {
        "client_id": "me",
        "private_key": "file:key.pem",
        "algorithm": "ES384",
        **settings.pop("auth", {}),
    }
    entry = {
        "name": "hosp",
        "fhir_url": f"{recorder.origin}/fhir",
        "export": {"level": "system"},
        **settings,
    }
    config = Config.model_validate({"lake": "lake", "sources": [{**entry, "auth": auth}], "folder": folder})
    connect(config, config.source(None)).sign_in()
    ((url, form),) = recorder.posted
    claims = jwt.decode(form["client_assertion"], options={"verify_signature": False})
    return url, claims["aud"]


OF_SMART = sorted(name for name, each in PROFILES.items() if each.audience == "token-url")


def test_there_are_such_profiles() -> None:
    assert {"smart", "apim-smart", "aidbox", "smartbox"} <= set(OF_SMART)


@pytest.mark.parametrize("name", OF_SMART)
def test_by_each_profile(name: str, recorder: Recorder, tmp_path: Path) -> None:
    """Protocol 6: `aud` is the token URL; by the profile where that has a path, else discovered."""
    tenant = {"tenant": "my-clinic"} if name == "smartbox" else {}
    url, audience = sign_in(recorder, tmp_path, profile=name, fhir_url=recorder.origin, **tenant)
    assert audience == url
    assert url.startswith(recorder.origin)


@pytest.mark.parametrize(
    "path", ["/auth/token", "/auth/token/", "/t/v2.0/token?tenant=a%20b", "/T%2Fx/token"]
)
@pytest.mark.parametrize("how", ["configured", "smart-configuration", "capability statement"])
def test_as_the_url_is_written(how: str, path: str, recorder: Recorder, tmp_path: Path) -> None:
    """Not a slash more or less, and with its query: servers compare text."""
    recorder.token_path = "/elsewhere" if how == "configured" else path
    recorder.by_statement = how == "capability statement"
    auth = {"token_url": recorder.origin + path} if how == "configured" else {}
    url, audience = sign_in(recorder, tmp_path, auth=auth)
    assert audience == url == recorder.origin + path


def test_another_audience_is_sent_where_one_is_configured(recorder: Recorder, tmp_path: Path) -> None:
    """API Management behind a custom domain wants its own name (azure-and-aidbox A)."""
    url, audience = sign_in(recorder, tmp_path, auth={"audience": "https://gateway.example/auth/token"})
    assert url == f"{recorder.origin}/auth/token"
    assert audience == "https://gateway.example/auth/token"
