"""File URLs that are capabilities: a signature and an end, at the host of a storage account."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.accesslog import note

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Signatures:
    """Signs paths below `origin` for `seconds`, and judges the requests that come for them."""

    def __init__(self, origin: str, seconds: float) -> None:
        self._origin = origin
        self._seconds = seconds
        self._secret = secrets.token_bytes(32)

    def url(self, path: str) -> str:
        """The URL of that path (`/...`), good from now on."""
        end = f"{time.time() + self._seconds:.3f}"
        return f"{self._origin}{path}?se={end}&sig={self._sign(path, end)}"

    def problem(self, request: Request) -> Response | None:
        """What is wrong with the request, as a storage account says it; None where it is good.

        A bearer on a signed URL is refused and noted: it reached a host that it is not for.
        """
        if "authorization" in request.headers:
            note(request, "bearer on a signed URL")
            return storage_error(400, "InvalidAuthenticationInfo")
        if str(request.base_url).rstrip("/") != self._origin:
            return storage_error(404, "ResourceNotFound")
        end, signature = (request.query_params.get(name, "") for name in ("se", "sig"))
        if not hmac.compare_digest(signature.encode(), self._sign(request.url.path, end).encode()):
            return storage_error(403, "AuthenticationFailed")
        return storage_error(403, "AuthenticationFailed") if float(end) < time.time() else None

    def _sign(self, path: str, end: str) -> str:
        return hmac.new(self._secret, f"{path}\n{end}".encode(), hashlib.sha256).hexdigest()


def storage_error(status: int, code: str) -> Response:
    """An error in the XML of Azure Storage."""
    text = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    )
    return Response(text, status, {"x-ms-error-code": code}, "application/xml")


def blob_response(request: Request, content: bytes, media_type: str) -> Response:
    """A blob, or the part that Range asks for: 206, 412 where If-Match does not fit, 416 beyond its end."""
    etag = f'"0x{hashlib.sha256(content).hexdigest()[:16].upper()}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if request.headers.get("if-match", etag) != etag:
        return storage_error(412, "ConditionNotMet")
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or request.headers.get("if-range", etag) != etag:
        return Response(content, 200, headers, media_type)
    start = int(found[1])
    stop = min(len(content), int(found[2]) + 1) if found[2] else len(content)
    if start >= stop:
        return storage_error(416, "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return Response(content[start:stop], 206, headers, media_type)
