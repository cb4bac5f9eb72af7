"""Answers that a fault has bent: whole ones, and their bytes on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Send

from pipeline.sandbox.bent_content import bent_json, bent_lines, corrupted
from pipeline.sandbox.fault import Fault

_PIECE = 64 * 1024


class CutOff(ConnectionError):
    """Stops the application in the middle of a body."""


class Hit:
    """A fault that happens to one request; `happened` once something was really changed by it."""

    def __init__(self, fault: Fault, target: str) -> None:
        self.fault = fault
        self.target = target
        self.happened = False


class Wire:
    """A `send` for the answer to a hit: headers, and the bytes as the fault has them."""

    def __init__(self, hit: Hit, send: Send) -> None:
        self._hit = hit
        self._send = send
        self._sent = 0
        self._endless = False
        self.over = False

    async def begin(self, message: Message) -> None:
        """The start of the answer."""
        fault = self._hit.fault
        headers = MutableHeaders(raw=list(message["headers"]))
        for name, value in fault.headers.items():
            self._hit.happened = True
            if value is None:
                del headers[name]
            else:
                headers[name] = str(value)
        if (fault.truncate_after is not None and not fault.cut) or fault.never_ends:
            del headers["content-length"]
        await self._send({**message, "headers": headers.raw})

    async def go_on(self, body: bytes, *, more: bool) -> None:
        """A piece of the body. CutOff where the connection is to be dropped here."""
        if self.over:
            return
        fault, hit = self._hit.fault, self._hit
        bent = corrupted(body, fault, self._sent)
        hit.happened |= bent != body
        if fault.truncate_after is not None and self._sent + len(bent) > fault.truncate_after:
            bent = bent[: fault.truncate_after - self._sent]
            self.over = hit.happened = True
        self._sent += len(bent)
        self._endless = fault.never_ends is not None and not more and not self.over
        await self._paced(bent, more=fault.cut if self.over else more or self._endless)
        if self.over and fault.cut:
            raise CutOff("cut by a scripted fault")

    async def finish(self, receive: Receive) -> None:
        """Where the answer never ends: go on with it until nobody listens any more."""
        text = self._hit.fault.never_ends
        if not self._endless or text is None:
            return
        self._hit.happened = True
        piece = text.encode()
        piece *= max(1, _PIECE // len(piece))
        left = asyncio.ensure_future(_disconnected(receive))
        while not left.done():
            await self._paced(piece, more=True, left=left)
            await asyncio.sleep(0)

    async def _paced(self, body: bytes, *, more: bool, left: asyncio.Future[None] | None = None) -> None:
        pace = self._hit.fault.slow
        if pace is not None:
            step = max(1, pace // 10)
            while len(body) > step and not (left and left.done()):
                await self._send({"type": "http.response.body", "body": body[:step], "more_body": True})
                body = body[step:]
                self._hit.happened = True
                await asyncio.sleep(step / pace)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class Bent:
    """A `send` for what the application answers. `choose` names the fault when the status is known."""

    def __init__(self, send: Send, choose: Callable[[int], Awaitable[Hit | None]]) -> None:
        self._send = send
        self._choose = choose
        self._hit: Hit | None = None
        self._start: Message | None = None
        self._held = b""
        self._answered = False
        self.wire: Wire | None = None

    async def __call__(self, message: Message) -> None:
        if self._answered:
            return
        if message["type"] == "http.response.start":
            self._hit = await self._choose(message["status"])
            self.wire = None if self._hit is None else Wire(self._hit, self._send)
        if self._hit is None or self.wire is None:
            await self._send(message)
        elif message["type"] == "http.response.start":
            await self._begin(self._hit, self.wire, message)
        elif message["type"] == "http.response.body":
            await self._continue(self._hit.fault, self.wire, message)
        else:
            await self._send(message)

    async def _begin(self, hit: Hit, wire: Wire, message: Message) -> None:
        if hit.fault.replaces:
            self._answered = True
            await answer(hit, wire)
            return
        is_file = message["status"] == 200 and not _is_json(message)
        if (is_file and hit.fault.bends_lines) or (_is_json(message) and hit.fault.bends_json):
            self._start = message
        else:
            await wire.begin(message)

    async def _continue(self, fault: Fault, wire: Wire, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._start is None:
            await wire.go_on(body, more=more)
            return
        self._held += body
        if more:
            return
        body = (bent_json if _is_json(self._start) else bent_lines)(self._held, fault)
        if self._hit is not None:
            self._hit.happened |= body != self._held
        headers = MutableHeaders(raw=list(self._start["headers"]))
        headers["content-length"] = str(len(body))
        await wire.begin({**self._start, "headers": headers.raw})
        await wire.go_on(body, more=False)


async def answer(hit: Hit, wire: Wire) -> None:
    """The answer in the application's place."""
    fault = hit.fault
    hit.happened = True
    body = b"" if fault.body is None else msgspec.json.encode(fault.body)
    media_type = "application/json"
    if isinstance(fault.body, str):
        body = fault.body.encode()
        media_type = "text/html; charset=utf-8" if fault.body.lstrip().startswith("<") else "text/plain"
    headers = MutableHeaders({"content-type": media_type, "content-length": str(len(body))})
    status = fault.status
    if fault.redirect is not None:
        headers["location"] = fault.redirect.replace("{target}", hit.target)
        status = status or 307
    await wire.begin({"type": "http.response.start", "status": status, "headers": headers.raw})
    await wire.go_on(body, more=False)


def _is_json(start: Message) -> bool:
    media_type = Headers(raw=start["headers"]).get("content-type", "").split(";")[0]
    return media_type.endswith("json") and "ndjson" not in media_type


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
