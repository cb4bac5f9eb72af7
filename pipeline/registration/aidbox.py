"""Aidbox: a Client and an AccessPolicy in the box (azure-and-aidbox B)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.bulkdata.profiles import fhir_base, profile_of, token_url
from pipeline.config import Source
from pipeline.errors import ConfigError
from pipeline.registration.shell import compact
from pipeline.registration.steps import JwkSet, Known, Registration, Request, Step

CLIENT_TYPE = "bulk-api-client"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

_INLINE_MEMBERS = ("kid", "kty", "alg", "use", "e", "n")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def box_url(source: Source) -> str:
    """The box itself: the FHIR base without `/fhir` or `/tenant/{tenant}/bulk-api`. Raises `ConfigError`."""
    profile = profile_of(source.profile, source.knobs)
    token = token_url(profile, source.fhir_url, source.tenant)
    if token is None:
        raise ConfigError(
            f"source {source.name}: knobs.token_path is null", "Leave it out: a box has one path"
        )
    return token.removesuffix(profile.token_path or "")


def scope(source: Source) -> str:
    """The scopes, separated by spaces: as configured, else as the profile has them."""
    return source.auth.scope or profile_of(source.profile, source.knobs).scope


def client(source: Source, jwks: JwkSet | None, known: Known) -> dict[str, Any]:
    """The body of the Client. `jwks` is needed where no URL of ours is known.

    Raises `ConfigError` for an id that a resource cannot have, and for keys that Aidbox cannot hold inline.
    """
    return {
        "resourceType": "Client",
        "id": client_id(source),
        "type": CLIENT_TYPE,
        "active": True,
        "grant_types": ["client_credentials"],
        "auth": {
            "client_credentials": {
                "client_assertion_types": [ASSERTION_TYPE],
                "access_token_expiration": 300,
                "token_format": "jwt",
            }
        },
        "scope": scope(source).split(),
        **_keys(source, jwks, known),
    }


def access_policy(source: Source) -> dict[str, Any]:
    """The body of the AccessPolicy: without it a token is given, and every request answered with 403."""
    return {
        "resourceType": "AccessPolicy",
        "id": client_id(source),
        "engine": "allow",
        "link": [{"id": client_id(source), "resourceType": "Client"}],
    }


def client_id(source: Source) -> str:
    """The id of both resources. Raises `ConfigError` where it cannot be one."""
    found = source.auth.client_id or ""
    if _ID.fullmatch(found) is None:
        raise ConfigError(
            f"source {source.name}: auth.client_id {found!r} cannot be the id of a Client",
            "Take letters, digits, - and . only, at most 64",
        )
    return found


def requests(source: Source, bodies: tuple[Mapping[str, Any], ...]) -> tuple[Request, ...]:
    """The PUTs that create or replace these resources."""
    base = box_url(source)
    return tuple(Request("PUT", f"{base}/{body['resourceType']}/{body['id']}", body) for body in bodies)


def registration(source: Source, jwks: JwkSet | None, known: Known) -> Registration:
    """The steps for `aidbox`. Raises `ConfigError`."""
    return Registration(
        source.name,
        source.profile,
        client_id(source),
        (
            client_step(source, (client(source, jwks, known),), known),
            policy_step(source),
        ),
        settings(source),
    )


def client_step(source: Source, bodies: tuple[Mapping[str, Any], ...], known: Known) -> Step:
    """The Client, in one form or in several to choose from."""
    puts = requests(source, bodies)
    notes = ["`--apply --admin-token file:PATH` does both PUTs. $ADMIN_TOKEN is a token of an administrator."]
    if _jwks_url(source, known) is None:
        notes.append(
            "The keys stand in the Client itself: after each rotation they must be put there again. With "
            "--jwks-url the box reads them from where `fhir-export jwks --serve` serves them, and keeps them "
            "for five minutes."
        )
    return Step(
        f"The Client '{client_id(source)}'", tuple(curl(put) for put in puts), puts, notes=tuple(notes)
    )


def policy_step(source: Source) -> Step:
    """The AccessPolicy that lets the Client in."""
    puts = requests(source, (access_policy(source),))
    return Step(
        "The AccessPolicy that lets it in",
        tuple(curl(put) for put in puts),
        puts,
        notes=("Without it the box gives a token, and then answers every request with 403.",),
    )


def settings(source: Source) -> dict[str, str]:
    """What the source must say in exports.yaml."""
    return {
        "fhir_url": fhir_base(profile_of(source.profile, source.knobs), source.fhir_url, source.tenant),
        "auth.client_id": client_id(source),
        "auth.algorithm": source.auth.algorithm,
        "auth.scope": scope(source),
    }


def curl(request: Request) -> str:
    """The request for a shell; the token comes from the environment, not from the command line's text."""
    body = shlex.quote(compact(request.body))
    return (
        f"curl --fail-with-body --silent --show-error --request {request.method} {shlex.quote(request.url)}"
        ' --header "Authorization: Bearer $ADMIN_TOKEN" --header "Content-Type: application/json"'
        f" --data {body}"
    )


def _jwks_url(source: Source, known: Known) -> str | None:
    return known.jwks_url or source.auth.jku


def _keys(source: Source, jwks: JwkSet | None, known: Known) -> dict[str, Any]:
    url = _jwks_url(source, known)
    if url is not None:
        return {"jwks_uri": url}
    keys = list((jwks or {}).get("keys", ()))
    if not keys:
        raise ConfigError(
            f"source {source.name} has no public key to register", "Give --jwks-url, or set auth"
        )
    if any(key.get("kty") != "RSA" for key in keys):
        raise ConfigError(
            f"source {source.name}: a Client holds RSA keys only, not {source.auth.algorithm}",
            "Make a key for RS384 (`fhir-export keys new`); with --jwks-url the box reads any from there",
        )
    return {"jwks": [{name: key[name] for name in _INLINE_MEMBERS if name in key} for key in keys]}
