"""Entra's and API Management's refusals in words: the table, and that no secret ever gets into them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any
from urllib.parse import quote_plus

import httpx
import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError
from hypothesis import given
from hypothesis import strategies as st

from pipeline.auth.explain import TokenRequest, resource_refusal
from pipeline.auth.tokens import read_answer
from pipeline.azure.entra_errors import entra_advice, entra_codes, entra_verdict, identity_error
from pipeline.errors import AuthError, ExportError, Unreachable

ASSERTION = "eyJhbGciOiJQUzI1NiJ9.eyJpc3MiOiJuaWdodGx5In0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
CLIENT_SECRET = "q7K8Q~Zx.3vB_mN-0pLsWeRtYuIoP1aSdFgHjKlX"
AT_ENTRA = TokenRequest(
    token_url="https://login.microsoftonline.com/contoso/oauth2/v2.0/token",
    client_id="11111111-2222-3333-4444-555555555555",
    scope="https://fhir.example.org//.default",
    audience="https://fhir.example.org/",
    secrets=(CLIENT_SECRET, quote_plus(CLIENT_SECRET)),
    entra=True,
)
AT_API_MANAGEMENT = TokenRequest(
    token_url="https://fhir.clinic.example/auth/token",
    client_id="11111111-2222-3333-4444-555555555555",
    scope="system/*.read",
    audience="https://contoso-apim.azure-api.net/auth/token",
    kid="kid-of-ours",
    algorithm="RS384",
    secrets=(ASSERTION,),
)

TABLE = {
    700016: "client_id and tenant_id",
    7000215: "store its value, not its id",
    7000222: "make a new one",
    50001: "audience",
    500011: "audience",
    90002: "tenant_id",
    1002012: "/.default",
    700027: "upload the one that belongs to this key",
    7000216: "check client_secret or certificate",
    7000218: "check client_secret or certificate",
    70021: "issuer, subject and audience",
    700211: "issuer, subject and audience",
    700212: "issuer, subject and audience",
    700213: "issuer, subject and audience",
    700024: "clock",
    53003: "Conditional Access",
    65001: "administrator must grant",
    50034: "sign-in of a user",
    501051: "Assign a role",
    7000112: "disabled",
    90038: "another cloud",
    90033: "try again later",
}
"""AADSTS number -> words of its advice, by Microsoft's public list of these errors."""


def _answer(status: int, body: Any, asked: TokenRequest = AT_ENTRA, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json=body, request=httpx.Request("POST", asked.token_url), headers=headers or None
    )


def _entra(code: int, status: int = 401, error: str = "invalid_client") -> httpx.Response:
    text = f"AADSTS{code}: Something. Trace ID: 0000aaaa-11bb-cccc-dd22-eeeeee333333 Timestamp: 2026-01-09"
    return _answer(status, {"error": error, "error_description": text, "error_codes": [code]})


@pytest.mark.parametrize(("code", "words"), sorted(TABLE.items()))
def test_each_number_has_its_meaning_and_the_action(code: int, words: str) -> None:
    """Whoever says it: the token endpoint, or azure-identity in a text of its own."""
    outcome = read_answer(_entra(code), AT_ENTRA, begun=0.0)
    assert isinstance(outcome, ExportError)
    assert words in outcome.advice
    assert f"AADSTS{code}" in outcome.cause
    assert words in (entra_advice(f"Microsoft Entra ID error '(invalid_client) AADSTS{code}: Bla.'") or "")


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("code", [7000215, 7000222])
def test_a_wrong_or_expired_secret_is_final(status: int, code: int) -> None:
    """azure-and-aidbox C; also where the status or the OAuth error would say something else."""
    for error in ("invalid_client", "server_error", "temporarily_unavailable"):
        assert isinstance(read_answer(_entra(code, status, error), AT_ENTRA, begun=0.0), AuthError)
    assert isinstance(read_answer(_entra(code, 503), AT_ENTRA, begun=0.0), AuthError)


def test_what_passes_by_itself_at_entra_may_be_tried_again() -> None:
    for status in (400, 503):
        outcome = read_answer(_entra(90033, status, "invalid_request"), AT_ENTRA, begun=0.0)
        assert isinstance(outcome, Unreachable), status


