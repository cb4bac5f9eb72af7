"""Access tokens and where they come from."""

from __future__ import annotations

import logging
import math
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import httpx

from pipeline.auth.assertion import ASSERTION_TYPE, client_assertion
from pipeline.auth.discovery import SmartConfiguration, discover
from pipeline.auth.explain import (
    TokenRequest,
    json_object,
    refusal,
    said_in,
    trouble_advice,
    unreachable,
    unusable,
)
from pipeline.auth.origins import origin, printable, require_secure
from pipeline.auth.short_answers import ask
from pipeline.auth.signers import Signer
from pipeline.azure.entra_errors import entra_verdict
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable
from pipeline.redaction import remember
from pipeline.retry_after import retry_after

logger = logging.getLogger(__name__)

ASSUMED_LIFETIME = 300.0
"""Seconds, where `expires_in` is missing or means nothing: what most servers give (protocol fact 8)."""

GREATEST_LIFETIME = 24 * 3600.0
EARLY_SHARE = 0.2
EARLY_SECONDS = 60.0

TRIES = 4
LONGEST_WAIT = 30.0
"""Seconds that a token request waits; a server that asks for more is left to the caller's patience."""

_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)
_PASSING_ERRORS = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_PASSING_STATUS = frozenset({408, 425, 429})
_ACCEPT_JSON = {"Accept": "application/json"}


@dataclass(frozen=True)
class Token:
    """An access token; `expires_at` and `obtained_at` are seconds of the monotonic clock of this process."""

    value: str = field(repr=False)
    expires_at: float
    scope: str | None = None
    """As granted, which may differ from what was asked for; None where the server did not say (fact 8)."""
    obtained_at: float | None = None

    def __post_init__(self) -> None:
        remember(self.value)

    @property
    def refresh_at(self) -> float:
        """When to get the next one: the last fifth of its life, a minute at most."""
        if self.obtained_at is None:
            return self.expires_at - EARLY_SECONDS
        return self.expires_at - min(EARLY_SECONDS, EARLY_SHARE * (self.expires_at - self.obtained_at))


class TokenSource(Protocol):
    """Gets new tokens; it caches none."""

    @property
    def token_origin(self) -> str | None:
        """The origin that tokens come from, None while it is not known yet."""

    def fetch(self, http: httpx.Client) -> Token:
        """A new token. Raises AuthError when refused, Unreachable when there is no usable answer."""


class EndpointTokenSource(ABC):
    """What asks a token endpoint over HTTP: tries again where that helps, each time with a new request.

    `clock` gives monotonic seconds and `sleep` waits for some.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep

    @property
    @abstractmethod
    def token_origin(self) -> str | None:
        """The origin that tokens come from, None while it is not known yet."""

    def fetch(self, http: httpx.Client) -> Token:
        """A new token: each try with an assertion of its own, passing failures tried again up to three times.

        Raises AuthError when refused, Unreachable when the server stays away or asks to wait for longer than
        LONGEST_WAIT, ConfigError for URLs that are not https.
        """
        number = 1
        while True:
            outcome = self._try(http)
            if isinstance(outcome, Token):
                return outcome
            if not isinstance(outcome, Unreachable) or number == TRIES:
                raise outcome
            wait = _pause(number, outcome.retry_after)
            if wait > LONGEST_WAIT:
                raise outcome
            logger.info("no token yet, next try in %.1f s: %s", wait, outcome.cause)
            self._sleep(wait)
            number += 1

    def _try(self, http: httpx.Client) -> Token | ExportError:
        """Errors are returned, not raised: inside an except block they would carry the request along."""
        try:
            asked, form = self._prepare(http)
        except ExportError as error:
            return error
        begun = self._clock()
        try:
            answer = self._post(http, asked.token_url, form)
        except httpx.RequestError as error:
            cause, advice = unreachable(error)
            return Unreachable(f"the token endpoint {asked.where} cannot be reached: {cause}", advice)
        outcome = read_answer(answer, asked, begun)
        if isinstance(outcome, Token):
            logger.info(
                "signed in at %s as %s, for %.0f s", asked.where, asked.client_id, outcome.expires_at - begun
            )
        elif answer.status_code in (404, 410):
            self._moved()
        return outcome

    @abstractmethod
    def _prepare(self, http: httpx.Client) -> tuple[TokenRequest, dict[str, str]]:
        """One request's description and form. Raises ExportError."""

    def _moved(self) -> None:  # noqa: B027 - only an endpoint that was discovered can be looked for anew
        """The endpoint is not there (any more)."""

    def _post(self, http: httpx.Client, url: str, form: dict[str, str]) -> httpx.Response:
        return ask(http, "POST", url, data=form, headers=_ACCEPT_JSON)


