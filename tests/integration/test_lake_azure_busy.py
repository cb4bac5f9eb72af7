"""A storage that is busy for a moment in the middle of a large file is asked again, as for a small one."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure_storage import Azurite
from lake_on_azurite import lake_by_key, lake_url

from pipeline.config import LakeAuth
from pipeline.lake.lake import Lake, open_lake


class BusyFront(ThreadingHTTPServer):
    """Hands requests on to Azurite, but throttles the first whose line holds `busy_at`: before it has read
    the body, as Azure does."""

    target, busy_at, throttled = "", "", 0
    lock = threading.Lock()

    def takes(self, line: str) -> bool:
        """Whether this is the one to be throttled."""
        with self.lock:
            if self.throttled or self.busy_at not in line:
                return False
            self.throttled += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    server: BusyFront
    protocol_version = "HTTP/1.1"

    def hand_on(self) -> None:
        if self.server.takes(f"{self.command} {self.path}"):
            self.close_connection = True
            busy = "HTTP/1.1 503 Server Busy\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 0\r\n"
            self.wfile.write(f"{busy}Connection: close\r\n\r\n".encode())
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        onward = HTTPConnection(self.server.target, timeout=30)
        onward.request(self.command, self.path, body, dict(self.headers))
        answer = onward.getresponse()
        data = answer.read()
        onward.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = hand_on

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def busy(azurite: Azurite, container: str, at: str) -> Iterator[tuple[Lake, BusyFront]]:
    parts = urlsplit(azurite.endpoint)
    with BusyFront(("127.0.0.1", 0), _Handler) as server:
        server.target, server.busy_at = parts.netloc, at
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        held = azurite.connection_string.replace(parts.netloc, f"127.0.0.1:{server.server_port}").encode()
        auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
        try:
            yield open_lake(lake_url(container), Path("/"), auth, lambda _: held), server
        finally:
            server.shutdown()


@pytest.mark.parametrize(("size", "at"), [(1 << 20, "PUT "), (20 << 20, "blockid=")])
def test_a_file_whose_upload_met_a_busy_storage_lands_whole(
    azurite: Azurite, tmp_path: Path, size: int, at: str
) -> None:
    local = tmp_path / "part"
    local.write_bytes(os.urandom(size))
    container = azurite.new_container()
    with busy(azurite, container, at) as (lake, server):
        lake.put_file(local, "raw/part")
        assert server.throttled == 1
    assert lake_by_key(azurite, container).read("raw/part") == local.read_bytes()
