"""Scripted throttling and failures: the next requests of one part get a status instead of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass
class _Fault:
    left: int
    status: int
    retry_after: str
    path: re.Pattern[str]


Answer = Callable[[Request, int, str], Response]
"""Request, status and Retry-After ("" for none) -> an error in the shape of that service."""


class Faults:
    """What is planned for each of `entra`, `identity` and `vault`, first come first served."""

    def __init__(self) -> None:
        self._planned: dict[str, list[_Fault]] = {}

    def plan(self, on: str, count: int, status: int, retry_after: str, path: str) -> None:
        """The next `count` requests whose path fits; 0 takes away what is planned there."""
        if count == 0:
            self._planned.pop(on, None)
            return
        self._planned.setdefault(on, []).append(_Fault(count, status, retry_after, re.compile(path)))

    def wrap(self, app: ASGIApp, on: str, answer: Answer) -> ASGIApp:
        """The application that fails when it is told to."""

        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            fault = self._next(on, scope["path"]) if scope["type"] == "http" else None
            if fault is None:
                await app(scope, receive, send)
            else:
                request = Request(scope, receive)
                await answer(request, fault.status, fault.retry_after)(scope, receive, send)

        return failing

    def _next(self, on: str, path: str) -> _Fault | None:
        if path == "/control":
            return None
        for fault in self._planned.get(on, []):
            if fault.left > 0 and fault.path.search(path):
                fault.left -= 1
                return fault
        return None
