"""Tokens from Entra for an application with a client secret or a certificate (azure-and-aidbox C)."""

from __future__ import annotations

import re
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, quote_plus

import httpx
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.auth.assertion import ASSERTION_TYPE
from pipeline.auth.explain import TokenRequest
from pipeline.auth.origins import origin, require_secure
from pipeline.auth.tokens import EndpointTokenSource
from pipeline.errors import ConfigError
from pipeline.redaction import remember

PUBLIC_AUTHORITY = "https://login.microsoftonline.com"

ASSERTION_SECONDS = 600
"""What Entra recommends at most."""

CLOCKS_DIFFER_SECONDS = 60
"""By which `nbf` lies in the past: a clock a little ahead of Entra's is no reason to be refused."""

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*", re.ASCII)
_NO_TENANTS = frozenset({"common", "organizations", "consumers"})
_AUDIENCE = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://[^\s*]+|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)


class EntraTokenSource(EndpointTokenSource):
    """The client credentials grant at Entra, with either a `client_secret` or a `certificate`.

    `certificate` is a PEM with an RSA private key and its certificate. `audience` is the service's, without
    `/.default` but with its final slash where it has one. `version` v1 is the older endpoint, which takes a
    resource instead of a scope. `clock` gives monotonic seconds and `sleep` waits for some.

    Raises ConfigError for settings that cannot work.
    """

    def __init__(
        self,
        *,
        tenant_id: str,
        client_id: str,
        audience: str,
        client_secret: str | None = None,
        certificate: bytes | None = None,
        authority: str | None = None,
        version: Literal["v1", "v2"] = "v2",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(clock, sleep)
        if version not in ("v1", "v2"):
            raise ConfigError("auth.entra_version is neither v1 nor v2")
        if (client_secret is None) == (certificate is None):
            raise ConfigError("give one of auth.client_secret and auth.certificate")
        if not client_id.strip():
            raise ConfigError(
                "auth.client_id is blank", "It is the Application (client) ID of the app registration."
            )
        require_audience(audience)
        self._client_id = client_id.strip()
        self._audience = audience
        self._version = version
        self._url = _token_url(authority or PUBLIC_AUTHORITY, tenant_id.strip(), version)
        self._secret = None if client_secret is None else _secret(client_secret)
        self._certificate = None if certificate is None else ClientCertificate.from_pem(certificate)

    def __repr__(self) -> str:
        return f"EntraTokenSource(client_id={self._client_id!r}, token_url={self._url!r})"

    @property
    def token_origin(self) -> str:
        return origin(self._url)

    def _prepare(self, http: httpx.Client) -> tuple[TokenRequest, dict[str, str]]:  # noqa: ARG002 - the base's
        form = {"grant_type": "client_credentials", "client_id": self._client_id}
        if self._version == "v2":
            form["scope"] = default_scope(self._audience)
        else:
            form["resource"] = self._audience
        if self._certificate is not None:
            secret = self._certificate.assertion(self._client_id, self._url)
            form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": secret}
        else:
            secret = self._secret or ""
            form["client_secret"] = secret
        asked = TokenRequest(
            token_url=self._url,
            client_id=self._client_id,
            scope=form.get("scope", ""),
            audience=self._audience,
            secrets=_spellings(secret),
            entra=True,
        )
        return asked, form


def default_scope(audience: str) -> str:
    """Entra's scope for all that was granted: `//.default` for an audience that ends in a slash is right."""
    return f"{audience}/.default"


def require_audience(audience: str) -> None:
    """Raise ConfigError unless Entra could know such an audience: a URI, or a client id."""
    if audience.endswith("/.default"):
        raise ConfigError("auth.audience ends in /.default", "Leave that off; it is added.")
    if _AUDIENCE.fullmatch(audience) is None:
        raise ConfigError(
            "auth.audience is not the URI of a service",
            "Give the FHIR service's, such as https://WORKSPACE-NAME.fhir.azurehealthcareapis.com, and no "
            "SMART scope: those never go to Entra.",
        )


@dataclass(frozen=True)
class ClientCertificate:
    """A key and its certificate, with which Entra knows an application."""

    key: rsa.RSAPrivateKey = field(repr=False)
    certificate: x509.Certificate = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes) -> ClientCertificate:
        """From a PEM with both, in any order, with or without the chain. Raises ConfigError."""
        remember(pem, lasting=True)
        key = _key_in(pem)
        public = _public_bytes(key.public_key())
        for certificate in _certificates_in(pem):
            if _public_bytes(certificate.public_key()) == public:
                return cls(key, certificate)
        raise ConfigError(
            "auth.certificate holds a private key, but not the certificate that belongs to it",
            "Put both into one PEM, the certificate being the one uploaded to the app registration.",
        )

    def assertion(self, client_id: str, token_url: str) -> str:
        """A JWT for one token request: PS256, the certificate named by its SHA-256 thumbprint."""
        now = int(time.time())
        claims = {
            "aud": token_url,
            "iss": client_id,
            "sub": client_id,
            "jti": str(uuid.uuid4()),
            "nbf": now - CLOCKS_DIFFER_SECONDS,
            "exp": now + ASSERTION_SECONDS - CLOCKS_DIFFER_SECONDS,
        }
        thumbprint = urlsafe_b64encode(self.certificate.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
        assertion = jwt.encode(claims, self.key, algorithm="PS256", headers={"x5t#S256": thumbprint})
        remember(assertion)
        return assertion


def _token_url(authority: str, tenant: str, version: str) -> str:
    require_secure(authority)
    if _TENANT.fullmatch(tenant) is None or tenant.lower() in _NO_TENANTS:
        raise ConfigError(
            "auth.tenant_id names no tenant", "Give the Directory (tenant) ID, or a domain of the tenant."
        )
    path = "oauth2/v2.0/token" if version == "v2" else "oauth2/token"
    return f"{authority.rstrip('/')}/{tenant}/{path}"


def _secret(value: str) -> str:
    stripped = value.strip()  # a file ends in a newline, a secret does not
    if not stripped:
        raise ConfigError("auth.client_secret is blank", "Store the secret's value, as Entra showed it once.")
    remember(stripped, lasting=True)
    return stripped


def _spellings(secret: str) -> tuple[str, ...]:
    """As it was sent, and as a server may echo it."""
    return tuple(dict.fromkeys((secret, quote_plus(secret), quote(secret, safe=""))))


def _key_in(pem: bytes) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        key = None
        problem = "the private key in auth.certificate is encrypted"
    except ValueError:
        key = None
        problem = "auth.certificate holds no private key that can be read"
    else:
        problem = "the private key in auth.certificate is not RSA, and Entra takes no other"
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(problem, "Give a PEM with the unencrypted RSA private key and its certificate.")
    return key


def _certificates_in(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        return []


def _public_bytes(key: object) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    encode: Callable[..., bytes] | None = getattr(key, "public_bytes", None)
    return b"" if encode is None else encode(encoding, form)
