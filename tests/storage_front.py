"""An HTTP front before Azurite that spoils one request: its answer is lost, or the storage is busy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from azure_storage import Azurite
from lake_on_azurite import lake_url

from pipeline.config import LakeAuth
from pipeline.lake.lake import Lake, open_lake

Spoils = Literal["answer lost", "busy"]
"""`busy`: 503 before the body is read, as Azure does; `answer lost`: done, and nobody learns of it."""


class Front(ThreadingHTTPServer):
    """Hands requests on; `spoiled` counts those that it has not: the first whose line holds `at`."""

    target, at, spoiled = "", "", 0
    spoils: Spoils = "busy"
    lock = threading.Lock()

    def takes(self, line: str, spoils: Spoils) -> bool:
        """Whether this is the one."""
        with self.lock:
            if self.spoils != spoils or self.spoiled or self.at not in line:
                return False
            self.spoiled += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    server: Front
    protocol_version = "HTTP/1.1"

    def hand_on(self) -> None:
        line = f"{self.command} {self.path}"
        if self.server.takes(line, "busy"):
            self._refuse()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        onward = HTTPConnection(self.server.target, timeout=30)
        onward.request(self.command, self.path, body, dict(self.headers))
        answer = onward.getresponse()
        data = answer.read()
        onward.close()
        if self.server.takes(line, "answer lost"):
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = hand_on

    def _refuse(self) -> None:
        self.close_connection = True
        busy = "HTTP/1.1 503 Server Busy\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 0\r\n"
        self.wfile.write(f"{busy}Connection: close\r\n\r\n".encode())
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def lake_behind(azurite: Azurite, container: str, spoils: Spoils, at: str) -> Iterator[tuple[Lake, Front]]:
    """A lake in `container` whose requests go through the front."""
    parts = urlsplit(azurite.endpoint)
    with Front(("127.0.0.1", 0), _Handler) as front:
        front.target, front.at, front.spoils = parts.netloc, at, spoils
        threading.Thread(target=front.serve_forever, args=(0.05,), daemon=True).start()
        held = azurite.connection_string.replace(parts.netloc, f"127.0.0.1:{front.server_port}").encode()
        auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
        try:
            yield open_lake(lake_url(container), Path("/"), auth, lambda _: held), front
        finally:
            front.shutdown()