def test_a_number_is_read_whole_and_an_unknown_one_gives_way_to_a_known_one() -> None:
    assert entra_codes("AADSTS70002159 xAADSTS7000215. AADSTS12") == (70002159, 7000215)
    assert entra_advice("AADSTS99999: new. AADSTS7000222: expired") == entra_advice("AADSTS7000222")
    assert entra_advice("AADSTS99999: new") is None
    assert entra_advice("nothing of Entra's") is None
    assert entra_verdict("AADSTS99999") is None


def test_a_number_that_nobody_knows_yet_is_sent_to_the_list() -> None:
    outcome = read_answer(_entra(7654321, 400, "invalid_request"), AT_ENTRA, begun=0.0)
    assert isinstance(outcome, AuthError)
    for words in ("login.microsoftonline.com/error", AT_ENTRA.client_id, AT_ENTRA.audience):
        assert words in outcome.advice


def test_a_wrong_authority_is_named_by_its_settings() -> None:
    """There is no auth.token_url to check where the address is made of authority and tenant."""
    page = httpx.Response(200, html="<html>Sign in", request=httpx.Request("POST", AT_ENTRA.token_url))
    for answer in (page, _answer(404, {}), _answer(200, {"expires_in": 1})):
        outcome = read_answer(answer, AT_ENTRA, begun=0.0)
        assert isinstance(outcome, AuthError)
        assert "auth.authority and auth.tenant_id" in outcome.advice
        assert "auth.token_url" not in str(outcome)


