"""What was asked of the cloud: one entry per request, with who and for what, never a token or a secret."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import jwt
import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SHOWN = frozenset(
    {"api-version", "resource", "client_id", "object_id", "mi_res_id", "msi_res_id", "maxresults"}
)


class Journal:
    """In memory, and in a file where one is given."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: list[dict[str, Any]] = []

    def entries(self, on: str | None) -> list[dict[str, Any]]:
        """Oldest first, of one part or of all."""
        return [entry for entry in self._entries if on is None or entry["on"] == on]

    def wrap(self, app: ASGIApp, on: str) -> ASGIApp:
        """The application with its entries; it may add to `scope["state"]["noted"]`."""

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] == "/control":
                await app(scope, receive, send)
                return
            notes: dict[str, Any] = {}
            scope.setdefault("state", {})["noted"] = notes
            seen = {"status": 0}

            async def watching(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seen["status"] = message["status"]
                await send(message)

            try:
                await app(scope, receive, watching)
            finally:
                self._write({**_of(scope), "on": on, "status": seen["status"], **notes})

        return noted

    def _write(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")


def note(scope: Scope, **notes: Any) -> None:
    """Adds to the entry of this request."""
    cast("dict[str, Any]", scope["state"]["noted"]).update(notes)


def _of(scope: Scope) -> dict[str, Any]:
    from urllib.parse import parse_qsl

    headers = Headers(scope=scope)
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"],
        "path": scope["path"],
        "query": {name: value if name in _SHOWN else "..." for name, value in query},
        "auth": scheme[:16] or None,
        "bearer": hashlib.sha256(credential.encode()).hexdigest()[:16] if credential else None,
        "audience": _audience(credential),
        "agent": headers.get("user-agent"),
    }


def _audience(credential: str) -> Any:
    """What a bearer was made for, whoever made it."""
    try:
        return jwt.decode(credential, options={"verify_signature": False}).get("aud") if credential else None
    except jwt.PyJWTError:
        return "not a JWT"
