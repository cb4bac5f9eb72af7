"""The bearer on requests: one token for all threads, renewed in time, sent only where it may be seen."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator
from concurrent.futures import Future

import httpx

from pipeline.auth.origins import origin, require_secure
from pipeline.auth.tokens import Token, TokenSource
from pipeline.errors import ConfigError, ExportError, Unreachable

logger = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE = 10.0
"""Seconds between tries to renew a token early, while the old one is still good."""


class BearerAuth(httpx.Auth):
    """`httpx.Auth` that signs in through `source` and sends the bearer to `origins`, never elsewhere.

    To any other origin a request goes without Authorization, also where the caller had set one (protocol
    facts 9 and 28); along a redirect httpx itself drops the header as soon as the origin changes. The token
    endpoint's origin is not among them unless named. `http` sends the token requests; it may be the client
    that this authenticates. A 401 is answered once with a new token. Safe to share between threads; not for
    `httpx.AsyncClient`.

    Raises, out of the request: AuthError when the sign-in is refused, Unreachable when it finds no answer.
    """

    def __init__(
        self,
        source: TokenSource,
        http: httpx.Client,
        origins: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._http = http
        self._clock = clock
        self._lock = threading.Lock()
        self._origins: frozenset[str] = frozenset()
        self._token: Token | None = None
        self._flight: Future[Token] | None = None
        self._not_before = 0.0
        for one in origins:
            self.allow(one)

    def __repr__(self) -> str:
        return f"BearerAuth({self._source!r}, origins={sorted(self._origins)!r})"

    @property
    def origins(self) -> frozenset[str]:
        """The origins that the bearer is sent to."""
        return self._origins

    def allow(self, url: str) -> None:
        """Let the bearer go to the origin of this URL too, for downloads whose manifest requires it.

        Whether the configuration allows that is the caller's to know. Raises ConfigError unless it is https.
        """
        require_secure(url)
        with self._lock:
            self._origins |= {origin(url)}

    def permits(self, url: str | httpx.URL) -> bool:
        """Whether a request to this URL carries the bearer."""
        try:
            return origin(url) in self._origins
        except ConfigError:
            return False

    def token(self) -> Token:
        """The token in use, or a new one. Raises AuthError, Unreachable."""
        return self._current(refused=None)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers.pop("Authorization", None)
        if not self.permits(request.url):
            yield request
            return
        token = self._current(refused=None)
        request.headers["Authorization"] = f"Bearer {token.value}"
        answer = yield request
        carried = answer.request.headers.get("Authorization") == f"Bearer {token.value}"
        if answer.status_code != 401 or not carried:  # after a redirect it may be another server's 401
            return
        request.headers["Authorization"] = f"Bearer {self._current(refused=token).value}"
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        raise RuntimeError("BearerAuth waits on locks and is for httpx.Client only")
        yield request  # pragma: no cover - makes this a generator

    def _current(self, refused: Token | None) -> Token:
        while True:
            with self._lock:
                held = None if self._token is refused else self._token
                if held is not None and self._still_good(held):
                    return held
                flight, leading = self._flight, self._flight is None
                if flight is None:
                    flight = self._flight = Future()
            if leading:
                return self._fly(flight, held)
            flown = self._follow(flight)
            if flown is not None:
                return flown

    def _still_good(self, held: Token) -> bool:
        """Not due for renewal, or good for now while a renewal is under way or has just failed."""
        now = self._clock()
        if now < held.refresh_at:
            return True
        return now < held.expires_at and (self._flight is not None or now < self._not_before)

    def _fly(self, flight: Future[Token], held: Token | None) -> Token:
        """Fetch for all threads that wait on `flight`; a passing failure is borne while `held` is good."""
        try:
            token = self._source.fetch(self._http)
        except BaseException as error:
            spare = held if isinstance(error, Unreachable) and self._outlives(held) else None
            self._land(flight, spare, error)
            if spare is None:
                raise
            logger.warning("the token could not be renewed early and is used on: %s", error)
            return spare
        self._land(flight, token, None)
        return token

    def _outlives(self, held: Token | None) -> bool:
        return held is not None and self._clock() < held.expires_at

    def _land(self, flight: Future[Token], token: Token | None, error: BaseException | None) -> None:
        with self._lock:
            self._flight = None
            if error is None:
                self._token = token
            else:
                self._not_before = self._clock() + PAUSE_AFTER_FAILURE
        if token is not None:
            flight.set_result(token)
        elif isinstance(error, ExportError):
            flight.set_exception(error)
        else:
            flight.cancel()  # an interrupt of the leader is not an answer to those who wait

    @staticmethod
    def _follow(flight: Future[Token]) -> Token | None:
        """What the leader brought home, None when it was interrupted."""
        try:
            return flight.result()
        except ExportError as error:
            failure, arguments = error.__reduce__()[:2]
        except BaseException:
            if flight.cancelled():
                return None
            raise
        raise failure(*arguments)  # a copy for each thread: tracebacks of a shared one grow into each other
