"""Error bodies: protocol facts 21 and 24; nothing secret gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bulkdata.outcome import describe, read_outcome

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy


def outcome(code: str = "processing", text: str = "", severity: str = "error") -> bytes:
    issue: dict[str, Any] = {"severity": severity, "code": code, "diagnostics": text}
    return json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()


def test_transient_means_retry_and_processing_does_not() -> None:
    """Protocol fact 21."""
    for code in ("transient", "timeout", "throttled", "lock-error", "no-store"):
        found = read_outcome(outcome(code))
        assert found is not None
        assert found.transient
    found = read_outcome(outcome("processing", "boom"))
    assert found is not None
    assert not found.transient
    assert found.decided
    assert found.text == "processing: boom"


def test_an_exception_alone_decides_nothing() -> None:
    found = read_outcome(outcome("exception"))
    assert found is not None
    assert (found.transient, found.decided) == (False, False)


def test_microsofts_failed_job_is_terminal_whatever_its_code() -> None:
    """Protocol fact 24."""
    found = read_outcome(outcome("throttled", "Export operation failed for reason: Forbidden"))
    assert found is not None
    assert (found.terminal, found.transient) == (True, False)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "an empty body"),
        (b" <!DOCTYPE html><html>Bad gateway</html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (b'{"error":"invalid_client","error_description":"unknown"}', "invalid_client: unknown"),
        (b'{"error":{"code":"Forbidden","message":"no role"}}', "Forbidden: no role"),
        (b'{"a":1}', "a JSON body without an explanation"),
        (b"upstream\x00 connect\r\nerror", "upstream connect error"),
        (b"\xff\xfe", "��"),
        (outcome("not-found", "no\u202e such\x1b[31m group"), "not-found: no such [31m group"),
        (b'{"resourceType":"OperationOutcome"}', "an OperationOutcome without issues"),
        (b'{"resourceType":"OperationOutcome","issue":[{"details":{"text":"why"}}, 7]}', "why"),
        (b"[" * 100_000, "["),
    ],
)
def test_every_kind_of_body_is_put_in_a_few_words(body: bytes, said: str) -> None:
    """Protocol fact 21: error bodies may be HTML."""
    assert describe(body).startswith(said)


SECRETS = [
    "https://acc.blob.core.windows.net/c/f.ndjson?sv=2024&sig=TOPSECRETVALUE%3D",
    "https://user:TOPSECRETVALUE@host/path",
    "Authorization: Bearer TOPSECRETVALUE.x.y",
    "token eyJTOPSECRETVALUE.eyJzdWIiOiIx.AAAA",
    "client_assertion=TOPSECRETVALUE",
    '{"access_token": "TOPSECRETVALUE"}',
    "grant_type=x&code=TOPSECRETVALUE",
    "key: TOPSECRETVALUETOPSECRETVALUETOPSECRETVALUE",
    "TOPSECRETVALUE" * 4,
    "/path?TOPSECRETVALUE=1",
]


@pytest.mark.parametrize("text", SECRETS)
def test_queries_and_tokens_do_not_get_through(text: str) -> None:
    for body in (text.encode(), outcome("processing", f"failed at {text} today")):
        assert "TOPSECRETVALUE" not in describe(body)


@STEADY
@given(st.binary(max_size=300))
def test_no_body_breaks_the_description(body: bytes) -> None:
    assert describe(body)
    read_outcome(body)


@STEADY
@given(
    st.recursive(
        st.none() | st.text(max_size=9) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=8,
    )
)
def test_no_json_breaks_the_description(value: object) -> None:
    assert describe(json.dumps({"resourceType": "OperationOutcome", "issue": value}).encode())
    assert describe(json.dumps({"error": value}).encode())
