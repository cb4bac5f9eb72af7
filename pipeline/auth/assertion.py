"""The client assertion: a JWT, used once, that proves that the client holds its key (protocol fact 6)."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from jwt.utils import base64url_encode

from pipeline.auth.signers import Signer
from pipeline.errors import ConfigError
from pipeline.redaction import remember

LIFETIME = timedelta(minutes=4)
"""A minute less than the greatest allowed: clocks differ, and a server may refuse more than five minutes."""

GREATEST_LIFETIME = timedelta(minutes=5)

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def client_assertion(
    signer: Signer,
    *,
    client_id: str,
    audience: str,
    lifetime: timedelta = LIFETIME,
    now: datetime | None = None,
    jku: str | None = None,
) -> str:
    """A signed JWT with `iss` = `sub` = client id, `aud`, `exp` and a `jti` that was never used before.

    `now` is an aware datetime (default: this moment). No `iat` and `nbf`: the specification asks for neither,
    and a server whose clock is behind would refuse them. ConfigError for a lifetime outside 0 to 5 minutes.
    """
    if not timedelta(0) < lifetime <= GREATEST_LIFETIME:
        raise ConfigError("an assertion lives for more than zero and at most five minutes")
    signer = signer.current()
    expires = (datetime.now(UTC) if now is None else now) + lifetime
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "exp": int(expires.timestamp()),
        "jti": secrets.token_urlsafe(24),
    }
    header = {"alg": signer.algorithm, "kid": signer.kid, "typ": "JWT"}
    if jku is not None:
        header["jku"] = jku
    # The compact form of RFC 7515, section 7.1: PyJWT signs only with keys that it can hold itself.
    signed = b".".join(base64url_encode(_json(part)) for part in (header, claims))
    assertion = b".".join((signed, base64url_encode(signer.sign(signed)))).decode("ascii")
    remember(assertion)
    return assertion


def _json(part: dict[str, Any]) -> bytes:
    return json.dumps(part, separators=(",", ":")).encode("utf-8")
