"""The client assertion: a JWT, used once, that proves that the client holds its key (protocol fact 6)."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from jwt import PyJWS
from jwt.algorithms import Algorithm as JwsAlgorithm

from pipeline.auth.signers import Signer
from pipeline.errors import ConfigError

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
    headers = {"kid": signer.kid, "typ": "JWT"} | ({} if jku is None else {"jku": jku})
    jws = PyJWS(algorithms=[])
    jws.register_algorithm(signer.algorithm, _SignerAlgorithm(signer))
    payload = json.dumps(claims, separators=(",", ":")).encode("utf-8")
    return jws.encode(payload, key=b"", algorithm=signer.algorithm, headers=headers)


class _SignerAlgorithm(JwsAlgorithm):
    """PyJWT's algorithm interface over a signer, so that the key can live where PyJWT cannot reach it."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def prepare_key(self, key: Any) -> Any:
        return key

    def sign(self, msg: bytes, key: Any) -> bytes:  # noqa: ARG002 - the interface's
        return self._signer.sign(msg)

    def verify(self, msg: bytes, key: Any, sig: bytes) -> NoReturn:
        raise NotImplementedError("a client only signs")

    @staticmethod
    def to_jwk(key_obj: Any, as_dict: bool = False) -> NoReturn:
        raise NotImplementedError("see pipeline.auth.jwk")

    @staticmethod
    def from_jwk(jwk: Any) -> NoReturn:
        raise NotImplementedError("a client only signs")
