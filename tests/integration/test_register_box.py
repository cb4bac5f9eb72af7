"""`register --apply` at a box: what it sends, to whom, and what it leaves alone (azure-and-aidbox B)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.config import Config
from pipeline.errors import AuthError, ConfigError, ExportError, ServerRefused, Unreachable
from pipeline.exports.check import check_source, first_bad
from pipeline.registration import box as at_the_box
from pipeline.registration.steps import Known
from pipeline.sandbox.process import SandboxProcess, start_sandbox
from pipeline.terminal.registering import Applying, apply

ADMIN = "admin-of-the-box"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    found = {name: folder / f"{name}.pem" for name in ("one", "two")}
    for path in found.values():
        write_private_key(path, generate_key("RS384"))
    return found


@pytest.fixture
def box() -> Iterator[SandboxProcess]:
    with start_sandbox(stand_in="aidbox", patients=3, admin_token=ADMIN) as running:
        yield running


def config_for(box_url: str, key: Path, tmp_path: Path, **changes: Any) -> Config:
    (tmp_path / "admin").write_text(f"{ADMIN}\n")
    (tmp_path / "wrong").write_text("not-the-admin")
    source = {
        "name": "hosp_a",
        "profile": "aidbox",
        "fhir_url": box_url,
        "auth": {"client_id": "nightly", "private_key": f"file:{key}"},
        "export": {"group": "demo"},
        **changes,
    }
    return Config.model_validate({"lake": str(tmp_path / "lake"), "sources": [source], "folder": tmp_path})


def run(config: Config, known: Known | None = None, **asked: Any) -> list[str]:
    """What was done about each resource."""
    applying = Applying(**{"admin_token": "file:admin", **asked})
    done = apply(config, config.source(None), known or Known(), applying)
    return [f"{each['what']} {each['outcome']} {each['http_status']}" for each in done]


def resource(box: SandboxProcess, path: str) -> dict[str, Any]:
    answer = httpx.get(f"{box.base_url}/{path}", headers={"Authorization": f"Bearer {ADMIN}"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def put(box: SandboxProcess, path: str, body: dict[str, Any]) -> None:
    answer = httpx.put(f"{box.base_url}/{path}", json=body, headers={"Authorization": f"Bearer {ADMIN}"})
    assert answer.status_code in (200, 201), answer.text


def methods(box: SandboxProcess) -> list[str]:
    return [f"{each['method']} {each['path']}" for each in box.access_log()]


def test_before_it_check_says_what_is_missing_and_after_it_all_is_well(
    box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    config = config_for(box.base_url, keys["one"], tmp_path)
    before = first_bad(check_source(config, config.source(None)))
    assert before is not None
    assert before.name == "token"
    assert "fhir-export register hosp_a" in before.advice
    assert run(config) == ["Client/nightly created 201", "AccessPolicy/nightly created 201"]
    verdicts = check_source(config, config.source(None))
    assert first_bad(verdicts) is None, verdicts


def test_a_client_without_its_policy_gets_a_token_and_then_403(
    box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    """azure-and-aidbox B: without the policy a token, then 403."""
    config = config_for(box.base_url, keys["one"], tmp_path)
    run(config)
    answer = httpx.delete(
        f"{box.base_url}/AccessPolicy/nightly", headers={"Authorization": f"Bearer {ADMIN}"}
    )
    assert answer.status_code in (200, 204)
    verdicts = check_source(config, config.source(None))
    bad = first_bad(verdicts)
    assert bad is not None
    assert (bad.name, bad.exit_code) == ("read", 3)
    assert "AccessPolicy" in bad.advice
    assert "fhir-export register hosp_a" in bad.advice
    assert {each.name: each.status for each in verdicts}["token"] == "ok"


def test_a_second_time_nothing_is_written(box: SandboxProcess, keys: dict[str, Path], tmp_path: Path) -> None:
    config = config_for(box.base_url, keys["one"], tmp_path)
    run(config)
    before = len(methods(box))
    assert run(config) == ["Client/nightly unchanged 200", "AccessPolicy/nightly unchanged 200"]
    assert methods(box)[before:] == ["GET /Client/nightly", "GET /AccessPolicy/nightly"]


def test_a_new_key_replaces_the_old_one(box: SandboxProcess, keys: dict[str, Path], tmp_path: Path) -> None:
    run(config_for(box.base_url, keys["one"], tmp_path))
    (old,) = resource(box, "Client/nightly")["jwks"]
    changed = config_for(box.base_url, keys["two"], tmp_path)
    assert run(changed) == ["Client/nightly replaced 200", "AccessPolicy/nightly unchanged 200"]
    (new,) = resource(box, "Client/nightly")["jwks"]
    assert new["kid"] != old["kid"]
    assert first_bad(check_source(changed, changed.source(None))) is None


def test_keys_by_url_take_the_place_of_keys_in_the_client(
    box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    """A key that was left in the Client would still open the box."""
    config = config_for(box.base_url, keys["one"], tmp_path)
    run(config)
    url = "https://exports.example.org/.well-known/jwks.json"
    assert run(config, Known(jwks_url=url))[0] == "Client/nightly replaced 200"
    client = resource(box, "Client/nightly")
    assert client["jwks_uri"] == url
    assert not client.get("jwks")


def test_a_client_of_another_kind_is_left_alone_until_told_otherwise(
    box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    other = {"resourceType": "Client", "id": "nightly", "type": "patient-facing-smart-app", "active": True}
    put(box, "Client/nightly", other | {"grant_types": ["authorization_code"]})
    config = config_for(box.base_url, keys["one"], tmp_path)
    before = len(methods(box))
    with pytest.raises(ConfigError) as refused:
        run(config)
    assert "another type" in refused.value.cause
    assert "--replace" in refused.value.advice
    assert not [each for each in methods(box)[before:] if each.startswith("PUT")]
    assert resource(box, "Client/nightly")["type"] == "patient-facing-smart-app"
    assert run(config, replace=True)[0] == "Client/nightly replaced 200"
    assert resource(box, "Client/nightly")["type"] == "bulk-api-client"


def test_a_policy_that_lets_others_in_too_is_left_alone_and_so_is_the_client(
    box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    links = [{"id": each, "resourceType": "Client"} for each in ("nightly", "somebody-else")]
    put(
        box,
        "AccessPolicy/nightly",
        {"resourceType": "AccessPolicy", "id": "nightly", "engine": "allow", "link": links},
    )
    with pytest.raises(ConfigError, match="AccessPolicy"):
        run(config_for(box.base_url, keys["one"], tmp_path))
    assert "PUT /Client/nightly" not in methods(box)


def test_a_wrong_admin_token_is_told_and_not_shown(
    box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(AuthError) as refused:
        run(config_for(box.base_url, keys["one"], tmp_path), admin_token="file:wrong")
    assert "--admin-token" in refused.value.advice
    assert "not-the-admin" not in str(refused.value)


def test_without_an_admin_nothing_is_sent(box: SandboxProcess, keys: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--admin-token"):
        run(config_for(box.base_url, keys["one"], tmp_path), admin_token=None)
    assert methods(box) == []


def test_name_and_password_go_as_basic(keys: dict[str, Path], tmp_path: Path) -> None:
    with start_sandbox(stand_in="aidbox", patients=3, admin_token="root:secret-of-root") as running:
        config = config_for(running.base_url, keys["one"], tmp_path)
        (tmp_path / "basic").write_text("root:secret-of-root")
        assert run(config, admin_token="file:basic")[0] == "Client/nightly created 201"
        assert {each["auth"].lower() for each in running.access_log()} == {"basic"}


@pytest.mark.parametrize("credential", [b"", b" \n", b"two words", b"line\r\nHost: evil", "tökén".encode()])
def test_what_cannot_be_sent_is_refused_before_anything_is(credential: bytes) -> None:
    with pytest.raises(ConfigError) as refused:
        at_the_box.administrator(credential)
    assert credential.decode().strip() == "" or credential.decode().strip() not in str(refused.value)


def test_smartbox_wants_to_know_the_form_of_the_link_first(keys: dict[str, Path], tmp_path: Path) -> None:
    with start_sandbox(
        stand_in="smartbox", patients=3, admin_token=ADMIN, tenant_form="meta._tenant"
    ) as running:
        config = config_for(running.base_url, keys["one"], tmp_path, profile="smartbox", tenant="my-clinic")
        with pytest.raises(ConfigError, match="tenant"):
            run(config)
        assert methods(running) == []
        assert run(config, Known(tenant_form="tenant"))[0] == "Client/nightly created 201"
        wrong = first_bad(check_source(config, config.source(None)))
        assert wrong is not None, "the box took the other form without a word"
        assert "HTTP 403" in wrong.cause
        assert "other --tenant-form (_tenant or tenant)" in wrong.advice
        assert run(config, Known(tenant_form="_tenant"))[0].startswith("Client/nightly ")
        assert resource(running, "Client/nightly")["meta"]["_tenant"] == "my-clinic"
        assert first_bad(check_source(config, config.source(None))) is None


class _Answering(BaseHTTPRequestHandler):
    """Answers every request as its server was told, and notes what came."""

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server: Any = self.server
        server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        status, headers, body = server.script
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def scripted() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Answering)
    server.seen, server.script = [], (200, {}, b"{}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_credential_does_not_follow_a_redirect(
    scripted: Any, box: SandboxProcess, keys: dict[str, Path], tmp_path: Path
) -> None:
    scripted.script = (307, {"Location": f"{box.base_url}/Client/nightly"}, b"")
    with pytest.raises(ServerRefused, match="redirect"):
        run(config_for(f"http://127.0.0.1:{scripted.server_port}", keys["one"], tmp_path))
    assert methods(box) == []
    assert [each[:2] for each in scripted.seen] == [("GET", "/Client/nightly")]


@pytest.mark.parametrize(
    ("status", "kind"), [(500, Unreachable), (429, Unreachable), (422, ServerRefused), (403, AuthError)]
)
def test_a_box_that_says_no_is_told_by_its_status(
    scripted: Any, keys: dict[str, Path], tmp_path: Path, status: int, kind: type[ExportError]
) -> None:
    scripted.script = (status, {}, json.dumps({"error": f"Bearer {ADMIN}"}).encode())
    with pytest.raises(kind, match=f"HTTP {status}") as refused:
        run(config_for(f"http://127.0.0.1:{scripted.server_port}", keys["one"], tmp_path))
    assert ADMIN not in str(refused.value)


def test_requests_for_another_server_are_never_sent(scripted: Any) -> None:
    """Not even where somebody put them together wrongly."""
    from pipeline.registration.steps import Request

    here = f"http://127.0.0.1:{scripted.server_port}"
    requests = [
        Request("PUT", f"{here}/Client/x", {"resourceType": "Client", "id": "x", "type": "bulk-api-client"}),
        Request("PUT", "http://localhost:1/AccessPolicy/x", {"resourceType": "AccessPolicy", "id": "x"}),
    ]
    scripted.script = (404, {}, b"")
    with httpx.Client() as http, pytest.raises(ConfigError, match="localhost:1"):
        at_the_box.apply(http, requests, at_the_box.administrator(b"t0ken"))
    assert [each[0] for each in scripted.seen] == ["GET"]
