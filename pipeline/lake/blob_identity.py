"""The lake's identity: azure-identity's credential, with errors in words and tokens that live long enough."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pipeline.azure.credentials import STORAGE_SCOPE
from pipeline.azure.entra_errors import identity_error
from pipeline.errors import LakeError
from pipeline.redaction import remember

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

LEAST_TOKEN_LIFE = 120
"""Seconds that a token for delta-rs must have left: it cannot be renewed there; a commit takes less than one.
azure-identity gives out its own until they have 300 left, and for 30 more after each renewal that failed."""


class Identity:
    """For blocking callers."""

    def __init__(self, credential: TokenCredential, account: str) -> None:
        self._credential = credential
        self._account = account

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Raises `LakeError`."""
        try:
            token = self._credential.get_token(*scopes, **options)
        except Exception as error:  # noqa: BLE001 - azure-identity lets anything through
            raise _in_words(error, self._account) from None
        remember(token.token)
        return token

    def fresh_token(self) -> str:
        """A bearer token for storage; asked for twice where the first one is about to end.

        Raises `LakeError`, also when there are only tokens that end within `LEAST_TOKEN_LIFE`.
        """
        for _ in range(2):
            token = self.get_token(STORAGE_SCOPE)
            left = token.expires_on - time.time()
            if left >= LEAST_TOKEN_LIFE:
                return token.token
        raise LakeError(
            f"the identity of the lake gives a token that ends in {max(left, 0):.0f} s, and a table's commit "
            f"needs one for {LEAST_TOKEN_LIFE} s",
            "Check this machine's clock, and token lifetime policies for this identity in Entra",
        )


class AsyncIdentity:
    """The same for callers with an event loop (adlfs)."""

    def __init__(self, credential: AsyncTokenCredential, account: str) -> None:
        self._credential = credential
        self._account = account

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Raises `LakeError`."""
        try:
            token = await self._credential.get_token(*scopes, **options)
        except Exception as error:  # noqa: BLE001 - azure-identity lets anything through
            raise _in_words(error, self._account) from None
        remember(token.token)
        return token

    async def close(self) -> None:
        await self._credential.close()

    async def __aenter__(self) -> AsyncIdentity:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _in_words(error: Exception, account: str) -> LakeError:
    told = identity_error(error, f"the storage account {account}")
    return LakeError(told.cause, told.advice)
