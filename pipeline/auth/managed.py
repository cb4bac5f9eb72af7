"""Tokens from azure-identity: managed identity, workload identity, any of its credentials (fact C)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from pipeline.auth.entra import default_scope, require_audience
from pipeline.auth.tokens import GREATEST_LIFETIME, Token
from pipeline.azure.entra_errors import identity_error
from pipeline.errors import AuthError, ExportError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

SHORTEST_REST = 1.0
"""Seconds: the credential gives out what it has cached up to its last moment, too late to be sent."""


class AzureIdentityTokenSource:
    """Asks a credential of azure-identity for `{audience}/.default`.

    The credential has its own connections, tries again by itself and caches, so the client given to `fetch`
    is not used, and the token endpoint's origin is not known. `clock` gives monotonic seconds, `now` those
    of the epoch, `sleep` waits for some.
    """

    token_origin: str | None = None

    def __init__(
        self,
        credential: TokenCredential,
        audience: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require_audience(audience)
        self._credential = credential
        self._audience = audience
        self._clock = clock
        self._now = now
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"AzureIdentityTokenSource({type(self._credential).__name__}, audience={self._audience!r})"

    def fetch(self, http: httpx.Client) -> Token:  # noqa: ARG002 - the protocol's
        """A token with some life left. Raises AuthError, Unreachable, in words."""
        given = self._ask()
        rest = given.expires_on - self._now()
        if rest < SHORTEST_REST:
            self._sleep(max(0.0, rest) + 0.05)
            given = self._ask()
        begun = self._clock()
        rest = given.expires_on - self._now()
        if rest <= 0:
            raise AuthError(
                f"the token for {self._audience} had expired when it came", "Set this machine's clock right."
            )
        return Token(given.token, expires_at=begun + min(rest, GREATEST_LIFETIME), obtained_at=begun)

    def _ask(self) -> AccessToken:
        from azure.core.exceptions import AzureError
        from msal.exceptions import MsalError  # type: ignore[import-untyped]

        failed: ExportError
        try:
            return self._credential.get_token(default_scope(self._audience))
        except (AzureError, MsalError, OSError, ValueError) as error:  # token files, answers that are no JSON
            failed = identity_error(error, self._audience)
        raise failed  # outside the except block: its error may carry the request along
