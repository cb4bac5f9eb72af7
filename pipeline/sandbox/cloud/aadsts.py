"""Entra's errors: the AADSTS codes of the public documentation, with their status, `error` and text."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@dataclass
class EntraRefusal(Exception):
    """`message` is the text after the code."""

    code: int
    message: str


_KINDS: dict[int, tuple[int, str]] = {
    50001: (400, "invalid_resource"),
    50027: (400, "invalid_request"),
    70003: (400, "unsupported_grant_type"),
    70011: (400, "invalid_scope"),
    70021: (401, "invalid_client"),
    70025: (401, "invalid_client"),
    90002: (400, "invalid_request"),
    90033: (503, "temporarily_unavailable"),
    500011: (400, "invalid_resource"),
    700016: (400, "unauthorized_client"),
    700021: (401, "invalid_client"),
    700023: (401, "invalid_client"),
    700024: (401, "invalid_client"),
    700027: (401, "invalid_client"),
    700211: (401, "invalid_client"),
    700212: (401, "invalid_client"),
    700213: (401, "invalid_client"),
    900144: (400, "invalid_request"),
    900561: (405, "invalid_request"),
    901002: (400, "invalid_request"),
    1002012: (400, "invalid_scope"),
    7000215: (401, "invalid_client"),
    7000218: (401, "invalid_client"),
    7000222: (401, "invalid_client"),
}


def error_response(
    request: Request,
    refusal: EntraRefusal,
    authority: str,
    *,
    status: int | None = None,
    retry_after: str = "",
) -> Response:
    """The answer in Entra's shape; `status` other than the code's own for throttling."""
    kind_status, error = _KINDS[refusal.code]
    trace = str(uuid.uuid4())
    correlation = request.headers.get("client-request-id") or str(uuid.uuid4())
    timestamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    description = (
        f"AADSTS{refusal.code}: {refusal.message} "
        f"Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}"
    )
    headers = {**no_store(), "x-ms-request-id": trace}
    if retry_after:
        headers["Retry-After"] = retry_after
    return JSONResponse(
        {
            "error": error,
            "error_description": description,
            "error_codes": [refusal.code],
            "timestamp": timestamp,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": f"{authority}/error?code={refusal.code}",
        },
        status or kind_status,
        headers,
    )


def no_store() -> dict[str, str]:
    """The cache headers of every answer that holds a token or an error."""
    return {"Cache-Control": "no-store, no-cache", "Pragma": "no-cache"}
