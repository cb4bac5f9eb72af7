"""Scripted faults: what the server does wrong on purpose, set through `POST /control`.

The one place for misbehaviour: a middleware in front of the application, so that no endpoint knows of it.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.sandbox.outcomes import Refusal

_COMPRESSION = b"accept-encoding"


class CutOff(ConnectionError):
    """Stops the application in the middle of a body."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """Bytes, with their line ends, behind the first `after` lines of a file; None: at its end.

    Several are in the order of their places; each `after` counts the lines of the file itself.
    """

    base64: bytes
    after: int | None = None


@dataclass(slots=True)
class Fault:
    """What happens to requests whose path (with query) `path` is found in.

    `times`: to how many, None for all; `skip`: how many it lets pass before. `status` with `headers` and
    `body` (text, or any JSON value) answers in the application's place; `headers` alone are set on its
    answer; `delay` waits so many seconds first. `truncate_after` ends the body after so many bytes as if it
    were whole, with `cut` by dropping the connection. `wrong_count` (true for one too many, or a number to
    add) falsifies `count` of the first `output` entry of a manifest, or the first of type `type`; `retype`
    declares that entry as another type, empty: as none. `insert` puts bytes into a file, sent without
    compression and with its length then.
    """

    path: str
    method: str | None = None
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    delay: float = 0.0
    truncate_after: int | None = None
    cut: bool = False
    wrong_count: bool | int = 0
    type: str | None = None
    retype: str | None = None
    insert: list[Insertion] = field(default_factory=list)
    used: int = 0

    def takes(self, method: str, target: str) -> bool:
        """Whether this request is hit; counts it."""
        if self.method not in (None, method) or not re.search(self.path, target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.used >= self.times:
            return False
        self.used += 1
        return True


class Faults:
    """The script: the first fault that takes a request happens to it."""

    def __init__(self) -> None:
        self.script: list[Fault] = []

    def replace(self, script: Any) -> None:
        """Set a new script; Refusal 400 for a malformed one, which changes nothing."""
        names = {known.name for known in fields(Fault)} - {"used"}
        try:
            for entry in script:
                unknown = set(entry) - names
                if unknown:
                    raise Refusal(400, "value", f"A fault has no member {sorted(unknown)[0]}")
                re.compile(entry["path"])
            self.script = [msgspec.convert(entry, Fault) for entry in script]
        except (msgspec.ValidationError, TypeError, KeyError, re.error) as error:
            raise Refusal(400, "value", f"A fault is malformed: {error}") from None

    def describe(self) -> list[dict[str, Any]]:
        """Each fault with how often it has happened."""
        return [{"path": fault.path, "times": fault.times, "used": fault.used} for fault in self.script]

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application with the script in front of it; the control endpoint is never hit."""

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] == "/control":
                await app(scope, receive, send)
                return
            query = scope["query_string"].decode("latin-1")
            target = scope["path"] + (f"?{query}" if query else "")
            fault = next((fault for fault in self.script if fault.takes(scope["method"], target)), None)
            if fault is None:
                await app(scope, receive, send)
                return
            await asyncio.sleep(fault.delay)
            if fault.status is not None:
                await _answer(fault, send)
                return
            if fault.insert:
                scope = {**scope, "headers": [each for each in scope["headers"] if each[0] != _COMPRESSION]}
            bent = _Bent(fault, send)
            try:
                await app(scope, receive, bent)
            except (OSError, ClientDisconnect):
                # Returning in the middle of a body is what makes uvicorn drop the connection.
                if not bent.over:
                    raise

        return faulty


async def _answer(fault: Fault, send: Send) -> None:
    body = b"" if fault.body is None else msgspec.json.encode(fault.body)
    media_type = "application/json"
    if isinstance(fault.body, str):
        body = fault.body.encode()
        media_type = "text/html; charset=utf-8" if fault.body.lstrip().startswith("<") else "text/plain"
    headers = MutableHeaders({"content-type": media_type, "content-length": str(len(body))})
    headers.update(fault.headers)
    await send({"type": "http.response.start", "status": fault.status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


class _Bent:
    """A `send` that bends what the application answers."""

    def __init__(self, fault: Fault, send: Send) -> None:
        self._fault = fault
        self._send = send
        self._left = fault.truncate_after
        self._start: Message | None = None
        self._held = b""
        self.over = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body":
            await self._continue(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        headers = MutableHeaders(raw=list(message["headers"]))
        headers.update(self._fault.headers)
        if self._left is not None and not self._fault.cut:
            del headers["content-length"]
        message["headers"] = headers.raw
        is_json = Headers(raw=headers.raw).get("content-type", "").startswith("application/json")
        bent_manifest = (self._fault.wrong_count or self._fault.retype is not None) and is_json
        if message["status"] == 200 and (bent_manifest or self._fault.insert):
            self._start = message
        else:
            await self._send(message)

    async def _continue(self, message: Message) -> None:
        if self.over:
            return
        if self._start is not None:
            self._held += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_whole(self._start)
            return
        body = message.get("body", b"")
        if self._left is None or len(body) <= self._left:
            self._left = None if self._left is None else self._left - len(body)
            await self._send(message)
            return
        self.over = True
        await self._send({**message, "body": body[: self._left], "more_body": self._fault.cut})
        if self._fault.cut:
            raise CutOff("cut by a scripted fault")

    async def _send_whole(self, start: Message) -> None:
        body = _with_insertions(self._held, self._fault) if self._fault.insert else self._bent_manifest()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})

    def _bent_manifest(self) -> bytes:
        fault, manifest = self._fault, msgspec.json.decode(self._held)
        for entry in manifest.get("output", []):
            if "count" in entry and fault.type in (None, entry["type"]):
                entry["count"] += int(fault.wrong_count)
                if fault.retype is not None:
                    entry["type"] = fault.retype or None
                break
        return msgspec.json.encode(manifest)


def _with_insertions(body: bytes, fault: Fault) -> bytes:
    lines = body.splitlines(keepends=True)
    for insertion in reversed(fault.insert):
        place = len(lines) if insertion.after is None else insertion.after
        lines.insert(place, insertion.base64)
    return b"".join(lines)
