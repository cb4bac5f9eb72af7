"""What `register` wants of a box or an operator, against JSON written by hand from the facts."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import Source
from pipeline.errors import ConfigError
from pipeline.registration.steps import Known
from pipeline.registration.systems import needs_keys, registration

RSA_KEY = {
    "e": "AQAB",
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aP",
    "kid": "2026-01",
    "alg": "RS384",
    "use": "sig",
    "key_ops": ["verify"],
}
EC_KEY = {
    "crv": "P-384",
    "kty": "EC",
    "x": "I5N5Qk4JqcGx1mXsGwQzV0mDq2k2T1oGQ0aQd3v0K1w",
    "y": "Yx4s8m8S6m1pZ8y0c2bQ6nQx0r9s3t5u7v9w1x3y5z7",
    "kid": "2026-02",
    "alg": "ES384",
    "use": "sig",
    "key_ops": ["verify"],
}
JWKS = {"keys": [RSA_KEY]}


def source(profile: str, fhir_url: str, **changes: Any) -> Source:
    auth = {"client_id": "nightly", "private_key": "file:key.pem", **changes.pop("auth", {})}
    return Source.model_validate(
        {
            "name": "hosp_a",
            "profile": profile,
            "fhir_url": fhir_url,
            "auth": auth,
            "export": {"group": "g"},
            **changes,
        }
    )


def bodies(chosen: Source, jwks: Any = JWKS, **known: Any) -> list[dict[str, Any]]:
    found = registration(chosen, jwks, Known(**known))
    return [dict(request.body) for step in found.steps for request in step.requests]


AIDBOX_CLIENT = {
    "resourceType": "Client",
    "id": "nightly",
    "type": "bulk-api-client",
    "active": True,
    "grant_types": ["client_credentials"],
    "auth": {
        "client_credentials": {
            "client_assertion_types": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"],
            "access_token_expiration": 300,
            "token_format": "jwt",
        }
    },
    "scope": ["system/*.read"],
    "jwks_uri": "https://exports.example.org/.well-known/jwks.json",
}
POLICY = {
    "resourceType": "AccessPolicy",
    "id": "nightly",
    "engine": "allow",
    "link": [{"id": "nightly", "resourceType": "Client"}],
}
URL = "https://exports.example.org/.well-known/jwks.json"


def test_aidbox_gets_a_client_that_reads_our_keys_and_a_policy() -> None:
    """azure-and-aidbox B: the Client and the AccessPolicy, word for word."""
    found = registration(source("aidbox", "https://box.example.org"), None, Known(jwks_url=URL))
    requests = [request for step in found.steps for request in step.requests]
    assert [(each.method, each.url) for each in requests] == [
        ("PUT", "https://box.example.org/Client/nightly"),
        ("PUT", "https://box.example.org/AccessPolicy/nightly"),
    ]
    assert [dict(each.body) for each in requests] == [AIDBOX_CLIENT, POLICY]


@pytest.mark.parametrize(
    ("fhir_url", "box"),
    [
        ("https://box.example.org/fhir", "https://box.example.org"),
        ("https://box.example.org/", "https://box.example.org"),
        ("https://host.example.org/boxes/one/fhir", "https://host.example.org/boxes/one"),
    ],
)
def test_the_client_lies_in_the_box_not_below_its_fhir_base(fhir_url: str, box: str) -> None:
    found = registration(source("aidbox", fhir_url), JWKS, Known())
    assert found.steps[0].requests[0].url == f"{box}/Client/nightly"


def test_the_url_of_our_keys_may_stand_in_the_configuration() -> None:
    chosen = source("aidbox", "https://box.example.org", auth={"jku": URL})
    assert not needs_keys(chosen, Known())
    assert bodies(chosen, None) == [AIDBOX_CLIENT, POLICY]


def test_without_a_url_the_keys_stand_in_the_client_in_the_form_that_aidbox_knows() -> None:
    """Aidbox's Client.jwks is a list of RSA keys; other members of a JWK are not among its attributes."""
    chosen = source("aidbox", "https://box.example.org")
    assert needs_keys(chosen, Known())
    (client, _) = bodies(chosen)
    assert "jwks_uri" not in client
    assert client["jwks"] == [
        {
            "kid": "2026-01",
            "kty": "RSA",
            "alg": "RS384",
            "use": "sig",
            "e": "AQAB",
            "n": RSA_KEY["n"],
        }
    ]


