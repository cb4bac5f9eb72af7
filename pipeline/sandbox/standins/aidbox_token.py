"""Signing in at Aidbox and Smartbox (azure-and-aidbox B)."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qsl

import jwt
import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.assertions import AssertionRefused, AssertionVerifier, decode_keys, read_keys
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import Refusal, json_response
from pipeline.sandbox.scopes import Scopes, parse_scopes
from pipeline.sandbox.standins.bearer import Bearers, Claims, Issuer
from pipeline.sandbox.standins.registry import ASSERTION_TYPE, Registry, Resource

US_CORE = (
    "AllergyIntolerance", "CarePlan", "CareTeam", "Condition", "Device", "DiagnosticReport",
    "DocumentReference", "Encounter", "Goal", "Immunization", "Location", "Medication", "MedicationRequest",
    "Observation", "Organization", "Patient", "Practitioner", "PractitionerRole", "Procedure",
)  # fmt: skip
"""What `system/*.read` means there; any other type must be named."""

_FIELDS = ("grant_type", "scope", "client_assertion_type", "client_assertion")


class AidboxTokens:
    """`POST /auth/token`, JSON or form; the keys of a client are remembered for a while."""

    def __init__(self, options: Options, registry: Registry, token_url: str) -> None:
        self._options = options
        self._registry = registry
        self._token_url = token_url
        self._issuer = Issuer()
        self._verifiers: dict[str, tuple[Resource, AssertionVerifier]] = {}
        self.bearers = Bearers([self._issuer.keys], token_url, None, self._allow)

    async def endpoint(self, request: Request) -> Response:
        """A token, or an OAuth error."""
        self.bearers.requests += 1
        fields = _fields(request.headers.get("content-type", ""), await request.body())
        if fields is None:
            return _error(400, "invalid_request", "The body must be JSON or form-encoded")
        missing = [name for name in _FIELDS if not fields.get(name)]
        if missing:
            return _error(400, "invalid_request", "Missing: " + ", ".join(missing))
        if fields["client_assertion_type"] != ASSERTION_TYPE:
            return _error(400, "invalid_request", f"client_assertion_type must be {ASSERTION_TYPE}")
        try:
            name = jwt.decode(fields["client_assertion"], options={"verify_signature": False}).get("iss")
            client = self._registry.client(name) if isinstance(name, str) else None
            if client is None:
                raise AssertionRefused("There is no active client of that id")
            await run_in_threadpool(self._verifier(client).verify, fields["client_assertion"])
        except jwt.PyJWTError:
            return _error(401, "invalid_client", "The assertion is not a JWT")
        except AssertionRefused as error:
            return _error(401, "invalid_client", str(error))
        if fields["grant_type"] not in client["grant_types"] or fields["grant_type"] != "client_credentials":
            return _error(400, "unsupported_grant_type", "The client has no such grant type")
        details = client.get("auth", {}).get("client_credentials", {})
        if ASSERTION_TYPE not in details.get("client_assertion_types", []):
            return _error(401, "unauthorized_client", "The client has no such assertion type")
        granted = _granted(fields["scope"], client.get("scope", []))
        if granted is None:
            return _error(400, "invalid_scope", "The client has no such scope")
        return self._token(client["id"], granted, details)

    def _token(self, client: str, granted: Scopes, details: Resource) -> Response:
        seconds = self._options.token_seconds or details.get("access_token_expiration", 300)
        claims: Claims = {
            "iss": self._token_url,
            "aud": self._token_url,
            "sub": client,
            "scope": granted.text,
        }
        tellings: dict[str, dict[str, Any]] = {
            "number": {"expires_in": seconds},
            "string": {"expires_in": str(seconds)},
            "absent": {},
        }
        content = {
            "token_type": "Bearer",
            **tellings[self._options.expires_in],
            "access_token": self._issuer.issue(claims, seconds),
            "scope": granted.text,
        }
        return json_response(content, headers={"Cache-Control": "no-store"})

    def _allow(self, request: Request, claims: Claims) -> Scopes:
        client = claims["sub"]
        if self._registry.client(client) is None or not self._registry.is_allowed(client):
            raise Refusal(403, "forbidden", "No AccessPolicy allows this")
        if "tenant" in request.path_params and (
            self._registry.tenant_of(client) != request.path_params["tenant"]
        ):
            raise Refusal(403, "forbidden", "The client belongs to another tenant")
        scopes = parse_scopes(claims["scope"])
        if scopes is None:
            raise Refusal(403, "forbidden", "The token has no scope of the system")
        return scopes

    def _verifier(self, client: Resource) -> AssertionVerifier:
        kept = self._verifiers.get(client["id"])
        if kept is None or kept[0] is not client:
            keys = _Keys(client, self._options.jwks_cache_seconds)
            verifier = AssertionVerifier(
                client.get("jwks_uri"), client["id"], self._token_url, algorithms=("RS384",), keys=keys
            )
            self._verifiers[client["id"]] = kept = (client, verifier)
        return kept[1]


class _Keys:
    """The JWK Set of a client, inline or by URL, read again only when it is old."""

    def __init__(self, client: Resource, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._read = float("-inf")
        self._keys: list[Claims] = []

    def __call__(self) -> list[Claims]:
        if time.monotonic() - self._read >= self._seconds:
            inline = self._client.get("jwks")
            if inline is not None:
                # Aidbox's Client holds a list of keys, not a JWK Set.
                keys = inline if isinstance(inline, list) else []
                self._keys = decode_keys(msgspec.json.encode({"keys": keys}))
            else:
                self._keys = read_keys(self._client.get("jwks_uri"))
            self._read = time.monotonic()
        return self._keys


def _fields(content_type: str, body: bytes) -> dict[str, str] | None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    if kind != "application/json":
        return None
    try:
        return msgspec.json.decode(body, type=dict[str, str])
    except msgspec.DecodeError:
        return None


def _granted(asked: str, registered: list[str]) -> Scopes | None:
    """The types of both, wildcards expanded; None for a malformed scope or one that is not registered."""
    wanted, known = parse_scopes(asked), parse_scopes(" ".join(registered))
    if wanted is None or known is None:
        return None
    types, allowed = _expanded(wanted), _expanded(known)
    if not types <= allowed:
        return None
    return Scopes(" ".join(f"system/{name}.read" for name in sorted(types)), frozenset(types))


def _expanded(scopes: Scopes) -> set[str]:
    named = {name for name in scopes.types if name != "*"}
    return named | set(US_CORE) if "*" in scopes.types else named


def _error(status: int, error: str, description: str) -> Response:
    content = {"error": error, "error_description": description}
    return json_response(content, status, headers={"Cache-Control": "no-store"})