def test_the_table_needs_no_http_library() -> None:
    """The lake and Key Vault use it too, and Dagster's definitions load it."""
    code = (
        "import sys, pipeline.azure.entra_errors as e; assert e.entra_advice('AADSTS7000222');"
        "print([m for m in ('httpx', 'azure.identity', 'azure.core', 'jwt') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- API Management -------------------------------------------------------------------------------

APIM = {"Name": "TokenInputFilter", "Id": "3f6c1c1e-0a3e-4a53-9d0f-2b1a00000000", "Code": 401}


def test_api_management_is_known_by_its_shape_and_gets_advice_of_its_own() -> None:
    """azure-and-aidbox A: {"Name","Id","Code"}, the Key Vault secret with the tag, the named value."""
    outcome = read_answer(_answer(401, APIM, AT_API_MANAGEMENT), AT_API_MANAGEMENT, begun=0.0)
    assert isinstance(outcome, AuthError)
    for words in (
        "ApiManagementHostName",
        "https://contoso-apim.azure-api.net/auth/token",
        "backkv",
        "jwks_url",
        "named value JWKS",
        "kid-of-ours",
        AT_API_MANAGEMENT.client_id,
    ):
        assert words in outcome.advice
    assert "TokenInputFilter" in outcome.cause
    assert "3f6c1c1e" in outcome.cause


def test_api_management_takes_the_form_only() -> None:
    """azure-and-aidbox A: JSON gets 400, so that is what a 400 is blamed on first."""
    refused = read_answer(
        _answer(400, {**APIM, "Code": "BadRequest"}, AT_API_MANAGEMENT), AT_API_MANAGEMENT, begun=0.0
    )
    assert isinstance(refused, AuthError)
    assert "(1) auth.token_body must be form" in refused.advice


def test_api_management_in_trouble_may_be_set_up_wrongly() -> None:
    """Its function answers 500 where the Key Vault cannot be read: tried again, and explained."""
    outcome = read_answer(
        _answer(500, {**APIM, "Code": 500}, AT_API_MANAGEMENT), AT_API_MANAGEMENT, begun=0.0
    )
    assert isinstance(outcome, Unreachable)
    assert "backkv" in outcome.advice
    assert f"(1) the VALUE of the Key Vault secret named '{AT_API_MANAGEMENT.client_id}'" in outcome.advice
    assert "wrong or expired" in outcome.advice


def test_entra_behind_api_management_points_at_the_vaults_secret() -> None:
    body = {"error": "invalid_client", "error_description": "AADSTS7000222: The provided keys are expired."}
    outcome = read_answer(_answer(401, body, AT_API_MANAGEMENT), AT_API_MANAGEMENT, begun=0.0)
    assert isinstance(outcome, AuthError)
    assert "expired: make a new one" in outcome.advice
    assert "Key Vault secret of that name" in outcome.advice


@pytest.mark.parametrize(
    "body",
    [{"error": "invalid_client", **APIM}, {"statusCode": 401, "message": "x"}, {"Name": "only"}, {"Code": 1}],
)
def test_other_shapes_are_not_taken_for_the_sample(body: dict[str, Any]) -> None:
    outcome = read_answer(_answer(401, body, AT_API_MANAGEMENT), AT_API_MANAGEMENT, begun=0.0)
    assert "backkv" not in str(outcome)


def test_a_401_is_told_from_a_403_at_the_resource() -> None:
    """azure-and-aidbox C: 401 is audience or tenant, 403 is the role."""
    request = httpx.Request("GET", "https://fhir.example.org/Patient?_count=1")
    unauthorized = resource_refusal(httpx.Response(401, request=request)).advice
    forbidden = resource_refusal(httpx.Response(403, request=request)).advice
    assert "audience" in unauthorized
    assert "tenant" in unauthorized
    assert "role" not in unauthorized
    assert "FHIR Data Exporter" in forbidden
    assert "audience" not in forbidden


# --- azure-identity -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            CredentialUnavailableError(
                "ManagedIdentityCredential authentication unavailable, no response from the IMDS endpoint."
            ),
            "Azure machines only",
        ),
        (
            CredentialUnavailableError(
                "ManagedIdentityCredential authentication unavailable. No identity has been assigned to this "
                "resource. Error: invalid_request: Identity not found"
            ),
            "Assign a managed identity",
        ),
        (
            CredentialUnavailableError(
                "App Service managed identity configuration not found in environment. Token request error: "
                "(invalid_scope) 400, No User Assigned or Delegated Managed Identity found for specified "
                "ClientId/ResourceId/PrincipalId."
            ),
            "its client id, not its object id",
        ),
        (
            CredentialUnavailableError(
                "App Service managed identity configuration not found in environment. Token request error: "
                "(invalid_scope) 500, An unexpected error occured while fetching the AAD Token."
            ),
            "auth.audience",
        ),
        (
            ClientAuthenticationError(
                "DefaultAzureCredential failed to retrieve a token from the included credentials.\n"
                "Attempted credentials:\n\tEnvironmentCredential: unavailable\n\tManagedIdentityCredential: "
                "no response from the IMDS endpoint."
            ),
            "No identity was found",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/var/run/secrets/azure/tokens/t"),
            "service account",
        ),
        (ClientAuthenticationError("Microsoft Entra ID error '(x) AADSTS700213: No matching'"), "subject"),
    ],
)
def test_azure_identitys_errors_say_what_to_do(error: Exception, words: str) -> None:
    told = identity_error(error, "https://fhir.example.org")
    assert isinstance(told, AuthError)
    assert words in told.advice


def _response_error(status: int) -> HttpResponseError:
    error = ClientAuthenticationError("Please retry the request later.")
    error.status_code = status
    return error


@pytest.mark.parametrize(
    "error",
    [
        ServiceRequestError("Connection refused"),
        ServiceResponseError("Connection aborted"),
        ConnectionResetError(104, "Connection reset by peer"),
        ClientAuthenticationError("Microsoft Entra ID error '(x) AADSTS90033: A transient error'"),
        _response_error(429),
        _response_error(503),
    ],
)
def test_what_may_pass_at_azure_identity_is_unreachable(error: Exception) -> None:
    told = identity_error(error, "https://fhir.example.org")
    assert isinstance(told, Unreachable)
    assert told.advice


def test_azure_identitys_advertisements_are_left_out() -> None:
    told = identity_error(
        CredentialUnavailableError(
            "No managed identity endpoint found. \nThe Target Azure platform could not be determined. \n"
            "Visit https://aka.ms/azsdk/python/identity/managedidentitycredential/troubleshoot to see"
        )
    )
    assert "aka.ms" not in str(told)


