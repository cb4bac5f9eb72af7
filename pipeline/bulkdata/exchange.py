"""Sends one request and hands back its answer: redirects by hand, bodies bounded, errors in safe words.

Redirects (protocol facts 9, 28): the same origin keeps the token; another origin is followed for downloads
only, and never with the token; from https to http never. Methods other than GET are repeated by 307 and 308
only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin

import httpx

from pipeline.auth.explain import unreachable
from pipeline.auth.origins import origin, printable, require_secure
from pipeline.errors import ExportError, ServerRefused, Unreachable, VerificationFailed
from pipeline.network.allowance import allowed
from pipeline.network.bodies import ACCEPTED, pieces
from pipeline.retry_after import retry_after

MOST_REDIRECTS = 5
LONGEST_ERROR_BODY = 64 << 10
LONGEST_BODY = 256 << 20
LONGEST_ANSWER = 120.0
"""Seconds for an answer that is read whole: one that drips for ever breaks no timeout of a single read."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Reply:
    """An answer that is read whole (an error's body: its first 64 KiB)."""

    status: int
    url: str = field(repr=False)
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)

    def retry_after(self) -> float | None:
        """Seconds, by the server's own clock where it sends one."""
        return retry_after(self.headers)


class Exchange:
    """One HTTP client; its `auth` is used exactly where a request may carry the token."""

    def __init__(self, http: httpx.Client, answer_seconds: float = LONGEST_ANSWER) -> None:
        self._http = http
        self._answer_seconds = answer_seconds

    def fetch(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        bearer: bool,
        content: bytes | None = None,
        refusal: type[ExportError] = ServerRefused,
    ) -> Reply:
        """One request, read whole. Raises Unreachable without a usable answer, `refusal` for a wrong
        redirect.
        """
        accepting = {"Accept-Encoding": ACCEPTED, **headers}
        with (
            allowed(self._answer_seconds),
            translated(url),
            self.stream(method, url, accepting, bearer=bearer, content=content, refusal=refusal) as response,
        ):
            body = _read(response, self._answer_seconds)
        return Reply(response.status_code, str(response.url), response.headers, body)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        bearer: bool,
        content: bytes | None = None,
        elsewhere: bool = False,
        redirects: bool = True,
        refusal: type[ExportError] = ServerRefused,
    ) -> Iterator[httpx.Response]:
        """The answer at the end of its redirects, not yet read. `elsewhere`: another origin may be followed
        to. `redirects` False: none is followed, and `headers` may hold another credential than the token.

        httpx's own errors pass through: wrap it in `translated`.
        """
        require_secure(url, error=refusal)
        for _ in range(MOST_REDIRECTS + 1):
            try:
                response = self._send(method, url, headers, bearer, content, own=not redirects)
            except ServerRefused as error:
                if type(error) is not ServerRefused:  # the sign-in's
                    raise
                raise refusal(error.cause, error.advice) from None  # the client does not connect there
            except (httpx.RemoteProtocolError, httpx.InvalidURL) as error:
                # httpx reads a Location even where it is not to follow it.
                if isinstance(error, httpx.RemoteProtocolError) and "location header" not in str(error):
                    raise
                raise _unreadable(url, refusal) from None
            try:
                if response.status_code not in _REDIRECTS:
                    yield response
                    return
                if not redirects:
                    raise refusal(f"{printable(url)} redirects elsewhere", "No credential follows there.")
                target = _target(method, url, response, elsewhere, refusal)
            finally:
                response.close()
            bearer = bearer and origin(target, error=refusal) == origin(url, error=refusal)
            url = target
        raise refusal(
            f"{printable(url)} redirects more than {MOST_REDIRECTS} times", "Report it to the operator."
        )

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        bearer: bool,
        content: bytes | None,
        *,
        own: bool,
    ) -> httpx.Response:
        """`own`: an `Authorization` among `headers` is sent; one that the client was made with never is."""
        request = self._http.build_request(method, url, headers=dict(headers), content=content)
        if not (own and "Authorization" in headers):
            request.headers.pop("authorization", None)
        auth = httpx.USE_CLIENT_DEFAULT if bearer else None
        return self._http.send(request, auth=auth, stream=True, follow_redirects=False)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """httpx's errors as Unreachable, without their texts: these may hold signed URLs."""
    try:
        yield
    except httpx.TimeoutException:
        raise Unreachable(f"{_server(url)} did not answer in time", "Trying again may help.") from None
    except httpx.ConnectError as error:
        cause, advice = unreachable(error)
        raise Unreachable(f"{_server(url)} cannot be reached: {cause}", advice) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"the exchange with {_server(url)} broke off ({type(error).__name__})", "Trying again may help."
        ) from None


def _server(url: str) -> str:
    try:
        return origin(url)
    except ExportError:
        return printable(url)


def _unreadable(url: str, refusal: type[ExportError]) -> ExportError:
    return refusal(f"{printable(url)} redirects to an unreadable address", "Report it.")


def _target(
    method: str, url: str, response: httpx.Response, elsewhere: bool, refusal: type[ExportError]
) -> str:
    location = response.headers.get("location")
    if not location or (method != "GET" and response.status_code not in (307, 308)):
        raise refusal(
            f"{printable(url)} answered with a redirect ({response.status_code}) that cannot be followed",
            "Check fhir_url.",
        )
    try:
        target: str = urljoin(url, location)
    except ValueError:
        raise _unreadable(url, refusal) from None
    require_secure(target, error=refusal)
    if url.lower().startswith("https:") and not target.lower().startswith("https:"):
        raise refusal(f"{printable(url)} redirects from https to http", "This is never followed.")
    if not elsewhere and origin(target, error=refusal) != origin(url, error=refusal):
        raise refusal(
            f"{printable(url)} redirects to {printable(target)}",
            "The token does not follow to another server; if that is the right one, set fhir_url to it.",
        )
    return target


def _read(response: httpx.Response, longest: float) -> bytes:
    error = response.status_code >= 400
    limit = LONGEST_ERROR_BODY if error else LONGEST_BODY
    parts: list[bytes] = []
    size = 0
    give_up = time.monotonic() + longest
    for part in pieces(response):
        if time.monotonic() > give_up:
            raise Unreachable(
                f"{printable(str(response.url))} had not ended its answer after {longest:.0f} s",
                "Trying again may help.",
            )
        parts.append(part)
        size += len(part)
        if size > limit:
            if error:
                break
            raise VerificationFailed(f"{printable(str(response.url))} answered with more than {limit} bytes")
    return b"".join(parts)[:limit]
