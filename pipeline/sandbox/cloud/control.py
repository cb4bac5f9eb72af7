"""The control endpoint: what a test or a demo arranges in the directory, the vault and the faults."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography import x509
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.sandbox.cloud.access_tokens import AccessTokens
from pipeline.sandbox.cloud.client_assertions import Federator
from pipeline.sandbox.cloud.directory import Application, Directory, Federation, Identity, Secret
from pipeline.sandbox.cloud.faults import Faults
from pipeline.sandbox.cloud.journal import Journal
from pipeline.sandbox.cloud.keyvault import KeyVault
from pipeline.sandbox.cloud.vault_access import Assignments
from pipeline.sandbox.cloud.vault_errors import BadParameter, VaultRefusal

_PARTS = ("entra", "identity", "vault")


class Control:
    """`POST /control` with `{"do": NAME, ...}` and the bearer `password`; the answer is what NAME gives."""

    def __init__(
        self,
        password: str,
        directory: Directory,
        tokens: AccessTokens,
        federator: Federator,
        vault: KeyVault,
        assignments: Assignments,
        faults: Faults,
        journal: Journal,
    ) -> None:
        self._password = password
        self._directory = directory
        self._tokens = tokens
        self._federator = federator
        self._vault = vault
        self._assignments = assignments
        self._faults = faults
        self._journal = journal

    async def endpoint(self, request: Request) -> Response:
        """400 with `{"reason"}` for what cannot be done."""
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._password}".encode()):
            return JSONResponse({"reason": "Control is for who started this"}, 403)
        try:
            wanted = msgspec.json.decode(await request.body(), type=dict[str, Any])
            return JSONResponse(await run_in_threadpool(self.do, wanted))
        except (BadParameter, VaultRefusal, KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
            return JSONResponse({"reason": f"{type(error).__name__}: {error}"}, 400)

    def do(self, wanted: dict[str, Any]) -> Any:
        """One request; ValueError, TypeError, KeyError or BadParameter where it makes no sense."""
        arguments = dict(wanted)
        action = self._actions().get(arguments.pop("do", ""))
        if action is None:
            raise ValueError(f"`do` must be one of {sorted(self._actions())}")
        return action(**arguments)

    def _actions(self) -> dict[str, Callable[..., Any]]:
        return {
            "register_application": self._register_application,
            "forget_application": self._forget_application,
            "expire_secret": self._expire_secret,
            "allow_resource": self._allow_resource,
            "assign_identity": self._assign_identity,
            "federated_token": self._federated_token,
            "allow_vault": self._allow_vault,
            "vault_secret": self._vault.secrets.put,
            "vault_key": self._vault.keys.make,
            "fail": self._fail,
            "roll_token_key": self._tokens.roll,
            "revoke_tokens": self._tokens.revoke,
            "requests": self._journal.entries,
        }

    def _register_application(
        self,
        client_id: str | None = None,
        object_id: str | None = None,
        secret: str | None = None,
        secret_seconds: float | None = None,
        certificate_pem: str | None = None,
        federated: Any = None,
        roles: dict[str, list[str]] | None = None,
        vault_roles: list[str] | None = None,
    ) -> dict[str, str]:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode()) if certificate_pem else None
        federation = self._federation(federated)
        application = self._directory.add_application(client_id, object_id)
        if secret is not None:
            until = None if secret_seconds is None else time.time() + secret_seconds
            application.secrets.append(Secret(secret, until))
        if certificate is not None:
            application.certificates.append(certificate)
        if federation is not None:
            application.federations.append(federation)
        self._directory.grant(application, roles or {})
        if vault_roles is not None:
            self._assignments.assign(application.object_id, vault_roles)
        return {"client_id": application.client_id, "object_id": application.object_id}

    def _federation(self, federated: Any) -> Federation | None:
        if not federated:
            return None
        if federated is True:
            return Federation(self._federator.issuer, self._federator.subject)
        return Federation(**federated)

    def _known(self, client_id: str) -> Application:
        application = self._directory.application(client_id)
        if application is None:
            raise ValueError(f"No application {client_id} is registered")
        return application

    def _forget_application(self, client_id: str) -> None:
        del self._directory.applications[self._known(client_id).client_id.lower()]

    def _expire_secret(self, client_id: str) -> None:
        for secret in self._known(client_id).secrets:
            secret.until = 0.0

    def _allow_resource(self, audience: str) -> None:
        self._directory.allow_resource(audience)

    def _assign_identity(
        self,
        client_id: str | None = None,
        object_id: str | None = None,
        resource_id: str | None = None,
        system: bool = True,
        roles: dict[str, list[str]] | None = None,
        vault_roles: list[str] | None = None,
    ) -> dict[str, str]:
        application = Directory().add_application(client_id, object_id)
        identity = Identity(
            application.client_id, application.object_id, system=system, resource_id=resource_id
        )
        if system:
            self._directory.identities = [one for one in self._directory.identities if not one.system]
        self._directory.identities.append(identity)
        self._directory.grant(identity, roles or {})
        self._assignments.assign(identity.object_id, vault_roles or [])
        return {"client_id": identity.client_id, "object_id": identity.object_id}

    def _federated_token(self, seconds: float, claims: dict[str, Any]) -> str:
        return self._federator.token(claims, seconds)

    def _allow_vault(self, object_id: str, roles: list[str]) -> None:
        self._assignments.assign(object_id, roles)

    def _fail(self, on: str, count: int, status: int, retry_after: float | None, path: str) -> None:
        if on not in _PARTS:
            raise ValueError(f"`on` must be one of {_PARTS}")
        if not 400 <= status <= 599:
            raise ValueError("status must be from 400 to 599")
        shown = "" if retry_after is None else f"{retry_after:g}"
        self._faults.plan(on, count, status, shown, path)
