"""A proxy of the tests that plays a careless server: it repeats what it was sent, and whom that is about.

It stands in front of a sandbox, whose own answers it passes on with its address in place of the sandbox's.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request as the careless server sees it."""

    method: str
    target: str
    authorization: str
    body: str = field(repr=False)

    @property
    def secrets(self) -> list[str]:
        """All that was sent to prove who asks."""
        form = parse_qs(self.body)
        token = self.authorization.partition(" ")[2]
        return [each for each in (token, *form.get("client_assertion", [])) if each]


@dataclass(frozen=True)
class Answer:
    status: int
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/fhir+json"


@dataclass
class Misdeed:
    """What is answered to the next `times` requests whose method and target match; `bend` changes a body."""

    method: str
    target: str
    answer: Callable[[Asked], Answer] | None = None
    bend: Callable[[bytes], bytes] | None = None
    times: int = 1
    skip: int = 0
    done: int = 0


def outcome(words: str, code: str = "exception") -> str:
    issue = {"severity": "error", "code": code, "diagnostics": words}
    return json.dumps({"resourceType": "OperationOutcome", "issue": [issue]})


class EchoingProxy:
    """Listens on loopback in front of `upstream` (an origin)."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.misdeeds: list[Misdeed] = []
        self.secrets: set[str] = set()
        """Tokens, assertions and signatures that went over the wire, either way."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] - a client may hang up
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> EchoingProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _choose(self, asked: Asked) -> Misdeed | None:
        with self._lock:
            self.secrets.update(asked.secrets)
            for each in self.misdeeds:
                if each.method == asked.method and re.search(each.target, asked.target):
                    if each.skip > 0:
                        each.skip -= 1
                    elif each.done < each.times:
                        each.done += 1
                        return each
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                asked = Asked(
                    self.command,
                    self.path,
                    self.headers.get("Authorization", ""),
                    body.decode("utf-8", "replace"),
                )
                misdeed = proxy._choose(asked)
                if misdeed is not None and misdeed.answer is not None:
                    answer = misdeed.answer(asked)
                    data = answer.body.encode()
                    self.give(answer.status, {"Content-Type": answer.media_type, **answer.headers}, data)
                    return
                self.give(*proxy._pass_on(asked, dict(self.headers), body, misdeed))

            def give(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_HEAD = serve

        return Handler

    def _pass_on(
        self, asked: Asked, headers: dict[str, str], body: bytes, misdeed: Misdeed | None
    ) -> tuple[int, dict[str, str], bytes]:
        netloc = urlsplit(self.upstream).netloc
        kept = {
            n: v for n, v in headers.items() if n.lower() not in ("host", "accept-encoding", "connection")
        }
        connection = http.client.HTTPConnection(netloc, timeout=30)
        try:
            connection.request(
                asked.method, asked.target, body or None, {**kept, "Accept-Encoding": "identity"}
            )
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        given = {
            name: value.replace(self.upstream, self.origin)
            for name, value in answer.getheaders()
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server")
        }
        if "json" in given.get("content-type", given.get("Content-Type", "")) and "ndjson" not in str(given):
            data = data.replace(self.upstream.encode(), self.origin.encode())
            self._learn(data)
        if misdeed is not None and misdeed.bend is not None:
            data = misdeed.bend(data)
        return answer.status, given, data

    def _learn(self, data: bytes) -> None:
        try:
            answer = json.loads(data)
        except ValueError:
            return
        if isinstance(answer, dict) and isinstance(answer.get("access_token"), str):
            with self._lock:
                self.secrets.add(answer["access_token"])
