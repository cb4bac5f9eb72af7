"""A caller of the stand-ins made of nothing but httpx and pyjwt: keys, assertions, tokens, an export."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any
from urllib.parse import urljoin

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

KICK = {"Accept": "application/fhir+json", "Prefer": "respond-async"}
POLL = {"Accept": "application/json"}
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NEXT_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
ENTRA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def rsa_jwk(key: rsa.RSAPrivateKey, kid: str, **members: str) -> dict[str, Any]:
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}


EC_JWK = {**jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec", "alg": "ES384"}
JWKS = {"keys": [rsa_jwk(RSA_KEY, "one", alg="RS384"), EC_JWK]}
NEXT_JWKS = {"keys": [rsa_jwk(NEXT_KEY, "two", alg="RS384")]}
ENTRA_JWKS = {"keys": [rsa_jwk(ENTRA_KEY, "entra", use="sig")]}


def assertion(
    audience: str, *, key: Any = RSA_KEY, kid: str = "one", alg: str = "RS384", **changes: Any
) -> str:
    """A client assertion; a claim that is changed to None is left out."""
    claims: dict[str, Any] = {
        "iss": "nightly",
        "sub": "nightly",
        "aud": audience,
        "exp": int(time.time()) + 240,
        "jti": str(uuid.uuid4()),
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, alg, {"kid": kid})


def token_form(signed: str, **changes: str) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "scope": "system/*.read",
        "client_assertion_type": ASSERTION,
        "client_assertion": signed,
        **changes,
    }


def entra_token(audience: str, *, key: Any = ENTRA_KEY, kid: str = "entra", **changes: Any) -> str:
    """An access token as Entra signs it."""
    now = int(time.time())
    claims = {
        "iss": "https://sts.windows.net/3f9a0c52-0000-4000-8000-52b1e7d94c11/",
        "aud": audience,
        "oid": "5b0f6d3e-0000-4000-8000-b8d1f2a4c6e7",
        "roles": ["FHIR Data Exporter"],
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        **changes,
    }
    return jwt.encode(claims, key, "RS256", {"kid": kid})


def caller(fhir_url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=fhir_url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def kick(http: httpx.Client, path: str = "/Group/demo/$export", query: str = "") -> httpx.Response:
    """The query goes out as it is written."""
    base = str(http.base_url).rstrip("/")
    return http.get(f"{base}{path}{'?' + query if query else ''}", headers=KICK)


def where(answer: httpx.Response) -> str:
    """The status URL of an accepted kick-off, resolved as a relative one must be."""
    assert answer.status_code == 202, answer.text
    return urljoin(str(answer.request.url), answer.headers["content-location"])


def poll(http: httpx.Client, status: str) -> httpx.Response:
    for _ in range(300):
        answer = http.get(status, headers=POLL)
        if answer.status_code != 202:
            return answer
        time.sleep(0.05)
    raise AssertionError("the export did not end")


def export(http: httpx.Client, path: str = "/Group/demo/$export", query: str = "") -> dict[str, Any]:
    answer = poll(http, where(kick(http, path, query)))
    assert answer.status_code == 200, answer.text
    manifest: dict[str, Any] = answer.json()
    return manifest


def lines(kind: str, content: bytes) -> list[tuple[str, bytes]]:
    assert content.endswith(b"\n")
    return [(kind, text.removesuffix(b"\r")) for text in content[:-1].split(b"\n")]


def resources(found: list[tuple[str, bytes]]) -> list[str]:
    """Type and id of each line, in order."""
    return sorted(f"{kind}/{json.loads(text)['id']}" for kind, text in found)


def diagnostics(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome"
    text: str = outcome["issue"][0]["diagnostics"]
    return text
