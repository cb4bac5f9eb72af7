"""Where a server is reached, and what a client must know of it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Addresses:
    """The two origins of one process, without final slashes; the second plays the host of a storage
    account."""

    base_url: str
    storage_url: str


@dataclass(frozen=True, slots=True)
class Served:
    """An application with its FHIR base, its token endpoint and the audience that a sign-in must name.

    `token_url` None: tokens come from somewhere else.
    """

    app: ASGIApp
    fhir_url: str
    token_url: str | None
    audience: str
