"""Token answers, and the words for refusals: rules tested without a network."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.auth.explain import TokenRequest, resource_refusal
from pipeline.auth.tokens import ASSUMED_LIFETIME, GREATEST_LIFETIME, Token, expires_in_seconds, read_answer
from pipeline.errors import AuthError, ExportError, Unreachable

ASSERTION = "eyJhbGciOiJFUzM4NCJ9.eyJpc3MiOiJuaWdodGx5In0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
ASKED = TokenRequest(
    token_url="https://auth.example.org/token",
    client_id="nightly",
    scope="system/*.rs",
    audience="https://auth.example.org/token",
    kid="kid-of-ours",
    algorithm="RS384",
    secrets=(ASSERTION,),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _answer(status: int, **body: Any) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", ASKED.token_url), **body)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(300, 300.0), ("3599", 3599.0), ("3599.5", 3599.5), (59.5, 59.5), (" 60 ", 60.0), (10**9, 86400.0)],
)
def test_expires_in_may_be_a_number_or_a_string(said: object, seconds: float) -> None:
    """Protocol fact 8: BCDA and Entra v1 send a string."""
    assert expires_in_seconds(said) == seconds


@pytest.mark.parametrize(
    "said", [None, True, "", "soon", 0, -5, "-1", math.nan, math.inf, "nan", "1e999", [300], {}]
)
def test_an_expires_in_that_means_nothing_is_five_minutes(said: object) -> None:
    """Protocol fact 8."""
    assert expires_in_seconds(said) == ASSUMED_LIFETIME


@given(JSON)
def test_every_expires_in_gives_a_life_that_ends(said: object) -> None:
    seconds = expires_in_seconds(said)
    assert math.isfinite(seconds)
    assert 0 < seconds <= GREATEST_LIFETIME


@given(st.integers(1, 86_400))
def test_numbers_and_their_strings_mean_the_same(seconds: int) -> None:
    assert expires_in_seconds(seconds) == expires_in_seconds(str(seconds)) == seconds


@given(st.floats(1, 86_400))
def test_a_token_is_renewed_before_it_ends_and_not_at_once(lifetime: float) -> None:
    token = Token("x", expires_at=1000.0 + lifetime, obtained_at=1000.0)
    assert 1000.0 + 0.79 * lifetime <= token.refresh_at < token.expires_at
    assert token.expires_at - token.refresh_at <= 60.0 + 1e-6


@given(
    st.integers(100, 599),
    st.one_of(JSON.map(lambda j: ("json", j)), st.binary(max_size=50).map(lambda b: ("content", b))),
)
def test_every_answer_is_a_token_or_an_error_with_advice(status: int, body: tuple[str, Any]) -> None:
    kind, content = body
    if kind == "json":
        try:
            answer = _answer(status, json=content)
        except ValueError:  # httpx refuses to write NaN
            return
    else:
        answer = _answer(status, content=content)
    outcome = read_answer(answer, ASKED, begun=0.0)
    if isinstance(outcome, ExportError):
        assert outcome.advice
    else:
        assert 200 <= status < 300


@given(JSON, JSON, JSON)
def test_odd_members_never_make_an_unusable_token(value: Any, kind: Any, expires: Any) -> None:
    try:
        answer = _answer(200, json={"access_token": value, "token_type": kind, "expires_in": expires})
    except ValueError:
        return
    outcome = read_answer(answer, ASKED, begun=5.0)
    if isinstance(outcome, Token):
        httpx.Headers({"Authorization": f"Bearer {outcome.value}"})
        assert outcome.value.isascii()
        assert not any(c.isspace() for c in outcome.value)
        assert outcome.expires_at > 5.0


@pytest.mark.parametrize("value", ["", "two words", "new\nline", "tab\t", "grün", 7, None])
def test_a_value_that_no_header_can_hold_is_no_token(value: object) -> None:
    outcome = read_answer(_answer(200, json={"access_token": value, "expires_in": 300}), ASKED, begun=0.0)
    assert isinstance(outcome, AuthError)
    assert "access_token" in outcome.cause


def test_a_token_without_type_or_with_any_spelling_of_bearer_is_taken() -> None:
    for extra in ({}, {"token_type": "bearer"}, {"token_type": "Bearer"}, {"token_type": "BEARER"}):
        outcome = read_answer(_answer(200, json={"access_token": "abc", **extra}), ASKED, begun=0.0)
        assert isinstance(outcome, Token), extra
    assert isinstance(
        read_answer(_answer(200, json={"access_token": "abc", "token_type": "mac"}), ASKED, begun=0.0),
        AuthError,
    )


def test_an_unknown_client_and_a_wrong_key_are_both_named() -> None:
    outcome = read_answer(_answer(401, json={"error": "invalid_client"}), ASKED, begun=0.0)
    assert isinstance(outcome, AuthError)
    for words in ("invalid_client", "nightly", "kid-of-ours", "JWK Set", "https://auth.example.org/token"):
        assert words in str(outcome)


def test_a_refusal_names_the_setting_to_change() -> None:
    cases: list[tuple[int, dict[str, Any], str]] = [
        (400, {"json": {"error": "invalid_scope"}}, "auth.scope"),
        (400, {"json": {"error": "invalid_request"}}, "auth.audience"),
        (400, {"json": {"error": "unauthorized_client"}}, "client_credentials"),
        (404, {"json": {}}, "auth.token_url"),
        (405, {"content": b""}, "auth.token_url"),
        (415, {"content": b"no"}, "auth.token_body"),
        (200, {"html": "<html>Sign in</html>"}, "login page"),
        (403, {"html": "<!DOCTYPE html>blocked"}, "firewall"),
        (200, {"json": {"error": "invalid_client"}}, "kid-of-ours"),
        (
            302,
            {"headers": {"Location": "https://login.example.org/?state=S3CRET"}},
            "https://login.example.org",
        ),
        (500, {"json": {"error": "invalid_client"}}, "nightly"),
        (
            401,
            {"json": {"error": "invalid_client", "error_description": "AADSTS7000222: expired."}},
            "expired: make a new one",
        ),
    ]
    for status, body, words in cases:
        outcome = read_answer(_answer(status, **body), ASKED, begun=0.0)
        assert isinstance(outcome, AuthError), (status, body)
        assert words in str(outcome), (status, body, str(outcome))
        assert "S3CRET" not in str(outcome)


def test_an_api_management_error_is_told_in_its_own_words() -> None:
    """azure-and-aidbox A: {"Name","Id","Code"}, not an OAuth error."""
    body = {"Name": "Invalid assertion", "Id": "3f6c1c1e-0a3e-4a53-9d0f-2b1a", "Code": 401}
    outcome = read_answer(_answer(401, json=body), ASKED, begun=0.0)
    assert isinstance(outcome, AuthError)
    assert "Invalid assertion" in outcome.cause
    assert "3f6c1c1e-0a3e-4a53-9d0f-2b1a" in outcome.cause
    assert "kid-of-ours" in outcome.advice


def test_an_algorithm_that_the_server_does_not_name_is_pointed_out() -> None:
    asked = TokenRequest(
        token_url="https://a.example/token",
        client_id="c",
        scope="s",
        audience="a",
        kid="k",
        algorithm="RS384",
        accepted_algorithms=("ES384",),
    )
    outcome = read_answer(_answer(401, json={"error": "invalid_client"}), asked, begun=0.0)
    assert "accepts ES384 only" in str(outcome)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_refusal_says_how_long_to_wait(status: int) -> None:
    outcome = read_answer(_answer(status, headers={"Retry-After": "17"}, text="busy"), ASKED, begun=0.0)
    assert isinstance(outcome, Unreachable)
    assert outcome.retry_after == 17.0


def test_a_clock_that_is_wrong_is_pointed_out() -> None:
    for offset, words in ((-400, "s ahead of"), (400, "s behind")):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=offset), usegmt=True)
        answer = _answer(400, headers={"Date": date}, json={"error": "invalid_client"})
        assert words in str(read_answer(answer, ASKED, begun=0.0))
    date = format_datetime(datetime.now(UTC), usegmt=True)
    answer = _answer(400, headers={"Date": date}, json={"error": "invalid_client"})
    assert "clock is" not in str(read_answer(answer, ASKED, begun=0.0))


@given(st.text(max_size=80), st.sampled_from(["error", "error_description", "Name", "Id", "Code", "message"]))
def test_an_echoed_assertion_is_never_repeated(text: str, member: str) -> None:
    body = {"error": "invalid_client", member: f"{text}{ASSERTION}{text}"}
    said = str(read_answer(_answer(400, json=body), ASKED, begun=0.0))
    for piece in ASSERTION.split("."):
        assert piece not in said


def test_a_refused_resource_tells_authentication_from_permission() -> None:
    request = httpx.Request("GET", "https://fhir.example.org/r4/Patient?name=S3CRET")
    headers = {"WWW-Authenticate": f'Bearer error="invalid_token", token="{ASSERTION}"'}
    unauthorized = resource_refusal(httpx.Response(401, request=request, headers=headers))
    forbidden = resource_refusal(httpx.Response(403, request=request))
    assert "audience" in unauthorized.advice
    assert "role" in forbidden.advice
    for error in (unauthorized, forbidden):
        assert "S3CRET" not in str(error)
        assert "eyJ" not in str(error)
