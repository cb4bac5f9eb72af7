"""Key Vault's data plane: the challenge, who may do what, and the way to each operation."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.sandbox.cloud.access_tokens import AccessTokens, Bearer, TokenRefused
from pipeline.sandbox.cloud.directory import VAULT
from pipeline.sandbox.cloud.journal import note
from pipeline.sandbox.cloud.vault_access import Assignments
from pipeline.sandbox.cloud.vault_errors import BadParameter, VaultRefusal, refusal_response, service_headers
from pipeline.sandbox.cloud.vault_keys import Keys
from pipeline.sandbox.cloud.vault_secrets import Secrets
from pipeline.sandbox.cloud.vault_shelf import Shelf, check_name

_API_VERSION = re.compile(r"2016-10-01|7\.[0-6](-preview(\.\d)?)?|202[5-9]-\d\d-01(-preview)?")

Operation = Callable[[Request], Awaitable[dict[str, Any] | None]]
_Known = tuple[str, str, str, Operation]
"""Method, path, data action that it needs, and what does it."""


class KeyVault:
    """One vault at `url` (no final slash), of the tenant at `authority`."""

    def __init__(
        self, url: str, authority: str, tenant: str, tokens: AccessTokens, assignments: Assignments
    ) -> None:
        self._challenge = f'Bearer authorization="{authority}/{tenant}", resource="{VAULT}"'
        self._tokens = tokens
        self._assignments = assignments
        self.secrets = Secrets(url)
        self.keys = Keys(url)

    def routes(self) -> list[Route]:
        """Every operation; a path with an empty version means the newest."""
        secrets, keys = self.secrets, self.keys
        value, update = "secrets/getSecret/action", "secrets/update/action"
        known: list[_Known] = [
            *_common(secrets, "secrets/readMetadata/action"),
            ("PUT", "/secrets/{name}", "secrets/setSecret/action", secrets.set),
            *(("GET", path, value, secrets.get) for path in _versioned("/secrets/{name}")),
            *(("PATCH", path, update, secrets.update) for path in _versioned("/secrets/{name}")[1:]),
            *_common(keys, "keys/read"),
            ("POST", "/keys/{name}/create", "keys/create/action", keys.create),
            ("POST", "/keys/{name}/rotate", "keys/rotate/action", keys.rotate),
            *(("GET", path, "keys/read", keys.get) for path in _versioned("/keys/{name}")),
            *(("PATCH", path, "keys/update/action", keys.update) for path in _versioned("/keys/{name}")[1:]),
            ("POST", "/keys/{name}/{version}/sign", "keys/sign/action", keys.sign),
            ("POST", "/keys/{name}//sign", "keys/sign/action", keys.sign),
            ("POST", "/keys/{name}/{version}/verify", "keys/verify/action", keys.verify),
            ("POST", "/keys/{name}//verify", "keys/verify/action", keys.verify),
        ]
        by_path: dict[str, dict[str, tuple[str, Operation]]] = {}
        for method, path, action, operation in known:
            by_path.setdefault(path, {})[method] = (action, operation)
        return [
            Route(path, self._endpoint(methods), methods=list(methods)) for path, methods in by_path.items()
        ]

    def _endpoint(
        self, methods: dict[str, tuple[str, Operation]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                action, operation = methods["GET" if request.method == "HEAD" else request.method]
                bearer = self._authenticate(request)
                _check_request(request)
                self._authorize(bearer, action, request.url.path)
                done = await operation(request)
            except TokenRefused as refused:
                refusal = VaultRefusal(401, "Unauthorized", str(refused))
                return refusal_response(refusal, {"WWW-Authenticate": self._challenge})
            except BadParameter as bad:
                return refusal_response(VaultRefusal(400, "BadParameter", str(bad)))
            except VaultRefusal as refusal:
                return refusal_response(refusal)
            if done is None:
                return Response(status_code=204, headers=service_headers())
            return JSONResponse(done, headers=service_headers())

        return answer

    def _authenticate(self, request: Request) -> Bearer:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenRefused("AKV10000: Request is missing a Bearer or PoP token.")
        bearer = self._tokens.verify(token, VAULT)
        note(request.scope, principal=bearer.application_id)
        return bearer

    def _authorize(self, bearer: Bearer, action: str, path: str) -> None:
        if self._assignments.allows(bearer.object_id, action):
            return
        vault = "/subscriptions/0/resourcegroups/sandbox/providers/microsoft.keyvault/vaults/sandbox"
        raise VaultRefusal(
            403,
            "Forbidden",
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny "
            "assignments or role definitions were changed recently, please observe propagation time.\r\n"
            f"Caller: appid={bearer.application_id};oid={bearer.object_id};iss={bearer.issuer}\r\n"
            f"Action: 'Microsoft.KeyVault/vaults/{action}'\r\nResource: '{vault}{path.rstrip('/')}'\r\n"
            "Assignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: null \r\n"
            "Vault: sandbox;location=westeurope\r\n",
            "ForbiddenByRbac",
        )


def _versioned(path: str) -> list[str]:
    return [path, path + "/", path + "/{version}"]


def _common(shelf: Shelf[Any], read: str) -> list[_Known]:
    things = shelf.kind + "s"
    deleted = f"/deleted{things}"
    return [
        ("GET", f"/{things}", read, shelf.list_all),
        ("GET", f"/{things}/{{name}}/versions", read, shelf.list_versions),
        ("DELETE", f"/{things}/{{name}}", f"{things}/delete", shelf.delete),
        ("GET", f"{deleted}/{{name}}", read, shelf.get_deleted),
        ("POST", f"{deleted}/{{name}}/recover", f"{things}/recover/action", shelf.recover),
        ("DELETE", f"{deleted}/{{name}}", f"{things}/purge/action", shelf.purge),
    ]


def _check_request(request: Request) -> None:
    version = request.query_params.get("api-version")
    if not version:
        raise BadParameter("api-version must be specified")
    if not _API_VERSION.fullmatch(version):
        raise BadParameter(
            f"The specified version ({version}) is not recognized. Consider using the latest supported "
            "version (2026-04-01)."
        )
    if "name" in request.path_params:
        check_name(request.path_params["name"])
