"""Refusals: an HTTP status with an OperationOutcome that says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FHIR_JSON = "application/fhir+json"


class Refusal(HTTPException):
    """An answer that is no; `code` is from the R4 value set issue-type."""

    def __init__(
        self, status: int, code: str, diagnostics: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, diagnostics, dict(headers) if headers else None)
        self.code = code


def operation_outcome(code: str, diagnostics: str, severity: str = "error") -> dict[str, Any]:
    """An OperationOutcome of one issue."""
    issue = {"severity": severity, "code": code, "diagnostics": diagnostics}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def json_response(
    content: object,
    status: int = 200,
    media_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response of that JSON value; Decimal numbers keep their digits."""
    from pipeline.sandbox.generator.wire import encode

    body = content if isinstance(content, bytes) else encode(content)
    return Response(body, status, headers=headers, media_type=media_type)


def refuse(_request: Request, error: Exception) -> Response:
    """The exception handler for HTTP errors: refusals, and what the router itself refuses."""
    if not isinstance(error, HTTPException):
        raise error
    known = {404: "not-found", 405: "not-supported", 413: "too-long"}
    code = error.code if isinstance(error, Refusal) else known.get(error.status_code, "processing")
    outcome = operation_outcome(code, error.detail)
    return json_response(outcome, error.status_code, FHIR_JSON, error.headers)


def broken(_request: Request, _error: Exception) -> Response:
    """The answer to a fault of the sandbox itself; the traceback goes to standard error."""
    return json_response(operation_outcome("exception", "The sandbox failed"), 500, FHIR_JSON)


def decoded(body: bytes) -> Any:
    """A JSON body; Refusal 400 where it is not JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refusal(400, "structure", "The body is not JSON") from None
