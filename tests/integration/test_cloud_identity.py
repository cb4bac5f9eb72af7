"""The managed-identity endpoints, driven by the real azure-identity and by plain HTTP."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterator

import azure.identity.aio
import httpx
import jwt
import pytest
from authority import Authority
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError, DefaultAzureCredential, ManagedIdentityCredential

from pipeline.sandbox.cloud.process import CloudProcess, start_cloud

FHIR = "https://ws-fhir.fhir.azurehealthcareapis.com"
USER = "aaaaaaaa-0000-4000-8000-000000000001"


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        running.assign_identity(roles={FHIR: ["FHIR Data Exporter"]})
        running.assign_identity(
            USER, system=False, resource_id="/subscriptions/0/x/nightly", roles={FHIR: ["u"]}
        )
        yield running


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "AZURE_POD_IDENTITY_AUTHORITY_HOST", "MSI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def on_machine(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@functools.cache
def keys_at(url: str) -> jwt.PyJWKClient:
    return jwt.PyJWKClient(url)


def roles_of(cloud: CloudProcess, token: str) -> list[str]:
    key = keys_at(cloud.token_keys_url).get_signing_key_from_jwt(token)
    roles: list[str] = jwt.decode(token, key, algorithms=["RS256"], audience=FHIR)["roles"]
    return roles


@pytest.mark.parametrize(
    "place", ["identity_environment", "identity_environment_over_tls", "imds_environment"]
)
def test_each_form_gives_the_machines_identities(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    on_machine(monkeypatch, getattr(cloud, place))
    system = ManagedIdentityCredential().get_token(FHIR + "/.default")
    assert roles_of(cloud, system.token) == ["FHIR Data Exporter"]
    assert abs(system.expires_on - time.time() - 3599) < 5
    user = ManagedIdentityCredential(client_id=USER).get_token(FHIR + "/.default").token
    assert roles_of(cloud, user) == ["u"]
    by_resource = ManagedIdentityCredential(identity_config={"resource_id": "/subscriptions/0/x/nightly"})
    assert roles_of(cloud, by_resource.get_token(FHIR + "/.default").token) == ["u"]


@pytest.mark.parametrize("place", ["identity_environment", "imds_environment"])
def test_the_asynchronous_client_gets_them_too(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    on_machine(monkeypatch, getattr(cloud, place))

    async def get() -> str:
        async with azure.identity.aio.ManagedIdentityCredential(client_id=USER) as credential:
            return (await credential.get_token(FHIR + "/.default")).token

    assert roles_of(cloud, asyncio.run(get())) == ["u"]


def test_the_default_chain_finds_the_machines_identity(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, cloud.identity_environment)
    credential = DefaultAzureCredential(
        managed_identity_client_id=USER, exclude_interactive_browser_credential=True
    )
    assert roles_of(cloud, credential.get_token(FHIR + "/.default").token) == ["u"]


def test_an_identity_that_is_not_assigned_is_refused(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = "bbbbbbbb-0000-4000-8000-000000000002"
    on_machine(monkeypatch, cloud.identity_environment)
    with pytest.raises(
        CredentialUnavailableError, match="400, No User Assigned or Delegated Managed Identity"
    ):
        ManagedIdentityCredential(client_id=stranger).get_token(FHIR + "/.default")
    monkeypatch.delenv("IDENTITY_ENDPOINT")
    on_machine(monkeypatch, cloud.imds_environment)
    with pytest.raises(ClientAuthenticationError, match="Identity not found"):
        ManagedIdentityCredential(client_id=stranger).get_token(FHIR + "/.default")


def test_another_sites_header_is_refused(cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, {**cloud.identity_environment, "IDENTITY_HEADER": "of-another-site"})
    with pytest.raises(ClientAuthenticationError, match="401"):
        ManagedIdentityCredential().get_token(FHIR + "/.default")


def test_app_services_answer_has_its_documented_form(cloud: CloudProcess) -> None:
    url = cloud.identity_environment["IDENTITY_ENDPOINT"]
    headers = {"X-IDENTITY-HEADER": cloud.identity_environment["IDENTITY_HEADER"]}
    query = {"api-version": "2019-08-01", "resource": FHIR, "client_id": USER}
    answer = httpx.get(url, params=query, headers=headers)
    body = answer.json()
    assert set(body) == {"access_token", "expires_on", "resource", "token_type", "client_id"}
    assert abs(int(body["expires_on"]) - time.time() - 3599) < 5
    assert isinstance(body["expires_on"], str)
    for change, status in (
        ({"api-version": "2017-09-01"}, 400),
        ({"resource": ""}, 400),
        ({"resource": "https://unknown.example"}, 500),
    ):
        refused = httpx.get(url, params={**query, **change}, headers=headers)
        assert refused.status_code == refused.json()["statusCode"] == status
    assert httpx.get(url, params=query).status_code == 401


def test_a_virtual_machines_answer_has_its_documented_form(cloud: CloudProcess) -> None:
    url = cloud.imds_environment["AZURE_POD_IDENTITY_AUTHORITY_HOST"] + "/metadata/identity/oauth2/token"
    query = {"api-version": "2018-02-01", "resource": FHIR}
    body = httpx.get(url, params=query, headers={"Metadata": "true"}).json()
    assert body["expires_in"] == "3599"
    assert int(body["expires_on"]) - int(body["not_before"]) == 3899
    assert httpx.get(url, params=query).json()["error"] == "bad_request_102"
    forwarded = httpx.get(url, params=query, headers={"Metadata": "true", "X-Forwarded-For": "10.0.0.1"})
    assert forwarded.status_code == 400
    unknown = httpx.get(
        url, params={**query, "resource": "https://unknown.example"}, headers={"Metadata": "true"}
    )
    assert "AADSTS500011" in unknown.json()["error_description"]


def test_a_machine_without_identities_has_none(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single user-assigned identity is taken unasked on a virtual machine, not on App Service."""
    with start_cloud(certificate=authority.certificate, key=authority.key) as bare:
        bare.allow_resource(FHIR)
        on_machine(monkeypatch, bare.imds_environment)
        with pytest.raises(ClientAuthenticationError, match="Identity not found"):
            ManagedIdentityCredential().get_token(FHIR + "/.default")
        bare.assign_identity(USER, system=False, roles={FHIR: ["u"]})
        assert roles_of(bare, ManagedIdentityCredential().get_token(FHIR + "/.default").token) == ["u"]
        on_machine(monkeypatch, bare.identity_environment)
        with pytest.raises(CredentialUnavailableError, match="400"):
            ManagedIdentityCredential().get_token(FHIR + "/.default")


def test_throttling_reaches_the_client(cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, cloud.identity_environment)
    cloud.fail(next=1, status=429, on="identity", retry_after=0)
    assert ManagedIdentityCredential().get_token(FHIR + "/.default").token
    assert [one["status"] for one in cloud.requests("identity")][-2:] == [429, 200]