# --- secrets --------------------------------------------------------------------------------------

MEMBERS = st.sampled_from(
    ["error", "error_description", "Name", "Id", "Code", "message", "error_uri", "suberror", "issue", "x"]
)
TEXTS = st.text(max_size=60) | st.sampled_from(
    [
        "AADSTS7000215: Invalid client secret provided: ",
        "AADSTS700027: Client assertion contains an invalid signature. ",
        "client_assertion=",
        "grant_type=client_credentials&client_secret=",
        "invalid_client",
        "Token request invalid. {",
        "https://login.example/?x=",
    ]
)


@st.composite
def _echoes(draw: st.DrawFn, secret: str) -> dict[str, Any]:
    """A body that repeats the secret in some member, at some depth, beside anything else."""
    body: dict[str, Any] = draw(st.dictionaries(MEMBERS, TEXTS | st.integers() | st.none(), max_size=4))
    value: Any = draw(TEXTS) + secret + draw(TEXTS)
    for wrap in draw(st.lists(st.sampled_from(["list", "dict", "issue", "json"]), max_size=2)):
        value = {
            "list": [value],
            "dict": {draw(MEMBERS): value},
            "issue": [{"diagnostics": value}],
            "json": json.dumps(value),
        }[wrap]
    body[draw(MEMBERS)] = value
    return body


def _pieces(secret: str) -> list[str]:
    return [secret, *[piece for piece in secret.split(".") if len(piece) > 8]]


def _shows(text: str, secret: str) -> bool:
    return any(piece in text for piece in _pieces(secret))


@given(_echoes(CLIENT_SECRET), st.sampled_from([200, 400, 401, 403, 404, 429, 500, 503]))
def test_a_client_secret_is_never_repeated_whatever_the_body(body: dict[str, Any], status: int) -> None:
    outcome = read_answer(_answer(status, body), AT_ENTRA, begun=0.0)
    if isinstance(outcome, ExportError):
        assert not _shows(str(outcome), CLIENT_SECRET)
        assert not _shows(repr(outcome), CLIENT_SECRET)
        assert outcome.advice
    else:
        assert not _shows(repr(outcome), CLIENT_SECRET)


@given(_echoes(quote_plus(CLIENT_SECRET)), st.sampled_from([400, 401, 503]))
def test_nor_as_a_form_would_spell_it(body: dict[str, Any], status: int) -> None:
    outcome = read_answer(_answer(status, body), AT_ENTRA, begun=0.0)
    assert not _shows(str(outcome), quote_plus(CLIENT_SECRET))


@given(_echoes(ASSERTION), st.sampled_from([200, 400, 401, 403, 404, 429, 500, 503]))
def test_an_assertion_is_never_repeated_by_api_management(body: dict[str, Any], status: int) -> None:
    """azure-and-aidbox A: in debug mode the sample repeats the whole request."""
    outcome = read_answer(_answer(status, body, AT_API_MANAGEMENT), AT_API_MANAGEMENT, begun=0.0)
    if isinstance(outcome, ExportError):
        assert not _shows(str(outcome), ASSERTION)


@given(TEXTS, TEXTS)
def test_azure_identitys_texts_never_hand_a_token_on(before: str, after: str) -> None:
    """A federated token is not known to us, so it is found by its shape."""
    for text in (f"{before} {ASSERTION}{after}", f"{before}'{ASSERTION}'"):
        for error in (ClientAuthenticationError(text), ServiceRequestError(text), ValueError(text)):
            assert not re.search("eyJ|c2lnbmF0", str(identity_error(error, "Azure")))


@given(st.text(max_size=200))
def test_advice_holds_nothing_of_the_text(text: str) -> None:
    advice = entra_advice(f"{text} AADSTS7000215 {text}")
    assert advice is not None
    assert advice in {
        f"{one}" for one in (entra_advice(f"AADSTS{code}") for code in entra_codes(text)) if one
    } | {entra_advice("AADSTS7000215")}
