"""One JSON line per request. Of the Authorization header the scheme is kept and a hash, never the token."""

from __future__ import annotations

import hashlib
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NOTE = "sandbox.note"


def note(request: Request, text: str) -> None:
    """Write that beside the request: what is wrong with it in a way that no status tells."""
    request.scope[_NOTE]["note"] = text


class AccessLog:
    """Appends to a file, a line per request before its answer ends; without a path it keeps nothing.

    With `names_only` the values of a query are left out. `bearer` is the start of the token's SHA-256 (16 hex
    digits): it tells whether two requests carried the same token.
    """

    def __init__(self, path: Path | None, *, names_only: bool = False) -> None:
        self._path = path
        self._names_only = names_only
        self._lock = threading.Lock()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application with the log around it."""

        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.monotonic()
            seen: dict[str, Any] = {"status": 0, "bytes": 0}
            scope[_NOTE] = seen

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seen["status"] = message["status"]
                seen["bytes"] += len(message.get("body", b""))
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    write()  # before its last byte is sent: who has read an answer finds its line
                await send(message)

            def write() -> None:
                if self._path is not None and not written:
                    written.append(True)
                    self._write(self._path, scope, seen, time.monotonic() - began)

            written: list[bool] = []
            try:
                await app(scope, receive, noting)
            finally:
                write()

        return logged

    def _write(self, path: Path, scope: Scope, seen: dict[str, Any], seconds: float) -> None:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        query = scope["query_string"].decode("latin-1")
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": scope["method"],
            "path": scope["path"],
            "query": "&".join(name for name, _ in parse_qsl(query, True)) if self._names_only else query,
            "host": headers.get("host"),
            "auth": scheme[:16] or None,
            "bearer": hashlib.sha256(token.encode()).hexdigest()[:16] if token else None,
            "accept": headers.get("accept"),
            "content_type": headers.get("content-type"),
            "range": headers.get("range"),
            "status": seen["status"],
            "bytes": seen["bytes"],
            "seconds": round(seconds, 4),
            "note": seen.get("note"),
        }
        with self._lock, path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
