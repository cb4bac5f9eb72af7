"""Where a FHIR server's token endpoint is (protocol fact 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from pipeline.auth.explain import json_object, unreachable
from pipeline.auth.origins import is_loopback, origin, printable, require_secure
from pipeline.auth.short_answers import ask
from pipeline.errors import AuthError, Unreachable
from pipeline.retry_after import retry_after

WELL_KNOWN = "/.well-known/smart-configuration"
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"

_PASSING = frozenset({408, 425, 429, 502, 503, 504})
_MOST_REDIRECTS = 3


@dataclass(frozen=True)
class SmartConfiguration:
    """What the server says about signing in; None where it says nothing, which is not the same as empty."""

    token_endpoint: str
    said_by: Literal["smart-configuration", "capability-statement"]
    issuer: str | None = None
    jwks_uri: str | None = None
    scopes_supported: tuple[str, ...] | None = None
    grant_types_supported: tuple[str, ...] | None = None
    auth_methods_supported: tuple[str, ...] | None = None
    signing_algorithms_supported: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] | None = None


def discover(http: httpx.Client, fhir_url: str) -> SmartConfiguration:
    """Ask the SMART configuration below the FHIR base, then the CapabilityStatement; without any token.

    Raises Unreachable when there is no usable answer, AuthError when none names a token endpoint, or one that
    is not https (http is for loopback servers only), ConfigError for a FHIR URL that is not https either.
    """
    require_secure(fhir_url)
    base = fhir_url.rstrip("/")
    well_known, first_answer = _get(http, base + WELL_KNOWN, "application/json")
    endpoint = None if well_known is None else _text(well_known.get("token_endpoint"))
    if well_known is not None and endpoint is not None:
        _check_endpoint(endpoint, base)
        return _configuration(well_known, endpoint)
    statement, second_answer = _get(http, f"{base}/metadata", "application/fhir+json")
    endpoint = None if statement is None else _oauth_uri(statement)
    if endpoint is not None:
        _check_endpoint(endpoint, base)
        return SmartConfiguration(endpoint, "capability-statement")
    raise _nowhere(base, first_answer, statement, second_answer)


def _configuration(said: Mapping[str, Any], endpoint: str) -> SmartConfiguration:
    return SmartConfiguration(
        token_endpoint=endpoint,
        said_by="smart-configuration",
        issuer=_text(said.get("issuer")),
        jwks_uri=_text(said.get("jwks_uri")),
        scopes_supported=_texts(said.get("scopes_supported")),
        grant_types_supported=_texts(said.get("grant_types_supported")),
        auth_methods_supported=_texts(said.get("token_endpoint_auth_methods_supported")),
        signing_algorithms_supported=_texts(said.get("token_endpoint_auth_signing_alg_values_supported")),
        capabilities=_texts(said.get("capabilities")),
    )


def _get(http: httpx.Client, url: str, accept: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object at `url`, or None and in words what came instead."""
    failed: Unreachable | None = None
    for _ in range(_MOST_REDIRECTS + 1):
        try:
            answer = ask(http, "GET", url, headers={"Accept": accept})
        except httpx.RequestError as error:
            cause, advice = unreachable(error)
            failed = Unreachable(f"{printable(url)} cannot be reached: {cause}", advice)
        if failed is not None:  # outside the except block: its error would carry the request along
            raise failed
        if not answer.is_redirect:
            return _read(answer, url)
        target = _same_origin_target(answer)
        if target is None:
            return None, "a redirect to another server"
        url = target
    return None, "too many redirects"


def _read(answer: httpx.Response, url: str) -> tuple[dict[str, Any] | None, str]:
    if answer.status_code in _PASSING:
        raise Unreachable(
            f"{printable(url)} answered HTTP {answer.status_code}",
            "The server is busy or restarting; try again later.",
            retry_after(answer.headers),
        )
    if not answer.is_success:
        return None, f"HTTP {answer.status_code}"
    body = json_object(answer)
    return body, f"HTTP {answer.status_code}" if body is not None else "something that is not JSON"


def _same_origin_target(answer: httpx.Response) -> str | None:
    here = answer.request.url
    try:
        target = here.join(answer.headers["Location"])
        return str(target) if origin(target, error=AuthError) == origin(here) else None
    except (AuthError, httpx.InvalidURL, ValueError):
        return None


def _oauth_uri(statement: Mapping[str, Any]) -> str | None:
    """`rest[].security.extension[oauth-uris].extension[token].valueUri`."""
    for rest in _objects(statement.get("rest")):
        for security in _objects([rest.get("security")]):
            for uris in _objects(security.get("extension")):
                if uris.get("url") != OAUTH_URIS:
                    continue
                for uri in _objects(uris.get("extension")):
                    found = _text(uri.get("valueUri")) or _text(uri.get("valueUrl"))
                    if uri.get("url") == "token" and found is not None:
                        return found
    return None


def _check_endpoint(endpoint: str, base: str) -> None:
    require_secure(endpoint, error=AuthError)
    if is_loopback(endpoint) and not is_loopback(base):
        raise AuthError(
            f"{printable(base)} names a token endpoint on this very machine, {printable(endpoint)}",
            "The server is set up behind a proxy that it does not know of: set auth.token_url.",
        )


def _nowhere(base: str, first: str, statement: Mapping[str, Any] | None, second: str) -> AuthError:
    if statement is None:
        return AuthError(
            f"{printable(base)} does not look like a FHIR server: {WELL_KNOWN} gave {first}, "
            f"/metadata gave {second}",
            "Check fhir_url: it is the FHIR base, so that /metadata below it is the CapabilityStatement.",
        )
    named = "without a token endpoint" if first.startswith("HTTP 2") else ""
    return AuthError(
        f"{printable(base)} names no token endpoint: {WELL_KNOWN} gave {first} {named}".rstrip()
        + ", and the CapabilityStatement has no oauth-uris",
        "Set auth.token_url to the one that the server's documentation gives.",
    )


def _objects(value: object) -> Iterable[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else None
