"""A real HTTP server that takes webhooks, and can be slow, refuse or be away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What came, and what it answers: `answer` is asked before each; status, headers, body."""

    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    tries: int = 0
    answer: Callable[[], tuple[int, dict[str, str], bytes]] = lambda: (200, {}, b"ok")
    delay: float = 0.0
    drip: bool = False
    on_request: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/T0SECRETPATH/B0?sig=SECRETQUERY"

    @property
    def events(self) -> list[str]:
        return [body["event"] for body in self.bodies]


@contextmanager
def start_receiver(port: int = 0) -> Iterator[Receiver]:
    """Listens on loopback until the end of the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            receiver.tries += 1
            time.sleep(receiver.delay)
            status, headers, said = receiver.answer()
            if status == 200:
                receiver.bodies.append(body)
                receiver.paths.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if not receiver.drip:
                self.send_header("content-length", str(len(said)))
            self.end_headers()
            receiver.on_request()
            try:
                while receiver.drip:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.2)
                self.wfile.write(said)
            except OSError:
                pass

        def log_message(self, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        receiver.drip = False
        server.shutdown()
        server.server_close()
