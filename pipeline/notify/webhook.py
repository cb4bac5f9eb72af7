"""Webhooks: one POST to an address that is a secret itself.

Whoever knows the URL may post there, so neither its path nor its query is ever printed or logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_exponential

from pipeline.auth.explain import unreachable
from pipeline.config.model import is_written_plainly
from pipeline.errors import ConfigError, ServerRefused, Unreachable
from pipeline.network.allowance import allowed
from pipeline.network.bodies import ACCEPTED, pieces
from pipeline.network.guarded import guarded_client
from pipeline.network.known_hosts import KnownHosts
from pipeline.notify.notice import Notice
from pipeline.retry_after import retry_after

SECONDS = 10.0
"""For one try, from the connection to the end of the answer."""
TRIES = 3
_TRY_AGAIN_BEFORE = 5.0
"""Seconds: a try is not begun later, so that all of them take at most 15."""
_READ_AT_MOST = 2000
_SAYS_NO = b"delivery failed"
"""Teams' older connectors answer 200 with these words when they could not deliver."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Webhook:
    """Posts JSON to one address. `url` is asked for each notice: a secret may be replaced meanwhile."""

    def __init__(self, url: Callable[[], str], body: Callable[[Notice], dict[str, Any]], name: str) -> None:
        self._url = url
        self._body = body
        self._reference = name

    @property
    def name(self) -> str:
        return f"webhook {self._reference}"

    def tell(self, notice: Notice, /) -> None:
        """One POST, tried again where that may help. Raises as `Notifier.tell` does."""
        url = checked(self._url(), self._reference)
        again = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(TRIES) | stop_after_delay(_TRY_AGAIN_BEFORE),
            wait=wait_exponential(multiplier=0.5, max=2),
            reraise=True,
        )
        again(_post, url, self._body(notice))


def checked(url: str, reference: str) -> str:
    """The URL itself. Raises `ConfigError`, which does not repeat it."""
    url = url.strip()
    parts = urlsplit(url) if is_written_plainly(url) and _is_readable(url) else urlsplit("")
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"{reference} holds no URL", "It must hold the webhook's https URL and nothing else"
        )
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise ConfigError(
            f"{reference} holds a URL without TLS, at {parts.hostname}",
            "A webhook's URL is a secret: it must begin with https",
        )
    return url


def _is_readable(url: str) -> bool:
    try:
        return bool(httpx.URL(url).host)
    except (httpx.InvalidURL, UnicodeError):
        return False


def _may_pass(error: BaseException) -> bool:
    """Trouble that may be over in a second; who names a time is asked again then, at a later tick."""
    return isinstance(error, Unreachable) and error.retry_after is None


def _post(url: str, body: dict[str, Any]) -> None:
    target = httpx.URL(url)
    host, bare = target.host, target.copy_with(userinfo=b"")
    # It may be inside a network: the operator names it. Its answer leads nowhere.
    known = KnownHosts().with_doors([str(bare.copy_with(raw_path=b"/"))])
    try:
        with (
            _unlogged(),
            allowed(SECONDS),
            guarded_client(known, head_seconds=SECONDS, timeout=httpx.Timeout(SECONDS, connect=5.0)) as http,
            http.stream(
                "POST",
                bare,
                json=body,
                headers={"Accept-Encoding": ACCEPTED},
                auth=(target.username, target.password) if target.userinfo else None,
                follow_redirects=False,
            ) as answer,
        ):
            said = _beginning(answer)
    except httpx.RequestError as error:
        cause, advice = unreachable(error)
        raise Unreachable(f"the webhook at {host} cannot be reached: {cause}", advice) from None
    if answer.status_code == 429 or answer.status_code >= 500:
        raise Unreachable(
            f"the webhook at {host} answers {answer.status_code}", retry_after=retry_after(answer.headers)
        )
    if not answer.is_success:
        raise ServerRefused(
            f"the webhook at {host} answers {answer.status_code}",
            "Its URL may have been revoked: make a new one, and put it where the reference points",
        )
    if _SAYS_NO in said.lower():
        raise Unreachable(f"the webhook at {host} took the notice and could not deliver it")


def _beginning(answer: httpx.Response) -> bytes:
    """The first bytes of an answer: so many, or what came in time of one that has begun to speak."""
    said = b""
    try:
        for piece in pieces(answer):
            said += piece
            if len(said) >= _READ_AT_MOST:
                break
    except httpx.DecodingError:
        return b""  # its words are lost, its status stands
    except httpx.ReadTimeout:
        if not said:
            raise
    return said[:_READ_AT_MOST]


_posting: ContextVar[bool] = ContextVar("posting", default=False)


class _NotWhilePosting(logging.Filter):
    """Drops what httpx logs of each request: the whole URL."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - logging's own signature
        return not _posting.get()


_SILENCE = _NotWhilePosting()


@contextmanager
def _unlogged() -> Iterator[None]:
    logging.getLogger("httpx").addFilter(_SILENCE)  # once: the same filter is not added again
    token = _posting.set(True)
    try:
        yield
    finally:
        _posting.reset(token)
