"""The managed-identity endpoints of a machine: App Service's and a virtual machine's (IMDS)."""

from __future__ import annotations

import hmac
import secrets
import time
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.sandbox.cloud.access_tokens import AccessTokens
from pipeline.sandbox.cloud.directory import Directory, Identity
from pipeline.sandbox.cloud.journal import note

_APP_SERVICE_VERSIONS = frozenset({"2019-08-01"})
_IMDS_VERSIONS = frozenset({"2018-02-01", "2019-08-01", "2020-06-01", "2021-02-01"})


class IdentityEndpoint:
    """Tokens for the identities in the directory; `header` is what IDENTITY_HEADER holds."""

    def __init__(self, tenant: str, directory: Directory, tokens: AccessTokens) -> None:
        self._tenant = tenant
        self._directory = directory
        self._tokens = tokens
        self.header = secrets.token_hex(16).upper()

    async def app_service(self, request: Request) -> Response:
        """`GET /msi/token` with X-IDENTITY-HEADER, as App Service and Functions have it."""
        query = request.query_params
        given = request.headers.get("x-identity-header", "")
        if not hmac.compare_digest(given.encode(), self.header.encode()):
            return _app_service_error(
                401, "The X-IDENTITY-HEADER header is missing or not that of this site."
            )
        if query.get("api-version") not in _APP_SERVICE_VERSIONS:
            return _app_service_error(400, "The api-version is missing or not supported.")
        resource = query.get("resource")
        if not resource:
            return _app_service_error(400, "The resource parameter is missing.")
        identity = self._identity(request, "mi_res_id")
        if identity is None:
            return _app_service_error(
                400,
                "No User Assigned or Delegated Managed Identity found for specified "
                "ClientId/ResourceId/PrincipalId.",
            )
        if not self._directory.knows_resource(resource):
            # msal notes it too: a wrong resource ends up as a vague 500 here.
            return _app_service_error(500, "An unexpected error occured while fetching the AAD Token.")
        token, expires = self._issue(request, identity, resource)
        return JSONResponse(
            {
                "access_token": token,
                "expires_on": str(expires),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": identity.client_id.upper(),
            }
        )

    async def imds(self, request: Request) -> Response:
        """`GET /metadata/identity/oauth2/token` with Metadata: true, as on a virtual machine."""
        query = request.query_params
        if request.headers.get("metadata", "").lower() != "true":
            return _imds_error(400, "bad_request_102", "Required metadata header not specified")
        if "x-forwarded-for" in request.headers:
            return _imds_error(400, "invalid_request", "Requests that were forwarded are refused")
        if query.get("api-version") not in _IMDS_VERSIONS:
            return _imds_error(400, "invalid_request", "Required query variable 'api-version' is missing")
        resource = query.get("resource")
        if not resource:
            return _imds_error(400, "invalid_request", "Required query variable 'resource' is missing")
        identity = self._identity(request, "msi_res_id")
        if (
            identity is None
            and len(self._directory.identities) == 1
            and not self._named(request, "msi_res_id")
        ):
            # A machine with one user-assigned identity takes it where none is named.
            identity = self._directory.identities[0]
        if identity is None:
            return _imds_error(400, "invalid_request", "Identity not found")
        if not self._directory.knows_resource(resource):
            return _imds_error(
                400,
                "invalid_resource",
                f"AADSTS500011: The resource principal named {resource} was not found in the tenant named "
                f"{self._tenant}. This can happen if the application has not been installed by the "
                "administrator of the tenant or consented to by any user in the tenant. You might have "
                f"sent your authentication request to the wrong tenant. Trace ID: {uuid.uuid4()} "
                f"Correlation ID: {uuid.uuid4()} Timestamp: "
                f"{time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}",
            )
        token, expires = self._issue(request, identity, resource)
        seconds = self._tokens.seconds
        return JSONResponse(
            {
                "access_token": token,
                "client_id": identity.client_id,
                "expires_in": str(seconds),
                "expires_on": str(expires),
                "ext_expires_in": str(seconds),
                "not_before": str(expires - seconds - 300),
                "resource": resource,
                "token_type": "Bearer",
            }
        )

    def _identity(self, request: Request, resource_name: str) -> Identity | None:
        query = request.query_params
        object_id = query.get("object_id") or query.get("principal_id")
        return self._directory.identity(
            query.get("client_id"), object_id, query.get(resource_name) or query.get("mi_res_id")
        )

    def _named(self, request: Request, resource_name: str) -> bool:
        names = ("client_id", "object_id", "principal_id", "mi_res_id", resource_name)
        return any(name in request.query_params for name in names)

    def _issue(self, request: Request, identity: Identity, resource: str) -> tuple[str, int]:
        note(request.scope, principal=identity.client_id, grant="managed_identity", resource=resource)
        roles = self._directory.roles_of(identity, resource)
        return self._tokens.issue(resource, identity.object_id, identity.client_id, roles, appidacr="2")


def _app_service_error(status: int, message: str) -> Response:
    content = {"statusCode": status, "message": message, "correlationId": str(uuid.uuid4())}
    return JSONResponse(content, status)


def _imds_error(status: int, error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, status)


def fault_answer(request: Request, status: int, retry_after: str) -> Response:
    """Throttling and failures in the shape of the endpoint that was asked."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    if request.url.path.startswith("/metadata"):
        content: dict[str, object] = {"error": "too_many_requests" if status == 429 else "unknown"}
        content["error_description"] = "Please retry the request later."
    else:
        content = {"statusCode": status, "message": "Please retry the request later."}
    return JSONResponse(content, status, headers)
