"""Access tokens as Entra makes them (v1.0 claims, RS256 with `kid`), and the keys that verify them."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID


class TokenRefused(Exception):
    """A bearer token is not one of ours, or no longer; the text is safe to send back."""


@dataclass(frozen=True)
class Bearer:
    """Who a good token belongs to."""

    object_id: str
    application_id: str
    issuer: str


@dataclass(frozen=True)
class _SigningKey:
    kid: str
    private: rsa.RSAPrivateKey
    certificate: bytes


class AccessTokens:
    """Issues and verifies the tokens of one tenant. `seconds` is their life."""

    def __init__(self, tenant: str, authority: str, seconds: int) -> None:
        self._tenant = tenant
        self._authority = authority
        self.seconds = seconds
        self.issuer = f"https://sts.windows.net/{tenant}/"
        self._keys = [_new_key()]
        self._revoked_before = 0.0
        self._issued: dict[str, float] = {}

    def issue(
        self, audience: str, object_id: str, application_id: str, roles: list[str], *, appidacr: str
    ) -> tuple[str, int]:
        """A token and its `exp` (seconds since 1970). `appidacr`: "1" by secret, "2" by assertion."""
        now = int(time.time())
        expires = now + self.seconds
        identifier = secrets.token_urlsafe(16)
        claims: dict[str, Any] = {
            "aud": audience,
            "iss": self.issuer,
            "iat": now,
            "nbf": now,
            "exp": expires,
            "aio": secrets.token_urlsafe(24),
            "appid": application_id,
            "appidacr": appidacr,
            "idp": self.issuer,
            "idtyp": "app",
            "oid": object_id,
            "sub": object_id,
            "tid": self._tenant,
            "uti": identifier,
            "ver": "1.0",
        }
        if roles:
            claims["roles"] = roles
        key = self._keys[-1]
        token = jwt.encode(claims, key.private, algorithm="RS256", headers={"kid": key.kid, "x5t": key.kid})
        self._issued[identifier] = time.monotonic()
        return token, expires

    def roll(self) -> str:
        """Sign with a new key from now on; the old ones stay published. Returns the new kid."""
        self._keys.append(_new_key())
        return self._keys[-1].kid

    def revoke(self) -> None:
        """What was issued until now is refused by `verify`, as after a revocation of the sign-ins."""
        self._revoked_before = time.monotonic()

    def verify(self, token: str, audience: str) -> Bearer:
        """Whose token it is. TokenRefused with Key Vault's codes unless everything about it is good."""
        try:
            header = jwt.get_unverified_header(token)
            key = next((key for key in self._keys if key.kid == header.get("kid")), None)
            if key is None or header.get("alg") != "RS256":
                raise TokenRefused("AKV10046: Unable to resolve the key used for signature validation.")
            claims = jwt.decode(
                token,
                key.private.public_key(),
                algorithms=["RS256"],
                options={"verify_aud": False, "require": ["exp", "nbf", "aud", "iss", "oid", "uti"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("[TokenExpired] Error validating token: 'S2S12086'.") from None
        except jwt.InvalidSignatureError:
            raise TokenRefused("[BearerReadAccessTokenFailed] Error validating token: 'S2S12005'.") from None
        except jwt.PyJWTError:
            raise TokenRefused("AKV10001: The bearer token is not a valid JWT.") from None
        if claims["iss"] != self.issuer:
            raise TokenRefused(f"AKV10032: Invalid issuer. Expected one of {self.issuer}.")
        if claims["aud"] != audience:
            raise TokenRefused(f"AKV10022: Invalid audience. Expected {audience}, found: {claims['aud']}.")
        if self._issued.get(claims["uti"], -1.0) <= self._revoked_before:
            raise TokenRefused("[TokenRevoked] Error validating token: 'S2S12087'.")
        return Bearer(claims["oid"], claims["appid"], claims["iss"])

    def key_set(self) -> dict[str, Any]:
        """The JWK Set of every key that signed since the start."""
        return {"keys": [self._public(key) for key in self._keys]}

    def _public(self, key: _SigningKey) -> dict[str, Any]:
        numbers = key.private.public_key().public_numbers()
        return {
            "kty": "RSA",
            "use": "sig",
            "kid": key.kid,
            "x5t": key.kid,
            "n": base64url(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")),
            "e": base64url(numbers.e.to_bytes(3, "big")),
            "x5c": [base64.b64encode(key.certificate).decode()],
            "issuer": f"{self._authority}/{self._tenant}/v2.0",
        }


def base64url(data: bytes) -> str:
    """Without padding, as JOSE and Key Vault write it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _new_key() -> _SigningKey:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "accounts.accesscontrol.windows.net")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(uuid.uuid4().int >> 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
        .sign(private, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    # Entra's kid is the certificate's SHA-1 thumbprint; it names the key and protects nothing.
    return _SigningKey(
        base64url(hashlib.sha1(certificate, usedforsecurity=False).digest()), private, certificate
    )
