"""An export server of the tests over plain sockets: it counts connections; each file does what it is told."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import Config, load_config
from pipeline.exports.attempt import claim_attempt, recorded
from pipeline.exports.facts import Receipt
from pipeline.exports.manifests import open_manifest
from pipeline.exports.owner import this_process
from pipeline.exports.publishing import publish
from pipeline.exports.receipt import write_receipt
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.staging import groups_of, land_sidecars, stage_type

EXPORT = "20260101T020000Z"


@dataclass(frozen=True)
class Ask:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    at: float
    connection: int
    nth_of_connection: int

    @property
    def start(self) -> int:
        """Where its Range begins; 0 without one."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


@dataclass(frozen=True)
class Say:
    """An answer. `drip`: bytes and seconds of each piece; `drop`: the connection ends without it. A body that
    is shorter than the Content-Length in `headers` ends with its connection.
    """

    body: bytes = b""
    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=dict)
    drip: tuple[int, float] | None = None
    drop: bool = False


Behaviour = Callable[[Ask], Say | None]
"""None: the file itself."""


def patient(number: int) -> bytes:
    return b'{"resourceType":"Patient","id":"p%d","gender":"other"}\n' % number


class FileServer:
    """Serves an export of `files` (bytes, in order), all of type Patient; `behave` may answer otherwise."""

    def __init__(self, files: list[bytes], behave: Behaviour = lambda _: None) -> None:
        self.files = files
        self.behave = behave
        self.entries: list[dict[str, object]] = [{"count": file.count(b"\n")} for file in files]
        self.asked: list[Ask] = []
        self.connections = 0
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.base = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def of(self, number: int) -> list[Ask]:
        """The requests for one file."""
        return [each for each in self.asked if each.target == f"/files/{number}"]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                threading.Thread(target=self._serve, args=(client, self.connections), daemon=True).start()

    def _serve(self, client: socket.socket, connection: int) -> None:
        with suppress(OSError), client, client.makefile("rb") as lines:
            nth = 0
            while first := lines.readline():
                headers = dict(
                    line.decode().strip().lower().split(": ", 1) for line in iter(lines.readline, b"\r\n")
                )
                method, target, _ = first.decode().split(" ", 2)
                nth += 1
                ask = Ask(method, target, headers, time.monotonic(), connection, nth)
                with self._lock:
                    self.asked.append(ask)
                if not self._answer(client, ask):
                    return

    def _answer(self, client: socket.socket, ask: Ask) -> bool:
        found = re.fullmatch(r"/files/(\d+)", ask.target)
        with self._lock:
            self.running += found is not None
            self.most_running = max(self.most_running, self.running)
        try:
            say = self._file(ask, int(found[1])) if found else self._job(ask)
            if say.drop:
                return False
            head = {"Content-Length": str(len(say.body)), **say.headers}
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            client.sendall(f"HTTP/1.1 {say.status}\r\n{lines}\r\n".encode())
            size, pause = say.drip or (len(say.body) or 1, 0.0)
            for at in range(0, len(say.body), size):
                client.sendall(say.body[at : at + size])
                time.sleep(pause)
            if int(head["Content-Length"]) > len(say.body):
                return False
        finally:
            with self._lock:
                self.running -= found is not None
        return True

    def _file(self, ask: Ask, number: int) -> Say:
        return self.behave(ask) or self.whole(number, ask.start)

    def whole(self, number: int, start: int = 0, **more: str) -> Say:
        """The file, with all that a resumed transfer needs."""
        data = self.files[number]
        headers = {"ETag": f'"v{number}"', "Accept-Ranges": "bytes", **more}
        if not start:
            return Say(data, headers=headers)
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Say(data[start:], "206 Partial Content", headers)

    def _job(self, ask: Ask) -> Say:
        if "$export" in ask.target:
            return Say(status="202 Accepted", headers={"Content-Location": f"{self.base}/fhir/job/1"})
        if ask.method == "DELETE":
            return Say(status="202 Accepted")
        output = [
            {"type": "Patient", "url": f"{self.base}/files/{number}", **entry}
            for number, entry in enumerate(self.entries)
        ]
        manifest = {
            "transactionTime": "2026-01-01T02:00:00Z",
            "requiresAccessToken": False,
            "output": output,
            "error": [],
        }
        return Say(json.dumps(manifest).encode(), headers={"Content-Type": "application/json"})


@contextmanager
def file_server(files: list[bytes], behave: Behaviour = lambda _: None) -> Iterator[FileServer]:
    server = FileServer(files, behave)
    try:
        yield server
    finally:
        server.close()


def configured(folder: Path, server: FileServer, **source: object) -> Config:
    """An installation for this server, without a sign-in."""
    path = folder / "exports.yaml"
    entry = {
        "name": "many",
        "fhir_url": f"{server.base}/fhir",
        "auth": {"kind": "none"},
        "export": {"level": "system", "group": None, "types": ["Patient"]},
        "downloads": {"concurrency": 4, "auth": "none"},
        "flat": False,
        "current": False,
        **source,
    }
    path.write_text(json.dumps({"lake": str(folder / "lake"), "sources": [entry]}))
    return load_config(path)


def session_of(config: Config, run_id: str = "one") -> Session:
    return Session(config, config.source(None), this_process(run_id), is_dead=lambda _: True)


def ingest(session: Session) -> Receipt:
    """Kick-off to receipt; whatever goes wrong is written down and raised."""
    request_export(session, EXPORT)
    attempt = claim_attempt(session, EXPORT)
    with recorded(session, attempt):
        manifest = open_manifest(session, attempt)
        for group in groups_of(manifest):
            stage_type(session, attempt, manifest, group)
        land_sidecars(session, attempt, manifest)
        publish(session, attempt, manifest, ())
        return write_receipt(session, attempt, manifest)
