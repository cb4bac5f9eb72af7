"""The three applications of the cloud, put together around one directory."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.sandbox.cloud import identity_endpoint, vault_errors
from pipeline.sandbox.cloud.aadsts import EntraRefusal, error_response
from pipeline.sandbox.cloud.access_tokens import AccessTokens
from pipeline.sandbox.cloud.client_assertions import Federator
from pipeline.sandbox.cloud.control import Control
from pipeline.sandbox.cloud.directory import Directory
from pipeline.sandbox.cloud.entra import Entra
from pipeline.sandbox.cloud.faults import Answer, Faults
from pipeline.sandbox.cloud.identity_endpoint import IdentityEndpoint
from pipeline.sandbox.cloud.journal import Journal
from pipeline.sandbox.cloud.keyvault import KeyVault
from pipeline.sandbox.cloud.options import Options
from pipeline.sandbox.cloud.vault_access import Assignments


@dataclass(frozen=True)
class Addresses:
    """Where the cloud answers; no URL ends with a slash."""

    authority: str
    vault: str
    identity: str


@dataclass(frozen=True)
class Cloud:
    """ASGI applications: `entra` (with control) and `vault` for TLS, `identity` for plain http."""

    entra: ASGIApp
    vault: ASGIApp
    identity: ASGIApp
    identity_header: str
    federated_issuer: str


def build_cloud(options: Options, addresses: Addresses, password: str) -> Cloud:
    """`password` opens the control endpoint. ValueError for a setup file that cannot be carried out."""
    directory, faults, assignments = Directory(), Faults(), Assignments()
    tokens = AccessTokens(options.tenant, addresses.authority, options.token_seconds)
    federator = Federator(addresses.authority + "/federation/")
    journal = Journal(options.access_log)
    entra = Entra(addresses.authority, options.tenant, directory, tokens, federator)
    identity = IdentityEndpoint(options.tenant, directory, tokens)
    vault = KeyVault(addresses.vault, addresses.authority, options.tenant, tokens, assignments)
    control = Control(password, directory, tokens, federator, vault, assignments, faults, journal)
    if options.setup is not None:
        for wanted in msgspec.json.decode(options.setup.read_bytes(), type=list[dict[str, object]]):
            control.do(wanted)
    identity_app = Starlette(
        routes=[
            Route("/msi/token", identity.app_service),
            Route("/metadata/identity/oauth2/token", identity.imds),
        ]
    )
    entra_app = Starlette(routes=[Route("/control", control.endpoint, methods=["POST"]), *entra.routes()])
    vault_app = Starlette(routes=vault.routes())

    def troubled(request: Request, status: int, retry_after: str) -> Response:
        refusal = EntraRefusal(90033, "A transient error has occurred. Please try again.")
        return error_response(request, refusal, addresses.authority, status=status, retry_after=retry_after)

    def whole(app: Starlette, on: str, answer: Answer) -> ASGIApp:
        # A path with a final slash is another path here: no redirect may carry a bearer anywhere.
        app.router.redirect_slashes = False
        return journal.wrap(faults.wrap(app, on, answer), on)

    machine = whole(identity_app, "identity", identity_endpoint.fault_answer)
    return Cloud(
        entra=_with_identity(whole(entra_app, "entra", troubled), machine),
        vault=whole(vault_app, "vault", vault_errors.fault_answer),
        identity=machine,
        identity_header=identity.header,
        federated_issuer=federator.issuer,
    )


def _with_identity(entra: ASGIApp, identity: ASGIApp) -> ASGIApp:
    """Entra's port answers for the machine too, over TLS."""

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope.get("path", "")
        chosen = identity if asked.startswith(("/msi/", "/metadata/")) else entra
        await chosen(scope, receive, send)

    return either
