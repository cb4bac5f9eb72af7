"""A FHIR server of the tests whose resources name attachments, and another host that it points to.

Real HTTP on loopback, with a sign-in; each keeps the requests that it got, so that a test sees who saw what.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.config import Config, load_config
from pipeline.exports.attachments.linking import Linked
from pipeline.exports.attachments.run import link_attachments
from pipeline.exports.attempt import claim_attempt, recorded
from pipeline.exports.manifests import open_manifest
from pipeline.exports.owner import this_process
from pipeline.exports.publishing import publish
from pipeline.exports.receipt import write_receipt
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.staging import groups_of, stage_type

EXPORTS = ("20260101T020000Z", "20260102T020000Z", "20260103T020000Z")


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str] = field(repr=False)
    at: float = field(default_factory=time.monotonic)

    @property
    def bearer(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(frozen=True)
class Answer:
    """`chunked`: its length is not announced."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False


Behaviour = Callable[[Asked], Answer]


class Host:
    """Answers by path; what it does not know is 404."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: dict[str, Answer | Behaviour] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.base = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def paths(self, beginning: str = "/") -> list[str]:
        return [each.path for each in self.asked if each.path.startswith(beginning)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, asked: Asked) -> Answer:
        found = self.answers.get(asked.path.partition("?")[0], Answer(status=404))
        return found(asked) if callable(found) else found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
                host.asked.append(asked)
                self.rfile.read(int(asked.headers.get("content-length", "0")))
                self._say(host.answer(asked))

            do_POST = do_DELETE = do_GET

            def _say(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if not answer.chunked:
                    self.wfile.write(answer.body)
                    return
                for start in range(0, len(answer.body), 1000):
                    piece = answer.body[start : start + 1000]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: object) -> None:
                return

        return Handler


class FhirServer(Host):
    """Signs in, exports `resources` by type, and gives Binaries to whoever shows the newest token."""

    def __init__(self) -> None:
        super().__init__()
        self.resources: dict[str, list[dict[str, Any]]] = {}
        self.tokens = 0
        self.transaction_time = "2026-01-01T02:00:00Z"

    @property
    def fhir_url(self) -> str:
        return f"{self.base}/fhir"

    @property
    def token(self) -> str:
        return f"Bearer tok-{self.tokens}-that-nobody-else-may-see"

    def binary(self, name: str, content: bytes, content_type: str = "application/pdf") -> None:
        """A Binary that is given raw, to who signs in."""
        answer = Answer(content, headers={"Content-Type": content_type})
        self.answers[f"/fhir/Binary/{name}"] = lambda asked: self.guarded(asked, answer)

    def guarded(self, asked: Asked, answer: Answer) -> Answer:
        return answer if asked.bearer == self.token else Answer(status=401)

    def answer(self, asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        if path == "/token":
            self.tokens += 1
            token = self.token.removeprefix("Bearer ")
            return _json(
                {"access_token": token, "token_type": "bearer", "expires_in": 3600, "scope": "system/*.rs"}
            )
        if path.endswith("/$export"):
            return Answer(status=202, headers={"Content-Location": f"{self.base}/job"})
        if path == "/job":
            files = [
                {"type": kind, "url": f"{self.base}/files/{kind}", "count": len(rows)}
                for kind, rows in self.resources.items()
            ]
            return _json(
                {
                    "transactionTime": self.transaction_time,
                    "request": f"{self.fhir_url}/$export",
                    "requiresAccessToken": False,
                    "output": files,
                    "error": [],
                }
            )
        if path.startswith("/files/"):
            rows = self.resources[path.rpartition("/")[2]]
            return Answer("".join(f"{json.dumps(row)}\n" for row in rows).encode())
        return super().answer(asked)


def _json(value: object) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@dataclass
class Place:
    """An installation for one such server; source `hosp`."""

    folder: Path
    server: FhirServer
    other: Host
    lake: dict[str, Any] = field(default_factory=dict)
    """Keys of the configuration for a lake elsewhere."""

    @property
    def config_path(self) -> Path:
        return self.folder / "exports.yaml"

    @property
    def config(self) -> Config:
        return load_config(self.config_path)

    @property
    def session(self) -> Session:
        return Session(self.config, self.config.source(None), this_process("test"), is_dead=lambda _: True)

    @property
    def blobs(self) -> dict[str, bytes]:
        """Contents by the name of their file."""
        folder = self.folder / "lake" / "hosp" / "attachments"
        return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}

    def configure(self, attachments: object = True, **source: object) -> None:
        entry = {
            "name": "hosp",
            "fhir_url": self.server.fhir_url,
            "auth": {
                "client_id": "nightly",
                "private_key": "file:hosp.pem",
                "algorithm": "ES384",
                "token_url": f"{self.server.base}/token",
            },
            "export": {"level": "system", "since": "never"},
            "flat": False,
            "current": False,
            "attachments": attachments,
            **source,
        }
        whole = {"lake": str(self.folder / "lake"), **self.lake, "sources": [entry]}
        self.config_path.write_text(json.dumps(whole))

    def publish(self, export_id: str, **resources: list[dict[str, Any]]) -> None:
        """An export of those resources, by the pipeline's own steps."""
        self.server.resources = resources
        session = self.session
        request_export(session, export_id)
        attempt = claim_attempt(session, export_id)
        with recorded(session, attempt):
            manifest = open_manifest(session, attempt)
            for group in groups_of(manifest):
                stage_type(session, attempt, manifest, group)
            publish(session, attempt, manifest, ())
            write_receipt(session, attempt, manifest)

    def fetch(self, export_id: str | None = None) -> list[Linked]:
        return list(link_attachments(self.session, export_id))

    def links(self, export_id: str | None = None) -> list[dict[str, Any]]:
        """Rows of `_attachments`, by DuckDB over the files that delta-rs lists."""
        files = DeltaTable(str(self.folder / "lake" / "hosp" / "tables" / "_attachments")).file_uris()
        files = [each for each in files if export_id is None or f"export_id={export_id}/" in each]
        if not files:
            return []
        found = duckdb.sql(f"select * from read_parquet({files}) order by resource_type, resource_id, path")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]

    def states(self, export_id: str | None = None) -> dict[str, str]:
        return {row["resource_id"]: row["state"] for row in self.links(export_id)}


@contextmanager
def open_place(
    folder: Path, attachments: object = True, lake: dict[str, Any] | None = None
) -> Iterator[Place]:
    """Servers and configuration; stopped at the end."""
    server, other = FhirServer(), Host()
    write_private_key(folder / "hosp.pem", generate_key("ES384"))
    place = Place(folder, server, other, lake or {})
    place.configure(attachments)
    try:
        yield place
    finally:
        server.close()
        other.close()


def document(name: str, version: str | None = "1", **attachment: Any) -> dict[str, Any]:
    """A DocumentReference with one attachment; `content` bytes become inline data."""
    if "content" in attachment:
        attachment["data"] = base64.b64encode(attachment.pop("content")).decode()
    meta = {"meta": {"versionId": version}} if version else {}
    return {
        "resourceType": "DocumentReference",
        "id": name,
        **meta,
        "status": "current",
        "content": [{"attachment": attachment}],
    }


def report(name: str, *attachments: dict[str, Any]) -> dict[str, Any]:
    """A DiagnosticReport with these forms."""
    return {
        "resourceType": "DiagnosticReport",
        "id": name,
        "meta": {"versionId": "1"},
        "status": "final",
        "presentedForm": list(attachments),
    }
