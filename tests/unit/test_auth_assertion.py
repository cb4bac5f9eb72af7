"""The client assertion, read back by PyJWT and by hand."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from pipeline.auth.assertion import client_assertion
from pipeline.auth.keys import Algorithm, generate_key
from pipeline.auth.signers import PemSigner
from pipeline.errors import ConfigError

AUDIENCE = "https://auth.example.org/token"


@pytest.fixture(scope="module")
def signers() -> dict[str, PemSigner]:
    algorithms: list[Algorithm] = ["RS384", "ES384"]
    return {name: PemSigner.from_pem(generate_key(name), name) for name in algorithms}


def _header(assertion: str) -> dict[str, Any]:
    first = assertion.partition(".")[0]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    return decoded


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_header_and_claims_are_those_of_the_specification(
    algorithm: str, signers: dict[str, PemSigner]
) -> None:
    """Protocol facts 4 and 6."""
    signer = signers[algorithm]
    before = datetime.now(UTC).timestamp()
    assertion = client_assertion(signer, client_id="nightly", audience=AUDIENCE)
    assert _header(assertion) == {"alg": algorithm, "kid": signer.kid, "typ": "JWT"}
    claims = jwt.decode(
        assertion, jwt.PyJWK(signer.public_jwk()), algorithms=[algorithm], audience=AUDIENCE, issuer="nightly"
    )
    assert set(claims) == {"iss", "sub", "aud", "exp", "jti"}
    assert claims["sub"] == claims["iss"]
    assert 180 < claims["exp"] - before <= 300
    assert len(claims["jti"]) >= 22


def test_no_two_assertions_share_a_jti(signers: dict[str, PemSigner]) -> None:
    """Protocol fact 6."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    made = [client_assertion(signers["ES384"], client_id="c", audience=AUDIENCE, now=now) for _ in range(200)]
    jtis = {jwt.decode(one, options={"verify_signature": False})["jti"] for one in made}
    assert len(jtis) == 200


def test_now_lifetime_and_jku_are_as_given(signers: dict[str, PemSigner]) -> None:
    now = datetime(2030, 5, 6, 7, 8, 9, 999999, tzinfo=UTC)
    jku = "https://us.example.org/jwks.json"
    assertion = client_assertion(
        signers["ES384"], client_id="c", audience=AUDIENCE, lifetime=timedelta(seconds=60), now=now, jku=jku
    )
    claims = jwt.decode(assertion, options={"verify_signature": False})
    assert claims["exp"] == int(datetime(2030, 5, 6, 7, 9, 9, tzinfo=UTC).timestamp())
    assert _header(assertion)["jku"] == jku


@pytest.mark.parametrize("seconds", [-1, 0, 301])
def test_a_lifetime_that_servers_refuse_is_refused_here(seconds: int, signers: dict[str, PemSigner]) -> None:
    """Protocol fact 6: no more than five minutes."""
    with pytest.raises(ConfigError):
        client_assertion(
            signers["ES384"], client_id="c", audience=AUDIENCE, lifetime=timedelta(seconds=seconds)
        )


def test_an_es384_assertion_does_not_verify_under_another_key(signers: dict[str, PemSigner]) -> None:
    assertion = client_assertion(signers["ES384"], client_id="c", audience=AUDIENCE)
    other = PemSigner.from_pem(generate_key("ES384"), "ES384")
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(assertion, jwt.PyJWK(other.public_jwk()), algorithms=["ES384"], audience=AUDIENCE)