def test_during_a_rotation_both_keys_are_registered() -> None:
    (client, _) = bodies(
        source("aidbox", "https://box.example.org"), {"keys": [RSA_KEY, {**RSA_KEY, "kid": "2026-03"}]}
    )
    assert [key["kid"] for key in client["jwks"]] == ["2026-01", "2026-03"]


def test_an_elliptic_key_is_refused_inline_and_read_from_a_url() -> None:
    chosen = source("aidbox", "https://box.example.org", auth={"algorithm": "ES384"})
    with pytest.raises(ConfigError) as refused:
        bodies(chosen, {"keys": [EC_KEY]})
    assert "RSA" in refused.value.cause
    assert "--jwks-url" in refused.value.advice
    assert bodies(chosen, None, jwks_url=URL)[0]["jwks_uri"] == URL


def test_configured_scopes_are_registered() -> None:
    chosen = source("aidbox", "https://box.example.org", auth={"scope": "system/*.read system/Claim.read"})
    assert bodies(chosen)[0]["scope"] == ["system/*.read", "system/Claim.read"]


@pytest.mark.parametrize("client_id", ["../AccessPolicy/root", "a b", "x" * 65, "née"])
def test_a_client_id_that_is_no_resource_id_never_becomes_a_url(client_id: str) -> None:
    with pytest.raises(ConfigError, match="client_id"):
        bodies(source("aidbox", "https://box.example.org", auth={"client_id": client_id}))


@pytest.mark.parametrize(
    ("form", "meta"),
    [
        ("_tenant", {"_tenant": "my-clinic"}),
        ("tenant", {"tenant": {"id": "my-clinic", "resourceType": "Tenant"}}),
    ],
)
def test_smartbox_links_the_client_to_its_tenant_in_either_form(form: str, meta: dict[str, Any]) -> None:
    """azure-and-aidbox B: `meta._tenant: my-clinic`, newer `meta.tenant` {id, resourceType: Tenant}."""
    chosen = source("smartbox", "https://box.example.org", tenant="my-clinic")
    assert bodies(chosen, None, jwks_url=URL, tenant_form=form) == [
        {**AIDBOX_CLIENT, "meta": meta},
        POLICY,
    ]


def test_smartbox_shows_both_forms_until_one_is_chosen() -> None:
    chosen = source("smartbox", "https://box.example.org", tenant="my-clinic")
    found = bodies(chosen, None, jwks_url=URL)
    assert [each.get("meta") for each in found] == [
        {"_tenant": "my-clinic"},
        {"tenant": {"id": "my-clinic", "resourceType": "Tenant"}},
        None,
    ]


def test_the_tenant_is_also_read_out_of_the_url_and_the_client_still_lies_in_the_box() -> None:
    chosen = source("smartbox", "https://box.example.org/tenant/my-clinic/bulk-api")
    found = registration(chosen, None, Known(jwks_url=URL, tenant_form="_tenant"))
    request = found.steps[0].requests[0]
    assert request.url == "https://box.example.org/Client/nightly"
    assert request.body["meta"] == {"_tenant": "my-clinic"}


def test_smartbox_without_a_tenant_is_refused() -> None:
    with pytest.raises(ConfigError, match="tenant"):
        bodies(source("smartbox", "https://box.example.org"))


def test_any_other_operator_is_given_client_metadata() -> None:
    """Protocol facts 3, 6 and 7, in the names of RFC 7591."""
    chosen = source("smart", "https://fhir.example.org/r4", auth={"scope": "system/*.rs"})
    (step,) = registration(chosen, JWKS, Known(jwks_url=URL)).steps
    assert step.hand_over == {
        "client_id": "nightly",
        "grant_types": ["client_credentials"],
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": "RS384",
        "scope": "system/*.rs",
        "jwks_uri": URL,
        "jwks": {"keys": [RSA_KEY]},
    }
    assert "2026-01" in step.notes[0]


def test_without_a_sign_in_there_is_nothing_to_register() -> None:
    chosen = Source.model_validate(
        {
            "name": "open",
            "fhir_url": "https://fhir.example.org/r4",
            "auth": {"kind": "none"},
            "export": {"level": "patient"},
        }
    )
    assert not needs_keys(chosen, Known())
    assert registration(chosen, None, Known()).steps[0].title == "Nothing to register"
