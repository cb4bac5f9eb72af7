"""Answers of sign-in endpoints: small ones, read whole within a bounded time."""

from __future__ import annotations

import time
from typing import Any

import httpx

from pipeline.errors import AuthError, ServerRefused
from pipeline.network.allowance import allowed
from pipeline.network.bodies import ACCEPTED, OF_THE_TRANSFER, pieces

LONGEST_ANSWER = 60.0
"""Seconds: an answer that drips for ever breaks no timeout of a single read."""

LARGEST_ANSWER = 1 << 20
"""Bytes; what is behind them is not read."""


def ask(http: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    """One request without `http`'s own sign-in and without redirects; its answer, read.

    `options` are those of `httpx.Client.stream`. Raises `httpx.RequestError` (`ReadTimeout` for an answer
    that does not end), and AuthError for an address that must not be asked.
    """
    options["headers"] = {"Accept-Encoding": ACCEPTED, **options.get("headers", {})}
    try:
        with (
            allowed(LONGEST_ANSWER),
            http.stream(method, url, auth=None, follow_redirects=False, **options) as answer,
        ):
            content = _read(answer)
    except ServerRefused as error:
        raise AuthError(error.cause, error.advice) from None
    # What was read is decoded: httpx would decode it again.
    headers = [(name, value) for name, value in answer.headers.multi_items() if name not in OF_THE_TRANSFER]
    return httpx.Response(answer.status_code, headers=headers, content=content, request=answer.request)


def _read(answer: httpx.Response) -> bytes:
    give_up = time.monotonic() + LONGEST_ANSWER
    parts: list[bytes] = []
    size = 0
    for part in pieces(answer):
        parts.append(part)
        size += len(part)
        if size >= LARGEST_ANSWER:
            break
        if time.monotonic() > give_up:
            raise httpx.ReadTimeout("the answer does not end", request=answer.request)
    return b"".join(parts)[:LARGEST_ANSWER]
