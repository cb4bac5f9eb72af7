"""SmartTokenSource at the stand-in for the SMART sample of API Management (azure-and-aidbox A)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pipeline.auth.keys import generate_key
from pipeline.auth.signers import PemSigner
from pipeline.auth.tokens import SmartTokenSource
from pipeline.errors import AuthError
from pipeline.sandbox.process import SandboxProcess, start_sandbox


@pytest.fixture(scope="module")
def signer() -> PemSigner:
    return PemSigner.from_pem(generate_key("RS384"), "RS384")


@pytest.fixture(scope="module")
def apim(signer: PemSigner) -> Iterator[SandboxProcess]:
    with start_sandbox(patients=2, jwks={"keys": [signer.public_jwk()]}, stand_in="apim") as running:
        yield running


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10, trust_env=False) as client:
        yield client


def _source(apim: SandboxProcess, signer: PemSigner, **settings: Any) -> SmartTokenSource:
    return SmartTokenSource(signer, "nightly", "system/*.read", fhir_url=f"{apim.base_url}/smart", **settings)


def test_the_form_buys_a_token_of_an_hour_or_more(
    apim: SandboxProcess, signer: PemSigner, http: httpx.Client
) -> None:
    """Its discovery lists no algorithms and no system scopes, which is no reason to fail."""
    token = _source(apim, signer).fetch(http)
    assert token.obtained_at is not None
    assert 3600 <= token.expires_at - token.obtained_at <= 5400


def test_json_is_refused_with_the_form_as_the_first_thing_to_check(
    apim: SandboxProcess, signer: PemSigner, http: httpx.Client
) -> None:
    with pytest.raises(AuthError, match=r"HTTP 400.*\(1\) auth\.token_body must be form"):
        _source(apim, signer, body="json").fetch(http)


@pytest.mark.parametrize("wrong", ["audience", "key"])
def test_a_wrong_audience_or_key_gets_the_samples_own_advice(
    wrong: str, apim: SandboxProcess, signer: PemSigner, http: httpx.Client
) -> None:
    if wrong == "audience":
        source = _source(apim, signer, audience="https://fhir.clinic.example/auth/token")
    else:
        source = _source(apim, PemSigner.from_pem(generate_key("RS384"), "RS384"))
    with pytest.raises(AuthError) as caught:
        source.fetch(http)
    for words in ("ApiManagementHostName", "backkv", "jwks_url", "named value JWKS"):
        assert words in caught.value.advice
