"""Key Vault's refusals, in the body that its clients read."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class BadParameter(Exception):
    """A request that Key Vault answers with 400; the text is its message."""


@dataclass
class VaultRefusal(Exception):
    """Any other refusal; `inner` is `innererror.code`."""

    status: int
    code: str
    message: str
    inner: str | None = None


def not_found(kind: str, name: str, version: str) -> VaultRefusal:
    """404 for a `kind` (secret, key) or a version of it that is not there."""
    named = f"{name}/{version}" if version else name
    return VaultRefusal(
        404,
        f"{kind.capitalize()}NotFound",
        f"A {kind} with (name/id) {named} was not found in this key vault. If you recently deleted this "
        f"{kind} you may be able to recover it using the correct recovery command. For help resolving this "
        "issue, please see https://go.microsoft.com/fwlink/?linkid=2125182",
    )


def in_the_way(kind: str, name: str) -> VaultRefusal:
    """409: the name belongs to something that was deleted and not purged."""
    return VaultRefusal(
        409,
        "Conflict",
        f"{kind.capitalize()} {name} is currently in a deleted but recoverable state, and its name cannot be "
        f"reused; in this state, the {kind} can only be recovered or purged.",
        "ObjectIsDeletedButRecoverable",
    )


def not_usable(operation: str, kind: str, why: str, inner: str) -> VaultRefusal:
    """403 for a disabled secret, or a key outside its time."""
    return VaultRefusal(403, "Forbidden", f"Operation {operation} is not allowed on {why} {kind}.", inner)


def refusal_response(refusal: VaultRefusal, headers: dict[str, str] | None = None) -> Response:
    """`{"error": {"code", "message", "innererror"}}`."""
    error: dict[str, Any] = {"code": refusal.code, "message": refusal.message}
    if refusal.inner:
        error["innererror"] = {"code": refusal.inner}
    return JSONResponse({"error": error}, refusal.status, {**service_headers(), **(headers or {})})


def fault_answer(_: Request, status: int, retry_after: str) -> Response:
    """Throttling (429), the vault's firewall (403) and failures (5xx) as the vault words them."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    if status == 429:
        refusal = VaultRefusal(
            429,
            "Throttled",
            "Request was not processed because too many requests were received. "
            "Reason: VaultRequestTypeLimitReached",
        )
    elif status == 403:
        refusal = VaultRefusal(
            403,
            "Forbidden",
            "Client address is not authorized and caller is not a trusted service.\r\n"
            "Client address: 127.0.0.1\r\nVault: sandbox;location=westeurope",
            "ForbiddenByFirewall",
        )
    else:
        refusal = VaultRefusal(status, "InternalServerError", "An internal error occurred.")
    return refusal_response(refusal, headers)


def service_headers() -> dict[str, str]:
    """What every answer of the vault carries."""
    return {
        "Cache-Control": "no-cache",
        "x-ms-keyvault-region": "westeurope",
        "x-ms-keyvault-service-version": "2.1.0.1",
        "x-ms-request-id": str(uuid.uuid4()),
    }