class SmartTokenSource(EndpointTokenSource):
    """SMART Backend Services: a signed assertion for a token (protocol facts 5-8).

    `signer` may be a function that gives one: it is asked at each try, so that a rotated key signs at once.
    `token_url` None means discovery, done at the first token; `audience` None means the token URL posted to.
    `body`: API Management takes the form only, Aidbox both (azure-and-aidbox A, B).
    """

    def __init__(
        self,
        signer: Signer | Callable[[], Signer],
        client_id: str,
        scope: str,
        *,
        fhir_url: str,
        token_url: str | None = None,
        audience: str | None = None,
        body: Literal["form", "json"] = "form",
        jku: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(clock, sleep)
        _require(client_id, "auth.client_id")
        _require(scope, "auth.scope")
        if body not in ("form", "json"):
            raise ConfigError("auth.token_body is neither form nor json")
        require_secure(fhir_url)
        if token_url is not None:
            require_secure(token_url)
        self._signer: Callable[[], Signer] = signer if callable(signer) else lambda: signer
        self._client_id = client_id
        self._scope = scope
        self._fhir_url = fhir_url
        self._configured_url = token_url
        self._audience = audience
        self._body = body
        self._jku = jku
        self._discovered: SmartConfiguration | None = None
        self._discovering = threading.Lock()

    def __repr__(self) -> str:
        return f"SmartTokenSource(client_id={self._client_id!r}, fhir_url={printable(self._fhir_url)!r})"

    @property
    def token_origin(self) -> str | None:
        if self._configured_url is not None:
            return origin(self._configured_url)
        found = self._discovered
        return None if found is None else origin(found.token_endpoint)

    def configuration(self, http: httpx.Client) -> SmartConfiguration:
        """What the server says about signing in, asked once. Raises as `discover` does."""
        with self._discovering:
            if self._discovered is None:
                self._discovered = discover(http, self._fhir_url)
            return self._discovered

    def token_url(self, http: httpx.Client) -> str:
        """The configured token URL, else the discovered one."""
        return self._configured_url or self.configuration(http).token_endpoint

    def _prepare(self, http: httpx.Client) -> tuple[TokenRequest, dict[str, str]]:
        url = self.token_url(http)
        audience = self._audience or url
        signer = self._signer()
        assertion = client_assertion(signer, client_id=self._client_id, audience=audience, jku=self._jku)
        found = self._discovered
        asked = TokenRequest(
            token_url=url,
            client_id=self._client_id,
            scope=self._scope,
            audience=audience,
            kid=signer.kid,
            algorithm=signer.algorithm,
            accepted_algorithms=None if found is None else found.signing_algorithms_supported,
            secrets=(assertion,),
        )
        return asked, {
            "grant_type": "client_credentials",
            "scope": self._scope,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion,
        }

    def _moved(self) -> None:
        self._discovered = None

    def _post(self, http: httpx.Client, url: str, form: dict[str, str]) -> httpx.Response:
        if self._body == "form":
            return super()._post(http, url, form)
        return ask(http, "POST", url, json=form, headers=_ACCEPT_JSON)


def read_answer(answer: httpx.Response, asked: TokenRequest, begun: float) -> Token | AuthError | Unreachable:
    """A token endpoint's answer as a token, or as the error to raise. `begun`: monotonic seconds."""
    if answer.is_success:
        return _read_token(answer, asked, begun)
    body = json_object(answer) or {}
    if _may_pass(answer, body):
        return Unreachable(
            f"{asked.where} answered HTTP {answer.status_code}{said_in(body, asked.secrets)}",
            trouble_advice(body, asked),
            retry_after(answer.headers),
        )
    return refusal(answer, asked)


def _may_pass(answer: httpx.Response, body: Mapping[str, Any]) -> bool:
    code = body.get("error")
    named = code if isinstance(code, str) else ""
    verdict = entra_verdict(str(body.get("error_description", "")))
    if verdict is not None:
        return verdict
    return (
        named in _PASSING_ERRORS
        or answer.status_code in _PASSING_STATUS
        or (answer.is_server_error and answer.status_code != 501 and not named)
    )


def expires_in_seconds(said: object) -> float:
    """`expires_in` as seconds: a number, or a string with one; else ASSUMED_LIFETIME; a day at most."""
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return ASSUMED_LIFETIME
    try:
        seconds = float(said)
    except (ValueError, OverflowError):
        return ASSUMED_LIFETIME
    if not math.isfinite(seconds) or seconds <= 0:
        return ASSUMED_LIFETIME
    return min(seconds, GREATEST_LIFETIME)


def _read_token(answer: httpx.Response, asked: TokenRequest, begun: float) -> Token | AuthError:
    body = json_object(answer)
    if body is None:
        return unusable(answer, asked, "it is not JSON")
    if isinstance(body.get("error"), str):
        return refusal(answer, asked)
    value = body.get("access_token")
    if not isinstance(value, str) or _TOKEN.fullmatch(value) is None:
        return unusable(answer, asked, "it holds no access_token that could be sent")
    kind = body.get("token_type", "bearer")
    if not isinstance(kind, str) or kind.strip().lower() != "bearer":
        return unusable(answer, asked, "its token_type is not bearer")
    scope = body.get("scope")
    return Token(
        value,
        expires_at=begun + expires_in_seconds(body.get("expires_in")),
        scope=scope if isinstance(scope, str) else None,
        obtained_at=begun,
    )


def _pause(number: int, asked_for: float | None) -> float:
    """Seconds before the next try: as the server asks, else doubling from half a second, with some jitter."""
    if asked_for is not None:
        return asked_for
    return float(2 ** (number - 2)) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing


def _require(value: str, key: str) -> None:
    if not value.strip():
        raise ConfigError(f"{key} is blank", "The server gave it to you when the client was registered.")
