"""Doing it at a box: the PUTs of `register --apply`, with an administrator's credential, to its origin."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from pipeline.auth.origins import origin, printable, require_secure
from pipeline.bulkdata.exchange import translated
from pipeline.bulkdata.outcome import describe, read_json
from pipeline.errors import AuthError, ConfigError, ServerRefused, Unreachable
from pipeline.redaction import HIDDEN, remember
from pipeline.registration.steps import Request

_KEY_MEMBERS = ("jwks", "jwks_uri")
_JSON = "application/json"


@dataclass(frozen=True)
class Done:
    """What was done about one resource, and the last answer's status."""

    what: str
    """`Client/nightly`."""
    outcome: Literal["created", "replaced", "unchanged"]
    http_status: int


def administrator(credential: bytes) -> httpx.Auth:
    """`user:password` is sent as Basic, anything else as a bearer token, which cannot hold a colon.

    Raises `ConfigError` for one that is empty or cannot be sent.
    """
    text = credential.decode("utf-8", "replace").strip()
    if not text or not text.isascii() or any(each.isspace() for each in text):
        raise ConfigError(
            "the administrator's credential is empty or cannot be sent",
            "--admin-token names a file or variable that holds a token, or user:password",
        )
    user, colon, password = text.partition(":")
    remember(password if colon else text, lasting=True)
    return httpx.BasicAuth(user, password) if colon else _Bearer(text)


def apply(
    http: httpx.Client,
    requests: Sequence[Request],
    admin: httpx.Auth,
    *,
    replace: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Done]:
    """Looks at what is there, then sends what is missing or differs. Safe to run again.

    A resource of another kind, or a Client of another tenant, under the same id is not overwritten unless
    `replace`; nothing is sent then.
    `tell` is given a line for every answer. Raises `ConfigError`, `AuthError`, `ServerRefused`,
    `Unreachable`.
    """
    box = _Box(http, admin, origin(requests[0].url), tell)
    found = [box.look(each) for each in requests]
    if not replace:
        for request, (_, there) in zip(requests, found, strict=True):
            _refuse_another_kind(request, there)
    return [box.put(each, *there) for each, there in zip(requests, found, strict=True)]


class _Bearer(httpx.Auth):
    """Unlike a header of the client, it is sent with these requests only, and shows nothing in a repr."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


class _Box:
    def __init__(
        self, http: httpx.Client, admin: httpx.Auth, its_origin: str, tell: Callable[[str], None]
    ) -> None:
        self._http = http
        self._admin = admin
        self._origin = its_origin
        self._tell = tell

    def look(self, request: Request) -> tuple[int, Mapping[str, Any] | None]:
        """Status and resource; None where there is none."""
        answer = self._send("GET", request.url, None)
        if answer.status_code in (404, 410):
            return answer.status_code, None
        there = read_json(answer.content)
        if answer.status_code != 200 or not isinstance(there, dict):
            raise _refusal(answer)
        return answer.status_code, there

    def put(self, request: Request, status: int, there: Mapping[str, Any] | None) -> Done:
        what = f"{request.body['resourceType']}/{request.body['id']}"
        if there is not None and _is_already(request.body, there):
            return Done(what, "unchanged", status)
        answer = self._send("PUT", request.url, request.body)
        if answer.status_code not in (200, 201):
            raise _refusal(answer)
        return Done(what, "created" if there is None else "replaced", answer.status_code)

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        require_secure(url)
        if origin(url) != self._origin:
            raise ConfigError(
                f"{printable(url)} is not at {self._origin}", "The credential goes to the box only"
            )
        with translated(url):
            answer = self._http.request(
                method,
                url,
                json=body,
                headers={"Accept": _JSON},
                auth=self._admin,
                follow_redirects=False,
            )
        self._tell(f"{method} {printable(url)}: HTTP {answer.status_code}")
        return answer


def _refuse_another_kind(request: Request, there: Mapping[str, Any] | None) -> None:
    """A Client of another type, or a policy that does more than let our Client in, is somebody else's."""
    if there is None:
        return
    ours = request.body
    what = f"{ours['resourceType']} '{ours['id']}'"
    if ours["resourceType"] == "Client" and there.get("type") != ours["type"]:
        raise ConfigError(
            f"there is a {what} already, of another type than {ours['type']}; nothing was sent",
            "Choose another auth.client_id, or overwrite it with --replace",
        )
    if ours["resourceType"] == "Client" and _tenant(there) not in (None, _tenant(ours)):
        raise ConfigError(
            f"there is a {what} already, of another tenant; nothing was sent",
            "Choose another auth.client_id or correct tenant, or overwrite it with --replace",
        )
    if ours["resourceType"] == "AccessPolicy" and not (
        there.get("engine") == ours["engine"] and _links(there) <= _links(ours)
    ):
        raise ConfigError(
            f"there is an {what} already, with other rules; nothing was sent",
            "See that it lets our Client in, or overwrite it with --replace",
        )


def _tenant(client: Mapping[str, Any]) -> str | None:
    """The tenant that a Client is linked to, in either form."""
    meta = client.get("meta")
    if not isinstance(meta, Mapping):
        return None
    newer, older = meta.get("tenant"), meta.get("_tenant")
    found = newer.get("id") if isinstance(newer, Mapping) else older
    return found if isinstance(found, str) else None


def _links(policy: Mapping[str, Any]) -> set[str]:
    links = policy.get("link")
    return {
        str(each.get("reference") or f"{each.get('resourceType')}/{each.get('id')}")
        for each in (links if isinstance(links, list) else [])
        if isinstance(each, dict)
    }


def _is_already(ours: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether all that we would send is there, and no other key beside it."""
    return _within(ours, there) and all((name in ours) == (name in there) for name in _KEY_MEMBERS)


def _within(ours: object, there: object) -> bool:
    if isinstance(ours, Mapping):
        return isinstance(there, Mapping) and all(_within(ours[name], there.get(name)) for name in ours)
    return ours == there


def _refusal(answer: httpx.Response) -> ServerRefused | Unreachable:
    status = answer.status_code
    what = f"{printable(answer.request.url)} answered HTTP {status}"
    if status in (401, 403):
        return AuthError(
            what, "The administrator's credential (--admin-token) is not accepted there, or may not"
        )
    said = _without_credential(describe(answer.content), answer.request)
    if status in (408, 425, 429) or status >= 500:
        return Unreachable(f"{what}: {said}", "The box is busy or in trouble; try again later")
    if answer.is_redirect:
        return ServerRefused(
            f"{what}, a redirect, which is not followed", "Set fhir_url to the box's own address"
        )
    return ServerRefused(f"{what}: {said}", "Ask the box's operator what it means")


def _without_credential(said: str, request: httpx.Request) -> str:
    """A box that shows what it was sent must not put the administrator's credential into our message."""
    sent = request.headers.get("Authorization", "").partition(" ")[2]
    secrets = [sent]
    if request.headers.get("Authorization", "").startswith("Basic "):
        secrets.append(base64.b64decode(sent).decode().partition(":")[2])
    for secret in filter(None, secrets):
        said = said.replace(secret, HIDDEN)
    return said
