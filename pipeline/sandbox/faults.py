"""The script of faults: what the server does wrong on purpose, set by `--faults` or `POST /control`.

The one place for misbehaviour: a middleware in front of the application, so that no endpoint knows of it.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.sandbox.bending import Bent, CutOff, Hit, Wire, answer
from pipeline.sandbox.fault import Fault, load_script, read_script
from pipeline.sandbox.jobs import Jobs
from pipeline.sandbox.outcomes import Refusal
from pipeline.sandbox.tokens import Gate

_COMPRESSION = b"accept-encoding"


class Scripted:
    """A fault and how often it was there: `seen` requests that it fits, `used` those that it took.

    `happened` are those where it really changed something.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._path = re.compile(fault.path)
        self.seen = self.used = self.happened = 0

    def fits(self, method: str, target: str) -> bool:
        """Whether the request is of its kind; the count does not matter."""
        return self.fault.method in (None, method) and self._path.search(target) is not None

    @property
    def is_spent(self) -> bool:
        """Whether nothing will be hit any more."""
        return self.fault.times is not None and self.used >= self.fault.times

    def takes(self) -> bool:
        """Count a request that fits; whether it is hit."""
        self.seen += 1
        behind = self.seen - self.fault.skip
        if behind <= 0 or behind % self.fault.every or self.is_spent:
            return False
        self.used += 1
        return True


class Faults:
    """The script: one fault happens to a request, the first that takes it; those behind do not count it.

    The ones without `answer` are asked when the request comes, the ones with it when the application has
    begun to answer.
    """

    def __init__(self, jobs: Jobs, tokens: Gate, path: Path | None) -> None:
        """The script of a file, or none. OSError or ValueError where the file cannot be read."""
        self._jobs = jobs
        self._tokens = tokens
        self._script = [] if path is None else [Scripted(fault) for fault in load_script(path)]

    def replace(self, script: Any) -> None:
        """Set a new script; Refusal 400 for a malformed one, which changes nothing."""
        try:
            self._script = [Scripted(fault) for fault in read_script(script)]
        except ValueError as error:
            raise Refusal(400, "value", str(error)) from None

    def describe(self) -> list[dict[str, Any]]:
        """Each fault with how often it has happened."""
        return [
            {
                "name": each.fault.name,
                "path": each.fault.path,
                "times": each.fault.times,
                "seen": each.seen,
                "used": each.used,
                "happened": each.happened,
            }
            for each in self._script
        ]

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application with the script in front of it; the control endpoint is never hit."""

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] == "/control":
                await app(scope, receive, send)
                return
            query = scope["query_string"].decode("latin-1")
            target = scope["path"] + (f"?{query}" if query else "")
            fitting = [each for each in self._script if each.fits(scope["method"], target)]
            taken = next((each for each in fitting if each.fault.answer is None and each.takes()), None)
            await _Request(self, app, fitting, taken, target).serve(scope, receive, send)

        return faulty

    async def strike(self, fault: Fault, target: str) -> bool:
        """What happens before the answer; True where something did."""
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.revoke_tokens:
            self._tokens.revoke_all()
        doomed = self._jobs.doom(
            target.partition("?")[0], gone=fault.gone, stuck=fault.stuck, failed=fault.failed
        )
        return doomed or bool(fault.delay) or fault.revoke_tokens


class _Request:
    """One request on its way through the script."""

    def __init__(
        self, faults: Faults, app: ASGIApp, fitting: list[Scripted], taken: Scripted | None, target: str
    ) -> None:
        self._faults = faults
        self._app = app
        self._fitting = fitting
        self._taken = taken
        self._target = target
        self._hit: Hit | None = None

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it, with a fault or without."""
        if self._taken is not None:
            self._hit = await self._struck(self._taken)
        try:
            await self._answer(scope, receive, send)
        finally:
            if self._taken is not None and self._hit is not None:
                self._taken.happened += self._hit.happened

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hit is not None and self._hit.fault.replaces:
            wire = Wire(self._hit, send)
            try:
                await answer(self._hit, wire)
            except CutOff:
                return
            await wire.finish(receive)
            return
        if any(each.fault.bends_lines and not each.is_spent for each in self._fitting) or (
            self._hit is not None and self._hit.fault.bends_lines
        ):
            scope = {**scope, "headers": [each for each in scope["headers"] if each[0] != _COMPRESSION]}
        bent = Bent(send, self._choose)
        try:
            await self._app(scope, receive, bent)
        except (OSError, ClientDisconnect):
            # Returning in the middle of a body is what makes uvicorn drop the connection.
            if bent.wire is None or not bent.wire.over:
                raise
        if bent.wire is not None:
            await bent.wire.finish(receive)

    async def _choose(self, status: int) -> Hit | None:
        if self._taken is None:
            waiting = [each for each in self._fitting if each.fault.answer == status]
            self._taken = next((each for each in waiting if each.takes()), None)
            if self._taken is not None:
                self._hit = await self._struck(self._taken)
        return self._hit

    async def _struck(self, taken: Scripted) -> Hit:
        hit = Hit(taken.fault, self._target)
        hit.happened = await self._faults.strike(taken.fault, self._target)
        return hit
