"""The token endpoint, and the check of the bearer on every other request."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Protocol
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.assertions import AssertionRefused, AssertionVerifier
from pipeline.sandbox.outcomes import Refusal, json_response
from pipeline.sandbox.scopes import Scopes, grant, parse_scopes

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_FIELDS = ("grant_type", "scope", "client_assertion_type", "client_assertion")


class Gate(Protocol):
    """Who says what the bearer of a request may read."""

    @property
    def requests(self) -> int:
        """Token requests so far, refused ones included."""

    def authorize(self, request: Request) -> Scopes:
        """What the bearer of this request may read; Refusal 401 or 403 where it is not good."""

    def revoke_all(self) -> None:
        """Forget every token."""


class Tokens:
    """Issues opaque tokens and knows, by their hash only, which are good for what and until when."""

    def __init__(
        self, verifier: AssertionVerifier, registered: Scopes, seconds: int, expires_in: str = "number"
    ) -> None:
        self._verifier = verifier
        self._registered = registered
        self._seconds = seconds
        answers: dict[str, dict[str, int | str]] = {
            "number": {"expires_in": seconds},
            "string": {"expires_in": str(seconds)},
            "absent": {},
        }
        self._told = answers[expires_in]
        self._issued: dict[bytes, tuple[float, Scopes]] = {}
        self.requests = 0
        """Token requests so far, refused ones included."""

    async def endpoint(self, request: Request) -> Response:
        """`POST /auth/token`: a token, or an OAuth error (RFC 6749, 5.2)."""
        self.requests += 1
        content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if content_type != "application/x-www-form-urlencoded":
            return _oauth_error(400, "invalid_request", "The body must be form-encoded")
        body = (await request.body()).decode("utf-8", "replace")
        pairs = parse_qsl(body, keep_blank_values=True)
        form = dict(pairs)
        problem = _problem_of(form, repeated=len(form) != len(pairs))
        if problem is not None:
            return problem
        try:
            await run_in_threadpool(self._verifier.verify, form["client_assertion"])
        except AssertionRefused as error:
            return _oauth_error(401, "invalid_client", str(error))
        requested = parse_scopes(form["scope"])
        granted = grant(requested, self._registered) if requested else None
        if granted is None:
            return _oauth_error(400, "invalid_scope", "No such system scope is registered for this client")
        return json_response(
            {
                "access_token": self._issue(granted),
                "token_type": "bearer",
                **self._told,
                "scope": granted.text,
            },
            headers={"Cache-Control": "no-store", "Pragma": "no-cache"},
        )

    def authorize(self, request: Request) -> Scopes:
        """What the bearer of this request may read; Refusal 401 where there is none or it is not good."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(
                401, "login", "A bearer token is required", {"WWW-Authenticate": 'Bearer realm="sandbox"'}
            )
        known = self._issued.get(_digest(token))
        if known is None or known[0] <= time.monotonic():
            raise Refusal(
                401,
                "expired",
                "The token is unknown or expired",
                {"WWW-Authenticate": 'Bearer realm="sandbox", error="invalid_token"'},
            )
        return known[1]

    def revoke_all(self) -> None:
        """Forget every token, as a server does that was restarted."""
        self._issued.clear()

    def _issue(self, scopes: Scopes) -> str:
        now = time.monotonic()
        self._issued = {key: value for key, value in self._issued.items() if value[0] > now}
        token = secrets.token_urlsafe(32)
        self._issued[_digest(token)] = (now + self._seconds, scopes)
        return token


def authorize_type(scopes: Scopes, resource_type: str) -> None:
    """Refusal 403 unless the scopes cover that type."""
    if not scopes.covers(resource_type):
        raise Refusal(
            403,
            "forbidden",
            f"The scope of the token does not cover {resource_type}",
            {"WWW-Authenticate": 'Bearer realm="sandbox", error="insufficient_scope"'},
        )


def _problem_of(form: dict[str, str], *, repeated: bool) -> Response | None:
    if repeated:
        return _oauth_error(400, "invalid_request", "A field is repeated")
    missing = [name for name in _FIELDS if not form.get(name)]
    if missing:
        return _oauth_error(400, "invalid_request", "Missing: " + ", ".join(missing))
    if form["grant_type"] != "client_credentials":
        return _oauth_error(400, "unsupported_grant_type", "grant_type must be client_credentials")
    if form["client_assertion_type"] != _ASSERTION_TYPE:
        return _oauth_error(400, "invalid_request", f"client_assertion_type must be {_ASSERTION_TYPE}")
    return None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _oauth_error(status: int, error: str, description: str) -> Response:
    content = {"error": error, "error_description": description}
    return json_response(content, status, headers={"Cache-Control": "no-store"})
