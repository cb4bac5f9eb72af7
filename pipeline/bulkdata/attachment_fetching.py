"""Fetches one attachment to a file: within its limit, as often as a passing error asks for."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline.bulkdata.attachment_policy import AttachmentPolicy
from pipeline.bulkdata.attachment_rules import NotTaken, accept, is_json, unwrapped
from pipeline.bulkdata.byterate import ByteRate
from pipeline.bulkdata.exchange import Exchange, translated
from pipeline.bulkdata.throttle import Throttle
from pipeline.errors import DownloadRefused, Unreachable
from pipeline.log_redaction import keep_logs_clean
from pipeline.network.allowance import allowed
from pipeline.network.bodies import pieces
from pipeline.retry_after import pace, retry_after

LONGEST_HOLD = 300.0
"""Seconds that a server's `Retry-After` is waited for; one that asks for more is left to the next run."""

_PASSING = frozenset({408, 425, 429})
_OVERLOAD = frozenset({408, 429, 503, 504})
_FHIR_JSON = "application/fhir+json"
_AROUND = 1 << 16
"""Bytes that a Binary resource may have around its data."""


class AskedToWait(Unreachable):
    """The server wants a longer pause than anyone waits for here: nothing more is asked now."""


class SignInRefused(NotTaken):
    """A 401 although the token is new: it may pass with another registration or scope."""


@dataclass(frozen=True)
class Arrived:
    """What came, at `path`; the hashes are of its bytes."""

    path: Path
    size: int
    sha1: bytes
    sha256: bytes
    content_type: str | None


class AttachmentFetcher:
    """`http` brings the token, as its `auth`, and judges each request by `policy` itself.

    `most` bytes of one attachment. It may be used by several threads.
    """

    def __init__(
        self,
        http: httpx.Client,
        policy: AttachmentPolicy,
        throttle: Throttle,
        *,
        most: int,
        slowest: int = 0,
        tries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        http.event_hooks = {"request": [lambda request: policy.check(request.url)]}
        self._exchange = Exchange(http)
        self._policy = policy
        self._throttle = throttle
        self._most = most
        self._slowest = slowest
        self._tries = tries
        self._sleep = sleep
        self._unwrapping = threading.Lock()
        keep_logs_clean()

    def fetch(self, url: str, content_type: str | None, into: Path) -> Arrived:
        """One attachment, raw. Raises NotTaken; AskedToWait; AuthError where nobody can sign in."""
        accepting = accept(content_type)
        failures = 0
        while True:
            try:
                return self._in_turn(url, accepting, into)
            except DownloadRefused as error:
                raise NotTaken("refused", error.cause) from None
            except Unreachable as error:
                failures += 1
                wait = error.retry_after
                if (wait or 0) > LONGEST_HOLD:
                    raise AskedToWait(error.cause, f"The server asks to wait {wait:.0f} s", wait) from None
                if failures >= self._tries:
                    raise NotTaken("failed", error.cause) from None
                self._sleep(pace(failures - 1, wait, first=1.0, longest=30.0))
            except _NotAcceptable:
                if accepting == _FHIR_JSON:
                    raise NotTaken("refused", "it was answered with HTTP 406") from None
                accepting = _FHIR_JSON  # a server that knows no raw content gives the resource

    def _in_turn(self, url: str, accepting: str, into: Path) -> Arrived:
        with self._throttle.turn() as turn:
            try:
                arrived = self._once(url, accepting, into)
            except Unreachable as error:
                turn.overloaded, turn.pause = isinstance(error, _Overloaded), error.retry_after
                raise
            turn.well = True
            return arrived

    def _once(self, url: str, accepting: str, into: Path) -> Arrived:
        self._policy.check(url)
        own = self._policy.is_own(url)
        headers = {"Accept": accepting, "Accept-Encoding": "identity"}
        with (
            translated(url),
            self._exchange.stream(
                "GET", url, headers, bearer=own, elsewhere=True, refusal=DownloadRefused
            ) as response,
        ):
            _judge(response, own=own)
            kind = response.headers.get("content-type")
            wrapped = own and is_json(kind)
            arrived = self._receive(response, into, self._most * 4 // 3 + _AROUND if wrapped else self._most)
        return self._unwrap(arrived) if wrapped else arrived

    def _receive(self, response: httpx.Response, into: Path, most: int) -> Arrived:
        announced = response.headers.get("content-length", "")
        if announced.isascii() and announced.isdecimal() and int(announced[:20]) > most:
            raise NotTaken("too large", f"{announced[:20]} bytes, and {self._most} are allowed")
        sha1, sha256, size = hashlib.sha1(usedforsecurity=False), hashlib.sha256(), 0
        rate = ByteRate(self._slowest)
        with into.open("wb") as out:
            for piece in _in_time(response, rate.window):
                size += len(piece)
                if size > most:
                    raise NotTaken("too large", f"more than {self._most} bytes")
                sha1.update(piece)
                sha256.update(piece)
                out.write(piece)
                if rate.too_slow_after(len(piece)):
                    raise _Overloaded(f"it came with less than {self._slowest} bytes a second")
        return Arrived(into, size, sha1.digest(), sha256.digest(), response.headers.get("content-type"))

    def _unwrap(self, arrived: Arrived) -> Arrived:
        """The content of a Binary resource; any other JSON is the attachment itself."""
        with self._unwrapping:  # several times its size in memory: one after the other
            found = unwrapped(arrived.path.read_bytes(), self._most)
            if found is None:
                if arrived.size > self._most:
                    raise NotTaken("too large", f"more than {self._most} bytes")
                return arrived
            content, kind = found
            arrived.path.write_bytes(content)
        sha1 = hashlib.sha1(content, usedforsecurity=False)
        return Arrived(arrived.path, len(content), sha1.digest(), hashlib.sha256(content).digest(), kind)


class _Overloaded(Unreachable):
    """Internal: a sign that the server has too much to do."""


class _NotAcceptable(Exception):
    """Internal: 406."""


def _judge(response: httpx.Response, *, own: bool) -> None:
    status = response.status_code
    if status == 200:
        return
    what = f"it was answered with HTTP {status}"
    if status in _PASSING or status >= 500:
        kind = _Overloaded if status in _OVERLOAD else Unreachable
        raise kind(what, "Trying again may help.", retry_after(response.headers))
    if status in (204, 404, 410):
        raise NotTaken("gone", what)
    if status == 401 and own:
        raise SignInRefused("failed", what)
    if status == 406:
        raise _NotAcceptable
    raise NotTaken("refused", what)


def _in_time(response: httpx.Response, window: float) -> Iterator[bytes]:
    """The body's pieces; one that comes too late is a timeout, whatever is dripped in between."""
    silence = response.request.extensions.get("timeout", {}).get("read") or 0.0
    body = pieces(response)
    while True:
        with allowed(2 * max(window, silence)):
            piece = next(body, None)
        if piece is None:
            return
        yield piece
