"""A token endpoint or a discovery document that drips byte by byte, or never ends, is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from pipeline.auth import short_answers
from pipeline.auth.discovery import discover
from pipeline.auth.entra import EntraTokenSource
from pipeline.errors import AuthError, Unreachable


class _Dripping(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        while not server.over.wait(server.pause):
            try:
                self.wfile.write(server.piece)
            except OSError:
                return

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def server() -> Iterator[Any]:
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Dripping)
    running.over, running.pause, running.piece = threading.Event(), 0.02, b" "
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.over.set()
    running.shutdown()


def source(server: Any) -> EntraTokenSource:
    return EntraTokenSource(
        tenant_id="5f0f5a3c-6d7e-4b1a-9c55-0a8b6f1d2e34",
        client_id="nightly",
        audience="https://fhir.example.org",
        client_secret="secret",
        authority=f"http://127.0.0.1:{server.server_port}",
        sleep=lambda _: None,
    )


def test_a_token_endpoint_that_drips_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_answers, "LONGEST_ANSWER", 0.3)
    begun = time.monotonic()
    with httpx.Client(timeout=5) as http, pytest.raises(Unreachable, match="did not answer in time"):
        source(server).fetch(http)
    assert time.monotonic() - begun < 15


def test_discovery_that_drips_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_answers, "LONGEST_ANSWER", 0.3)
    with httpx.Client(timeout=5) as http, pytest.raises(Unreachable, match="did not answer in time"):
        discover(http, f"http://127.0.0.1:{server.server_port}/fhir")


def test_an_answer_without_end_is_read_up_to_its_limit_only(server: Any) -> None:
    server.pause, server.piece = 0.0, b"x" * 65536
    with httpx.Client(timeout=5) as http, pytest.raises(AuthError, match="not JSON"):
        source(server).fetch(http)
