"""What a token says about itself, where it can be read: for words to people, never for a decision.

Nothing is verified: that is the server's to do, and a token is opaque to its client.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.redaction import clean


@dataclass(frozen=True)
class TokenClaims:
    """The few claims that explain a refusal; empty for a token that is no JWT."""

    audience: str | None = None
    roles: tuple[str, ...] = ()


def claims_of(token: str) -> TokenClaims:
    """`aud` and `roles` of a JWT, cleaned."""
    parts = token.split(".")
    if len(parts) != 3:
        return TokenClaims()
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return TokenClaims()
    if not isinstance(claims, dict):
        return TokenClaims()
    audience, roles = claims.get("aud"), claims.get("roles")
    return TokenClaims(
        clean(audience, 120) if isinstance(audience, str) else None,
        tuple(clean(each, 60) for each in roles if isinstance(each, str)) if isinstance(roles, list) else (),
    )


def uncovered(scope: str | None, types: Iterable[str]) -> list[str]:
    """The resource types that a granted scope leaves out (azure-and-aidbox B: the wildcard expands to US Core
    types only); none where no SMART scope was told.
    """
    granted = re.findall(r"\bsystem/(\*|[A-Za-z]+)\.", scope or "")
    if not granted or "*" in granted:
        return []
    return [each for each in types if each not in granted]
