"""Public JSON Web Keys: what a server is given to know this client by (RFC 7517, RFC 7638)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pipeline.auth.keys import Algorithm, PrivateKey, PublicKey, check_fits
from pipeline.errors import ConfigError

REQUIRED_MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y")}
"""Of RFC 7638 section 3.2, in the order that the thumbprint wants; all of them public."""

PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


def public_jwk(key: PrivateKey | PublicKey, algorithm: Algorithm, kid: str | None = None) -> dict[str, Any]:
    """The JWK of the key's public half: public members, `kid` (default: thumbprint), `alg`, `use`, `key_ops`.

    Never a private member, also when given the private key (protocol fact 3). ConfigError when key and
    algorithm do not fit.
    """
    check_fits(key, algorithm)
    full = _to_jwk(key)
    members = {name: full[name] for name in REQUIRED_MEMBERS[full["kty"]]}
    return {
        **members,
        "kid": thumbprint(members) if kid is None else kid,
        "alg": algorithm,
        "use": "sig",
        "key_ops": ["verify"],
    }


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The RFC 7638 thumbprint (SHA-256, base64url without padding, 43 characters) of an RSA or EC key."""
    required = REQUIRED_MEMBERS.get(str(jwk.get("kty")))
    if required is None or not all(isinstance(jwk.get(name), str) for name in required):
        raise ConfigError(
            "a JWK lacks what its thumbprint is made of", "It needs kty, and n, e or crv, x, y."
        )
    canonical = json.dumps({name: jwk[name] for name in required}, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(canonical.encode("utf-8")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def jwk_set(*jwks: Mapping[str, Any]) -> dict[str, Any]:
    """A JWK Set of public keys. Raises ConfigError for a private member, or a `kid` missing or used twice."""
    kids = [jwk.get("kid") for jwk in jwks]
    if any(PRIVATE_MEMBERS & jwk.keys() for jwk in jwks):
        raise ConfigError("a JWK with private members must not be published", "Make it with public_jwk.")
    if not all(kids):
        raise ConfigError("a JWK has no kid", "Servers find the key by it (protocol fact 3).")
    if len(set(kids)) != len(kids):
        raise ConfigError("two keys of one JWK Set have the same kid", "Give each key its own, or none.")
    return {"keys": [dict(jwk) for jwk in jwks]}


def _to_jwk(key: PrivateKey | PublicKey) -> dict[str, Any]:
    public = key.public_key() if isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) else key
    if isinstance(public, rsa.RSAPublicKey):
        return RSAAlgorithm.to_jwk(public, as_dict=True)
    return ECAlgorithm.to_jwk(public, as_dict=True)
