"""One JSON line per request. Of the Authorization header only the scheme is kept, never the token."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AccessLog:
    """Appends to a file, a line per request when it is over; without a path it keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application with the log around it."""
        if self._path is None:
            return app

        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began = time.monotonic()
            seen = {"status": 0, "bytes": 0}

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seen["status"] = message["status"]
                seen["bytes"] += len(message.get("body", b""))
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                self._write(scope, seen, time.monotonic() - began)

        return logged

    def _write(self, scope: Scope, seen: dict[str, int], seconds: float) -> None:
        headers = Headers(scope=scope)
        scheme = headers.get("authorization", "").partition(" ")[0]
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode("latin-1"),
            "auth": scheme[:16] or None,
            "accept": headers.get("accept"),
            "status": seen["status"],
            "bytes": seen["bytes"],
            "seconds": round(seconds, 4),
        }
        if self._path is not None:
            with self._lock, self._path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")
