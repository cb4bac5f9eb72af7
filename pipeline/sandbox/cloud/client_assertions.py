"""Client assertions at Entra: signed by a registered certificate, or the token of a trusted issuer."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from pipeline.sandbox.cloud.aadsts import EntraRefusal
from pipeline.sandbox.cloud.directory import Application

_SKEW = 300
_NOT_REGISTERED = (
    "The certificate with identifier used to sign the client assertion is not registered on application. "
)


class Federator:
    """An issuer outside Azure, such as a Kubernetes cluster, whose key Entra can fetch: this one."""

    subject = "system:serviceaccount:exports:nightly"

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self._kid = uuid.uuid4().hex
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, claims: dict[str, Any], seconds: float) -> str:
        """A token with these claims over the usual ones."""
        now = int(time.time())
        whole = {
            "iss": self.issuer,
            "sub": self.subject,
            "aud": ["api://AzureADTokenExchange"],
            "iat": now,
            "nbf": now,
            "exp": now + int(seconds),
            **claims,
        }
        return jwt.encode(whole, self._key, algorithm="RS256", headers={"kid": self._kid})

    def signed(self, token: str) -> bool:
        """Whether the signature is of this issuer's key."""
        try:
            jwt.decode(token, self._key.public_key(), algorithms=["RS256"], options=_ONLY_SIGNATURE)
        except jwt.PyJWTError:
            return False
        return True


_CLAIM_CHECKS = ("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub")
_ONLY_SIGNATURE: Any = dict.fromkeys(_CLAIM_CHECKS, False)


def check_assertion(
    assertion: str, application: Application, endpoints: set[str], federator: Federator
) -> str:
    """How it proves the application: "certificate" or "federated". EntraRefusal where it does not.

    `endpoints` are the audiences that a certificate's assertion may name.
    """
    try:
        header = jwt.get_unverified_header(assertion)
        claims = jwt.decode(assertion, options={"verify_signature": False})
    except jwt.PyJWTError:
        raise EntraRefusal(50027, "JWT token is invalid or malformed.") from None
    if str(claims.get("iss", "")).lower() == application.client_id.lower():
        _check_certificate(assertion, header, claims, application, endpoints)
        return "certificate"
    _check_federation(assertion, claims, application, federator)
    return "federated"


def client_of(assertion: str) -> str | None:
    """The `sub` of an assertion that comes without `client_id`."""
    try:
        subject = jwt.decode(assertion, options={"verify_signature": False}).get("sub")
    except jwt.PyJWTError:
        return None
    return subject if isinstance(subject, str) else None


def _check_certificate(
    assertion: str,
    header: dict[str, Any],
    claims: dict[str, Any],
    application: Application,
    endpoints: set[str],
) -> None:
    if header.get("alg") not in {"RS256", "PS256"}:
        raise EntraRefusal(50027, "JWT token is invalid or malformed. The algorithm must be RS256 or PS256.")
    thumbprint = header.get("x5t#S256") or header.get("x5t") or header.get("kid")
    if not isinstance(thumbprint, str):
        raise EntraRefusal(50027, "Invalid JWT token. No certificate thumbprint specified in token header.")
    certificate = _registered(header, application)
    if certificate is None:
        raise EntraRefusal(
            700027,
            _NOT_REGISTERED + f"[Reason - The key was not found., Thumbprint of key used by client: "
            f"'{_shown(thumbprint)}', Please visit the Azure Portal, Graph Explorer or directly use MS "
            f"Graph to see configured keys for app Id '{application.client_id}'.]",
        )
    if certificate.not_valid_after_utc.timestamp() <= time.time():
        raise EntraRefusal(700027, _NOT_REGISTERED + "[Reason - The key used is expired.]")
    try:
        jwt.decode(
            assertion,
            certificate.public_key(),  # type: ignore[arg-type]
            algorithms=[header["alg"]],
            options=_ONLY_SIGNATURE,
        )
    except jwt.PyJWTError:
        raise EntraRefusal(
            700027,
            "Client assertion contains an invalid signature. [Reason - The provided signature value did not "
            "match the expected signature value.]",
        ) from None
    if str(claims.get("sub", "")).lower() != application.client_id.lower():
        raise EntraRefusal(
            700021, "Client assertion application identifier doesn't match 'client_id' parameter."
        )
    if claims.get("aud") not in endpoints:
        raise EntraRefusal(
            700023,
            f"Client assertion audience claim does not match Realm issuer. Expected {sorted(endpoints)}.",
        )
    _check_time(claims)


def _registered(header: dict[str, Any], application: Application) -> x509.Certificate | None:
    for certificate in application.certificates:
        der = certificate.public_bytes(Encoding.DER)
        sha1 = hashlib.sha1(der, usedforsecurity=False).digest()
        wanted = {
            "x5t#S256": hashlib.sha256(der).digest(),
            "x5t": sha1,
            "kid": sha1,
        }
        named = [name for name in ("x5t#S256", "x5t", "kid") if name in header]
        # Every thumbprint that is given must fit; `kid` counts only where no x5t is there.
        checked = [name for name in named if name != "kid"] or named
        if checked and all(_bytes(header[name]) == wanted[name] for name in checked):
            return certificate
    return None


def _bytes(thumbprint: object) -> bytes:
    text = str(thumbprint)
    try:
        if len(text) == 40:
            return bytes.fromhex(text)
        return base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
    except ValueError:
        return b""


def _shown(thumbprint: str) -> str:
    return _bytes(thumbprint).hex().upper()


def _check_federation(
    assertion: str, claims: dict[str, Any], application: Application, federator: Federator
) -> None:
    issuer, subject = claims.get("iss"), claims.get("sub")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if not application.federations:
        raise EntraRefusal(
            70025,
            f"The client '{application.client_id}' has no configured federated identity credentials.",
        )
    differing = [
        (one.issuer != issuer, one.audience not in audiences, one.subject != subject)
        for one in application.federations
    ]
    best = min(differing, key=sum)
    advice = "https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
    if sum(best) > 1:
        raise EntraRefusal(
            70021,
            "No matching federated identity record found for presented assertion. "
            f"Assertion Issuer: '{issuer}'. Assertion Subject: '{subject}'. "
            f"Assertion Audience: '{audiences[0]}'. {advice}",
        )
    for code, name, value, differs in zip(
        (700211, 700212, 700213),
        ("issuer", "audience", "subject"),
        (issuer, audiences[0], subject),
        best,
        strict=True,
    ):
        if differs:
            raise EntraRefusal(
                code,
                f"No matching federated identity record found for presented assertion {name} '{value}'. "
                "Check your federated identity credential Subject, Audience and Issuer against the presented "
                f"assertion. {advice}",
            )
    if not federator.signed(assertion):
        raise EntraRefusal(
            700027, "Client assertion contains an invalid signature. [Reason - The key was not found.]"
        )
    _check_time(claims)


def _check_time(claims: dict[str, Any]) -> None:
    now = time.time()
    expires, begins = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(expires, int | float) or not isinstance(begins, int | float):
        raise EntraRefusal(50027, "JWT token is invalid or malformed. exp or nbf is not a number.")
    if expires <= now - _SKEW or begins > now + _SKEW or expires > now + 86400 + _SKEW:
        raise EntraRefusal(
            700024,
            f"Client assertion is not within its valid time range. Current time: {_iso(now)}, assertion "
            f"valid from {_iso(float(begins))}, expiry time of assertion {_iso(float(expires))}.",
        )


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
