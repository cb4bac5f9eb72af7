"""What a download needs of a storage account that wants a credential of its own (azure-and-aidbox D).

Only the shape: who the account is and how its requests are signed is known elsewhere (`pipeline.azure`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import httpx


class StorageAccess(Protocol):
    """The one storage account whose files are read with a credential of its own."""

    @property
    def account(self) -> str:
        """Its name, for messages."""

    @property
    def origin(self) -> str:
        """`scheme://host:port`: the FHIR server's token never goes there."""

    def covers(self, url: str) -> bool:
        """Whether this is the plain address of a file in the account, and nothing that only looks so."""

    def prepare(self, url: str) -> tuple[str, Mapping[str, str]]:
        """URL and headers of one request for a file; to be asked for each request anew.

        Raises DownloadRefused for a URL that is not covered, AuthError and Unreachable without a credential.
        """

    def advice(self, status: int, error_code: str) -> str:
        """What to do about a refusal; `error_code` is the account's own word, empty where it says none."""


def is_signed(url: str) -> bool:
    """Whether the URL carries a signature of its own: then nothing is added to it."""
    try:
        return "sig" in {name.lower() for name in httpx.URL(url).params}
    except httpx.InvalidURL:
        return False
