"""`register --apply` at a box that others use too, and at one that repeats what it was sent."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from pipeline.errors import ConfigError, ExportError
from pipeline.registration.box import administrator, apply
from pipeline.registration.steps import Request
from pipeline.sandbox.process import start_sandbox

ADMIN = "admin-of-the-box"


@pytest.mark.parametrize("form", ["meta._tenant", "meta.tenant"])
def test_a_client_of_another_tenant_is_left_alone_until_told_otherwise(form: str) -> None:
    """Overwritten, it would let the other hospital's exports fail, and let ours into its data."""

    def meta(name: str) -> dict[str, Any]:
        return {"_tenant": name} if form == "meta._tenant" else {"tenant": {"id": name}}

    with start_sandbox(stand_in="smartbox", patients=2, admin_token=ADMIN, tenant_form=form) as box:
        url = f"{box.base_url}/Client/nightly"
        theirs, ours = (
            {
                "resourceType": "Client",
                "id": "nightly",
                "type": "bulk-api-client",
                "grant_types": ["client_credentials"],
                "jwks_uri": f"https://{name}.example.org/jwks.json",
                "meta": meta(name),
            }
            for name in ("other-clinic", "my-clinic")
        )
        header = {"Authorization": f"Bearer {ADMIN}"}
        assert httpx.put(url, json=theirs, headers=header).status_code in (200, 201)
        before = httpx.get(url, headers=header).json()
        with httpx.Client() as http:
            put = [Request("PUT", url, ours)]
            with pytest.raises(ConfigError, match="another tenant"):
                apply(http, put, administrator(ADMIN.encode()))
            assert httpx.get(url, headers=header).json() == before
            assert apply(http, put, administrator(ADMIN.encode()), replace=True)[0].outcome == "replaced"
            assert apply(http, put, administrator(ADMIN.encode()))[0].outcome == "unchanged"


class _Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        said = self.headers["Authorization"].partition(" ")[2]
        if ":" in (decoded := _decoded(said)):
            said += f" for {decoded}"
        body = f"something broke with {said} here".encode()
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return None


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return ""


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("credential", ["t0ken-of-root", "root:pa55w0rd"])
def test_a_box_that_repeats_the_credential_does_not_make_us_print_it(echo: str, credential: str) -> None:
    body = {"resourceType": "Client", "id": "x", "type": "bulk-api-client"}
    with httpx.Client() as http, pytest.raises(ExportError, match="something broke") as refused:
        apply(http, [Request("PUT", f"{echo}/Client/x", body)], administrator(credential.encode()))
    assert credential.rpartition(":")[2] not in str(refused.value)
    assert base64.b64encode(credential.encode()).decode() not in str(refused.value)
