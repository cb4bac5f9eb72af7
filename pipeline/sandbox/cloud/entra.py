"""Entra's endpoints of one tenant: both token endpoints, discovery, and the keys of the access tokens."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.sandbox.cloud.aadsts import EntraRefusal, error_response, no_store
from pipeline.sandbox.cloud.access_tokens import AccessTokens
from pipeline.sandbox.cloud.client_assertions import Federator, check_assertion, client_of
from pipeline.sandbox.cloud.directory import Application, Directory
from pipeline.sandbox.cloud.journal import note

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_SUFFIX = "/.default"
_SCOPE = re.compile(r"[^\s\"\\]+")


class Entra:
    """The tenant `tenant` at `authority` (no final slash)."""

    def __init__(
        self, authority: str, tenant: str, directory: Directory, tokens: AccessTokens, federator: Federator
    ) -> None:
        self._authority = authority
        self._tenant = tenant
        self._base = f"{authority}/{tenant}"
        self._directory = directory
        self._tokens = tokens
        self._federator = federator
        self._endpoints = {
            f"{self._base}/oauth2/v2.0/token",
            f"{self._base}/oauth2/token",
            f"{self._base}/v2.0",
            f"{self._base}/",
        }

    def routes(self) -> list[Route]:
        """All of it; what does not take GET says so in its own words."""
        both = ["GET", "POST"]
        return [
            Route("/{tenant}/oauth2/v2.0/token", self.token_v2, methods=both),
            Route("/{tenant}/oauth2/token", self.token_v1, methods=both),
            Route("/{tenant}/v2.0/.well-known/openid-configuration", self.configuration),
            Route("/{tenant}/.well-known/openid-configuration", self.configuration),
            Route("/{tenant}/discovery/v2.0/keys", self.keys),
            Route("/{tenant}/discovery/keys", self.keys),
        ]

    async def token_v2(self, request: Request) -> Response:
        """`POST {tenant}/oauth2/v2.0/token`: client credentials with a `scope`."""
        return await self._token(request, version=2)

    async def token_v1(self, request: Request) -> Response:
        """`POST {tenant}/oauth2/token`: client credentials with a `resource`; numbers are strings there."""
        return await self._token(request, version=1)

    async def configuration(self, request: Request) -> Response:
        """`GET {tenant}/v2.0/.well-known/openid-configuration`, which msal reads before anything else."""
        try:
            self._check_tenant(request)
        except EntraRefusal as refusal:
            return error_response(request, refusal, self._authority)
        return JSONResponse(
            {
                "token_endpoint": f"{self._base}/oauth2/v2.0/token",
                "token_endpoint_auth_methods_supported": [
                    "client_secret_post",
                    "private_key_jwt",
                    "client_secret_basic",
                ],
                "jwks_uri": f"{self._base}/discovery/v2.0/keys",
                "response_modes_supported": ["query", "fragment", "form_post"],
                "subject_types_supported": ["pairwise"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
                "scopes_supported": ["openid", "profile", "email", "offline_access"],
                "issuer": f"{self._base}/v2.0",
                "request_uri_parameter_supported": False,
                "authorization_endpoint": f"{self._base}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{self._base}/oauth2/v2.0/devicecode",
                "end_session_endpoint": f"{self._base}/oauth2/v2.0/logout",
                "tenant_region_scope": "EU",
            }
        )

    async def keys(self, request: Request) -> Response:
        """`GET {tenant}/discovery/v2.0/keys`."""
        try:
            self._check_tenant(request)
        except EntraRefusal as refusal:
            return error_response(request, refusal, self._authority)
        return JSONResponse(self._tokens.key_set(), headers={"Cache-Control": "max-age=86400, private"})

    async def _token(self, request: Request, version: int) -> Response:
        try:
            return JSONResponse(await self._granted(request, version), headers=no_store())
        except EntraRefusal as refusal:
            return error_response(request, refusal, self._authority)

    async def _granted(self, request: Request, version: int) -> dict[str, Any]:
        self._check_tenant(request)
        if request.method != "POST":
            raise EntraRefusal(900561, "The endpoint only accepts POST requests. Received a GET request.")
        form = await _form(request)
        note(request.scope, version=version, grant=form.get("grant_type"), principal=form.get("client_id"))
        if _required(form, "grant_type") != "client_credentials":
            raise EntraRefusal(70003, f"The app requested an unsupported grant type '{form['grant_type']}'.")
        audience = _audience_v2(form) if version == 2 else _required(form, "resource")
        note(request.scope, resource=audience)
        client_id = form.get("client_id") or client_of(form.get("client_assertion", ""))
        if not client_id:
            _required(form, "client_id")
        application = self._application(client_id or "")
        proof = self._prove(form, application)
        note(request.scope, principal=application.client_id, proof=proof)
        if not self._directory.knows_resource(audience):
            raise self._unknown_resource(audience, version)
        roles = self._directory.roles_of(application, audience)
        token, expires = self._tokens.issue(
            audience,
            application.object_id,
            application.client_id,
            roles,
            appidacr="1" if proof == "secret" else "2",
        )
        seconds = self._tokens.seconds
        if version == 2:
            return {
                "token_type": "Bearer",
                "expires_in": seconds,
                "ext_expires_in": seconds,
                "access_token": token,
            }
        return {
            "token_type": "Bearer",
            "expires_in": str(seconds),
            "ext_expires_in": str(seconds),
            "expires_on": str(expires),
            "not_before": str(expires - seconds - 300),
            "resource": audience,
            "access_token": token,
        }

    def _check_tenant(self, request: Request) -> None:
        asked = request.path_params["tenant"]
        if asked.lower() != self._tenant.lower():
            raise EntraRefusal(
                90002,
                f"Tenant '{asked}' not found. Check to make sure you have the correct tenant ID and are "
                "signing into the correct cloud. Check with your subscription administrator, this may "
                "happen if there are no active subscriptions for the tenant.",
            )

    def _application(self, client_id: str) -> Application:
        application = self._directory.application(client_id)
        if application is None:
            raise EntraRefusal(
                700016,
                f"Application with identifier '{client_id}' was not found in the directory '{self._tenant}'. "
                "This can happen if the application has not been installed by the administrator of the "
                "tenant or consented to by any user in the tenant. You may have sent your authentication "
                "request to the wrong tenant.",
            )
        return application

    def _prove(self, form: dict[str, str], application: Application) -> str:
        if form.get("client_assertion"):
            if form.get("client_assertion_type") != _ASSERTION_TYPE:
                _required(form, "client_assertion_type")
                raise EntraRefusal(
                    50027, "JWT token is invalid or malformed. Unsupported client_assertion_type."
                )
            return check_assertion(form["client_assertion"], application, self._endpoints, self._federator)
        if not form.get("client_secret"):
            raise EntraRefusal(
                7000218,
                "The request body must contain the following parameter: 'client_assertion' or "
                "'client_secret'.",
            )
        secret = application.find_secret(form["client_secret"])
        if secret is None:
            raise EntraRefusal(
                7000215,
                "Invalid client secret provided. Ensure the secret being sent in the request is the client "
                "secret value, not the client secret ID, for a secret added to app "
                f"'{application.client_id}'.",
            )
        if secret.expired():
            raise EntraRefusal(
                7000222,
                f"The provided client secret keys for app '{application.client_id}' are expired. Visit the "
                "Azure portal to create new keys for your app: https://aka.ms/NewClientSecret, or consider "
                "using certificate credentials for added security: https://aka.ms/certCreds.",
            )
        return "secret"

    def _unknown_resource(self, audience: str, version: int) -> EntraRefusal:
        if version == 1:
            return EntraRefusal(
                50001, f"The application named {audience} was not found in the tenant named {self._tenant}."
            )
        return EntraRefusal(
            500011,
            f"The resource principal named {audience} was not found in the tenant named {self._tenant}. "
            "This can happen if the application has not been installed by the administrator of the tenant "
            "or consented to by any user in the tenant. You might have sent your authentication request to "
            "the wrong tenant.",
        )


async def _form(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    body = (await request.body()).decode("utf-8", "replace")
    if content_type != "application/x-www-form-urlencoded":
        return {}
    return dict(parse_qsl(body, keep_blank_values=True))


def _required(form: dict[str, str], name: str) -> str:
    if not form.get(name):
        raise EntraRefusal(900144, f"The request body must contain the following parameter: '{name}'.")
    return form[name]


def _audience_v2(form: dict[str, str]) -> str:
    if form.get("resource"):
        raise EntraRefusal(901002, "The 'resource' request parameter is not supported.")
    scope = _required(form, "scope").strip()
    asked = scope.split(" ")
    if len(asked) > 1 and all(one.endswith(_SUFFIX) for one in asked):
        raise EntraRefusal(
            70011,
            "The provided request must include a 'scope' input parameter. The provided value for the input "
            f"parameter 'scope' is not valid. The scope {scope} is not valid. .default scope can't be "
            "combined with resource-specific scopes.",
        )
    if not _SCOPE.fullmatch(scope) or scope in {".default", _SUFFIX}:
        raise EntraRefusal(
            70011,
            "The provided request must include a 'scope' input parameter. The provided value for the input "
            f"parameter 'scope' is not valid. The scope {scope} is not valid.",
        )
    if not scope.endswith(_SUFFIX):
        raise EntraRefusal(
            1002012,
            f"The provided value for scope {scope} is not valid. Client credential flows must have a scope "
            "value with /.default suffixed to the resource identifier (application ID URI).",
        )
    return scope.removesuffix(_SUFFIX)
