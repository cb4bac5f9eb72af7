"""Access tokens that are signed JWTs: handing them out, and judging those that come."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request

from pipeline.sandbox.assertions import AssertionRefused, read_keys
from pipeline.sandbox.outcomes import Refusal
from pipeline.sandbox.scopes import Scopes

Claims = dict[str, Any]
EVERYTHING = Scopes("system/*.read", frozenset({"*"}))


class Issuer:
    """Signs access tokens (RS256) with a key of its own."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._kid = secrets.token_hex(8)

    def issue(self, claims: Claims, seconds: int) -> str:
        """A token of those claims that lives so long."""
        now = int(time.time())
        times = {"iat": now, "nbf": now, "exp": now + seconds, "jti": str(uuid.uuid4())}
        return jwt.encode({**claims, **times}, self._key, "RS256", {"kid": self._kid})

    def keys(self) -> list[Claims]:
        """The public key, as a JWK."""
        return [
            {**jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True), "kid": self._kid}
        ]


class Bearers:
    """Judges bearer tokens: signature by one of the key sets, times, audience, issuer.

    `sources` are asked in turn for the key a token names. What a token may read is for `allow` to say.
    """

    def __init__(
        self,
        sources: list[Callable[[], list[Claims]]],
        audience: str,
        issuer: str | None,
        allow: Callable[[Request, Claims], Scopes],
    ) -> None:
        self._sources = sources
        self._audience = audience
        self._issuer = issuer
        self._allow = allow
        self._known: dict[str, Claims] = {}
        self._seen: set[bytes] = set()
        self._revoked: set[bytes] = set()
        self.requests = 0
        """Token requests so far; the token endpoint counts them, where there is one."""

    def authorize(self, request: Request) -> Scopes:
        """What the bearer of this request may read; Refusal 401 for a bad token, 403 for a weak one."""
        return self._allow(request, self.claims(request))

    def claims(self, request: Request) -> Claims:
        """The claims of a good token; Refusal 401 otherwise."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized("A bearer token is required", "")
        digest = hashlib.sha256(token.encode()).digest()
        if digest in self._revoked:
            raise _unauthorized("The token was revoked")
        claims = self._judge(token)
        self._seen.add(digest)
        return claims

    def revoke_all(self) -> None:
        """Refuse every token that came so far."""
        self._revoked |= self._seen

    def _judge(self, token: str) -> Claims:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != "RS256":
                raise _unauthorized("The token is not signed with RS256")
            key = jwt.PyJWK(self._key_of(str(header.get("kid"))), "RS256")
            return jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": ["aud", "iss", "exp"], "strict_aud": True},
            )
        except jwt.InvalidAudienceError:
            raise _unauthorized("The audience of the token is another one") from None
        except jwt.InvalidIssuerError:
            raise _unauthorized("The issuer of the token is another one") from None
        except jwt.ExpiredSignatureError:
            raise _unauthorized("The token has expired") from None
        except jwt.PyJWTError:
            raise _unauthorized("The token is invalid") from None

    def _key_of(self, kid: str) -> Claims:
        if kid not in self._known:
            for source in self._sources:
                try:
                    self._known |= {str(key.get("kid")): key for key in source()}
                except AssertionRefused:
                    raise Refusal(503, "transient", "The keys of the token's issuer cannot be read") from None
        if kid not in self._known:
            raise _unauthorized("The token is signed with an unknown key")
        return self._known[kid]


def keys_from(source: str) -> Callable[[], list[Claims]]:
    """The JWK Set in a file or at a URL, as a source of keys."""
    return lambda: read_keys(source)


def needs_role(role: str) -> Callable[[Request, Claims], Scopes]:
    """Everything, to those whose token has the role; empty: to everyone."""

    def allow(_request: Request, claims: Claims) -> Scopes:
        if role and role not in claims.get("roles", []):
            raise Refusal(403, "forbidden", "Authorization failed")
        return EVERYTHING

    return allow


def _unauthorized(sentence: str, error: str = ', error="invalid_token"') -> Refusal:
    return Refusal(401, "login", sentence, {"WWW-Authenticate": f'Bearer realm="sandbox"{error}'})
