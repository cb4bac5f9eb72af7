"""Who may sign in at Aidbox and Smartbox: Client and AccessPolicy resources (azure-and-aidbox B)."""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import FHIR_JSON, Refusal, decoded, json_response

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
Resource = dict[str, Any]


class Registry:
    """The two kinds of resources by id; `tenant_form` says where a Client's tenant is looked for."""

    def __init__(self, options: Options) -> None:
        self._admin = _admin_credentials(options.admin_token)
        self._tenant_form = options.tenant_form
        self._kept: dict[str, dict[str, Resource]] = {"Client": {}, "AccessPolicy": {}}
        self.changes = 0
        """How often something was written; what was derived from it is old then."""

    def endpoint(self, kind: str) -> Callable[[Request], Any]:
        """GET, PUT and DELETE of `/{kind}/{id}`, for the administrator."""

        async def answer(request: Request) -> Response:
            self._authorize(request)
            body = await request.body()
            return await run_in_threadpool(self._serve, request, kind, body)

        return answer

    def put(self, kind: str, identifier: str, resource: Resource) -> bool:
        """Keep it; True where it is new. Refusal 422 where it is not as it must be."""
        _check(kind, identifier, resource)
        self.changes += 1
        created = identifier not in self._kept[kind]
        self._kept[kind][identifier] = {**resource, "id": identifier, "resourceType": kind}
        return created

    def client(self, identifier: str) -> Resource | None:
        """The Client with that id, if it is one for bulk exports and active."""
        found = self._kept["Client"].get(identifier)
        usable = found is not None and found.get("type") == "bulk-api-client" and found.get("active") is True
        return found if usable else None

    def is_allowed(self, client: str) -> bool:
        """Whether an AccessPolicy that allows links to that Client."""
        for policy in self._kept["AccessPolicy"].values():
            links = policy.get("link", [])
            if policy.get("engine") == "allow" and any(_links_to(link, client) for link in links):
                return True
        return False

    def tenant_of(self, client: str) -> str | None:
        """The tenant of a Client, in the one form that this server understands."""
        meta = self._kept["Client"].get(client, {}).get("meta", {})
        if self._tenant_form == "meta._tenant":
            return meta.get("_tenant") if isinstance(meta.get("_tenant"), str) else None
        tenant = meta.get("tenant")
        is_reference = isinstance(tenant, dict) and tenant.get("resourceType") == "Tenant"
        return tenant.get("id") if is_reference else None

    def _serve(self, request: Request, kind: str, body: bytes) -> Response:
        identifier = request.path_params["id"]
        if request.method == "PUT":
            resource = decoded(body)
            if not isinstance(resource, dict):
                raise Refusal(422, "structure", "The body must be an object")
            created = self.put(kind, identifier, resource)
            return json_response(self._kept[kind][identifier], 201 if created else 200, FHIR_JSON)
        if identifier not in self._kept[kind]:
            raise Refusal(404, "not-found", f"There is no such {kind}")
        if request.method == "DELETE":
            self.changes += 1
            del self._kept[kind][identifier]
            return Response(status_code=204)
        return json_response(self._kept[kind][identifier], media_type=FHIR_JSON)

    def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not any(hmac.compare_digest(given.encode(), known.encode()) for known in self._admin):
            raise Refusal(401, "login", "This is for the administrator", {"WWW-Authenticate": "Basic"})


def registered_client(options: Options) -> Resource:
    """The Client of `--registered`."""
    key: Resource = {"jwks_uri": options.jwks or ""}
    tenant = (
        {"_tenant": options.tenant}
        if options.tenant_form == "meta._tenant"
        else {"tenant": {"id": options.tenant, "resourceType": "Tenant"}}
    )
    return {
        "type": "bulk-api-client",
        "active": True,
        "grant_types": ["client_credentials"],
        "auth": {
            "client_credentials": {
                "client_assertion_types": [ASSERTION_TYPE],
                "access_token_expiration": 300,
                "token_format": "jwt",
            }
        },
        "scope": options.scope.split(" "),
        **key,
        **({"meta": tenant} if options.stand_in == "smartbox" else {}),
    }


def _admin_credentials(secret: str | None) -> list[str]:
    if not secret:
        return []
    known = [f"Bearer {secret}"]
    if ":" in secret:
        known.append("Basic " + base64.b64encode(secret.encode()).decode())
    return known


def _links_to(link: Any, client: str) -> bool:
    if not isinstance(link, dict):
        return False
    by_id = (link.get("resourceType"), link.get("id")) == ("Client", client)
    return by_id or link.get("reference") == f"Client/{client}"


def _check(kind: str, identifier: str, resource: Resource) -> None:
    if resource.get("id", identifier) != identifier or not _ID.fullmatch(identifier):
        raise Refusal(422, "invalid", "id is not that of the URL")
    if resource.get("resourceType", kind) != kind:
        raise Refusal(422, "invalid", f"resourceType must be {kind}")
    if kind == "AccessPolicy":
        if not isinstance(resource.get("engine"), str) or not isinstance(resource.get("link", []), list):
            raise Refusal(422, "invalid", "An AccessPolicy needs engine; link is a list")
        return
    details = resource.get("auth", {}).get("client_credentials", {})
    lists = (
        resource.get("grant_types"),
        resource.get("scope", []),
        details.get("client_assertion_types", []),
    )
    if not all(isinstance(each, list) and all(isinstance(item, str) for item in each) for each in lists):
        raise Refusal(422, "invalid", "grant_types, scope and client_assertion_types are lists of strings")
    if details.get("token_format", "jwt") != "jwt":
        raise Refusal(422, "invalid", "token_format must be jwt")
    if not isinstance(details.get("access_token_expiration", 300), int):
        raise Refusal(422, "invalid", "access_token_expiration is a whole number of seconds")
