"""Entra's stand-in, driven by the real azure-identity and by plain HTTP (azure-and-aidbox C)."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import azure.identity.aio
import httpx
import jwt
import pytest
from authority import Authority
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CertificateCredential, ClientSecretCredential, WorkloadIdentityCredential
from azure_storage import Azurite, FixedToken
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from pipeline.sandbox.cloud.process import CloudProcess, start_cloud

FHIR = "https://azurehealthcareapis.com"
CLIENT = "1c2d3e4f-0000-4000-8000-00000000aaaa"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        running.register_application(CLIENT, secret="right", roles={FHIR: ["system.all.read"]})
        yield running


@functools.cache
def http() -> httpx.Client:
    return httpx.Client()


@functools.cache
def keys_at(url: str) -> jwt.PyJWKClient:
    return jwt.PyJWKClient(url)


def by_secret(cloud: CloudProcess, secret: str = "right", client: str = CLIENT) -> ClientSecretCredential:
    return ClientSecretCredential(
        cloud.tenant, client, secret, authority=cloud.authority, disable_instance_discovery=True
    )


def claims_of(cloud: CloudProcess, token: str, audience: str = FHIR) -> dict[str, Any]:
    """Verified with the published keys, by PyJWT's own client."""
    key = keys_at(cloud.token_keys_url).get_signing_key_from_jwt(token)
    return jwt.decode(token, key, algorithms=["RS256"], audience=audience)


def error_of(answer: httpx.Response) -> tuple[int, int, str]:
    """Status, AADSTS code and `error`, after a look at the shape that Entra's errors have."""
    body = answer.json()
    (code,) = body["error_codes"]
    guid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
    shape = rf"AADSTS{code}: .+ Trace ID: {guid} Correlation ID: {guid} Timestamp: {stamp}"
    assert re.fullmatch(shape, body["error_description"], re.DOTALL)
    assert re.fullmatch(guid, body["trace_id"])
    assert re.fullmatch(stamp, body["timestamp"])
    assert body["correlation_id"] in body["error_description"]
    assert body["error_uri"].endswith(f"/error?code={code}")
    return answer.status_code, code, body["error"]


def proofs(cloud: CloudProcess) -> list[str]:
    """How the clients proved themselves, sign-in by sign-in."""
    return [one["proof"] for one in cloud.requests("entra") if "proof" in one]


def post(url: str, **form: str) -> httpx.Response:
    return http().post(url, data={"grant_type": "client_credentials", **form})


def certificate(days: float = 30) -> tuple[bytes, bytes]:
    """Key and certificate in one PEM, and the certificate alone."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nightly")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(Encoding.PEM)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + public, public


def test_a_client_secret_gives_a_token_with_audience_tenant_and_roles(cloud: CloudProcess) -> None:
    before = int(time.time())
    token = by_secret(cloud).get_token(FHIR + "/.default")
    claims = claims_of(cloud, token.token)
    registered = cloud.register_application(CLIENT)
    assert claims["iss"] == f"https://sts.windows.net/{cloud.tenant}/"
    assert claims["tid"] == cloud.tenant
    assert claims["appid"] == CLIENT
    assert claims["oid"] == registered["object_id"]
    assert claims["roles"] == ["system.all.read"]
    assert claims["exp"] - claims["iat"] == 3599
    assert before <= claims["nbf"] <= time.time()
    assert abs(token.expires_on - claims["exp"]) <= 2


def test_an_audience_with_a_final_slash_is_asked_for_with_two(cloud: CloudProcess) -> None:
    """azure-and-aidbox C: `//.default` is right, and the slash stays in `aud`."""
    cloud.allow_resource("https://slash.example/")
    token = by_secret(cloud).get_token("https://slash.example//.default").token
    assert claims_of(cloud, token, "https://slash.example/")["aud"] == "https://slash.example/"
    assert "roles" not in claims_of(cloud, token, "https://slash.example/")


def test_the_asynchronous_client_signs_in_too(cloud: CloudProcess) -> None:
    async def get() -> str:
        async with azure.identity.aio.ClientSecretCredential(
            cloud.tenant, CLIENT, "right", authority=cloud.authority, disable_instance_discovery=True
        ) as credential:
            return (await credential.get_token(FHIR + "/.default")).token

    assert claims_of(cloud, asyncio.run(get()))["roles"] == ["system.all.read"]


def test_v1_answers_with_numbers_as_strings(cloud: CloudProcess) -> None:
    """azure-and-aidbox C: v1 with `resource`; `expires_in` is a string there."""
    answer = post(cloud.token_url_v1, client_id=CLIENT, client_secret="right", resource=FHIR)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store, no-cache"
    body = answer.json()
    claims = claims_of(cloud, body["access_token"])
    assert body["expires_in"] == "3599"
    assert body["expires_on"] == str(claims["exp"])
    assert body["resource"] == claims["aud"] == FHIR
    v2 = post(cloud.token_url, client_id=CLIENT, client_secret="right", scope=FHIR + "/.default").json()
    assert v2["expires_in"] == 3599
    assert "expires_on" not in v2


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"client_id": str(uuid.UUID(int=7))}, (400, 700016, "unauthorized_client")),
        ({"client_secret": "wrong"}, (401, 7000215, "invalid_client")),
        ({"client_secret": ""}, (401, 7000218, "invalid_client")),
        ({"client_id": ""}, (400, 900144, "invalid_request")),
        ({"grant_type": "password"}, (400, 70003, "unsupported_grant_type")),
        ({"scope": "system/*.read"}, (400, 1002012, "invalid_scope")),
        ({"scope": FHIR}, (400, 1002012, "invalid_scope")),
        ({"scope": "system/Patient.rs system/*.rs"}, (400, 70011, "invalid_scope")),
        ({"scope": ""}, (400, 900144, "invalid_request")),
        ({"scope": "https://other.example/.default"}, (400, 500011, "invalid_resource")),
        ({"resource": FHIR}, (400, 901002, "invalid_request")),
        (
            {"client_assertion": "x.y.z", "client_assertion_type": ASSERTION_TYPE},
            (400, 50027, "invalid_request"),
        ),
    ],
)
def test_v2_refuses_with_the_code_that_entra_gives(
    cloud: CloudProcess, form: dict[str, str], expected: tuple[int, int, str]
) -> None:
    good = {"client_id": CLIENT, "client_secret": "right", "scope": FHIR + "/.default"}
    assert error_of(post(cloud.token_url, **{**good, **form})) == expected


def test_v1_refuses_an_unknown_resource_and_a_json_body(cloud: CloudProcess) -> None:
    good = {"client_id": CLIENT, "client_secret": "right"}
    unknown = post(cloud.token_url_v1, **good, resource="https://other.example")
    assert error_of(unknown) == (400, 50001, "invalid_resource")
    as_json = http().post(cloud.token_url_v1, json={**good, "resource": FHIR})
    assert error_of(as_json) == (400, 900144, "invalid_request")
    assert error_of(http().get(cloud.token_url))[1] == 900561


def test_an_expired_secret_is_told_apart_from_a_wrong_one(cloud: CloudProcess) -> None:
    """azure-and-aidbox C: 7000222; a second secret works beside it, as in the portal."""
    client = cloud.register_application(secret="old")["client_id"]
    cloud.expire_secret(client)
    cloud.allow_resource(FHIR)
    with pytest.raises(ClientAuthenticationError, match="AADSTS7000222"):
        by_secret(cloud, "old", client).get_token(FHIR + "/.default")
    cloud.register_application(client, secret="new")
    assert by_secret(cloud, "new", client).get_token(FHIR + "/.default").token


@pytest.mark.parametrize(
    ("client", "secret", "scope", "code"),
    [
        (CLIENT, "wrong", FHIR + "/.default", "AADSTS7000215"),
        (str(uuid.UUID(int=9)), "right", FHIR + "/.default", "AADSTS700016"),
        (CLIENT, "right", "https://nowhere.example/.default", "AADSTS500011"),
        (CLIENT, "right", "system/*.read", "AADSTS1002012"),
    ],
)
def test_azure_identity_shows_the_code(
    cloud: CloudProcess, client: str, secret: str, scope: str, code: str
) -> None:
    with pytest.raises(ClientAuthenticationError, match=code + ":"):
        by_secret(cloud, secret, client).get_token(scope)


def test_an_unknown_tenant_is_found_before_any_secret_is_sent(cloud: CloudProcess) -> None:
    other = str(uuid.uuid4())
    credential = ClientSecretCredential(
        other, CLIENT, "right", authority=cloud.authority, disable_instance_discovery=True
    )
    with pytest.raises(ClientAuthenticationError, match="Unable to get authority configuration"):
        credential.get_token(FHIR + "/.default")
    url = cloud.token_url.replace(cloud.tenant, other)
    form = {"client_id": CLIENT, "client_secret": "right", "scope": FHIR + "/.default"}
    assert error_of(post(url, **form)) == (400, 90002, "invalid_request")
    assert not [one for one in cloud.requests("entra") if other in one["path"] and one.get("proof")]


def test_a_certificate_signs_in_with_either_thumbprint(cloud: CloudProcess) -> None:
    """The blocking client signs RS256 with x5t, the asynchronous one PS256 with x5t#S256."""
    pem, public = certificate()
    client = cloud.register_application(certificate_pem=public, roles={FHIR: ["a"]})["client_id"]
    options: dict[str, Any] = {"authority": cloud.authority, "disable_instance_discovery": True}
    credential = CertificateCredential(cloud.tenant, client, certificate_data=pem, **options)
    assert claims_of(cloud, credential.get_token(FHIR + "/.default").token)["appidacr"] == "2"

    async def get() -> str:
        async with azure.identity.aio.CertificateCredential(
            cloud.tenant, client, certificate_data=pem, **options
        ) as asynchronous:
            return (await asynchronous.get_token(FHIR + "/.default")).token

    assert claims_of(cloud, asyncio.run(get()))["appid"] == client
    assert proofs(cloud)[-2:] == ["certificate", "certificate"]


def test_a_certificate_that_is_not_registered_or_expired_is_refused(cloud: CloudProcess) -> None:
    stranger, _ = certificate()
    late, late_public = certificate(days=-1)
    _, registered = certificate()
    options: dict[str, Any] = {"authority": cloud.authority, "disable_instance_discovery": True}
    client = cloud.register_application(certificate_pem=registered)["client_id"]
    with pytest.raises(ClientAuthenticationError, match=r"AADSTS700027.+The key was not found"):
        CertificateCredential(cloud.tenant, client, certificate_data=stranger, **options).get_token(
            FHIR + "/.default"
        )
    cloud.register_application(client, certificate_pem=late_public)
    with pytest.raises(ClientAuthenticationError, match=r"AADSTS700027.+expired"):
        CertificateCredential(cloud.tenant, client, certificate_data=late, **options).get_token(
            FHIR + "/.default"
        )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 200),
        ({"aud": "https://elsewhere.example/token"}, 700023),
        ({"exp": 1_000}, 700024),
        ({"exp": 4_000_000_000}, 700024),
        ({"sub": "somebody-else"}, 700021),
    ],
)
def test_the_claims_of_a_certificates_assertion_are_checked(
    cloud: CloudProcess, change: dict[str, Any], expected: int
) -> None:
    pem, public = certificate()
    client = cloud.register_application(certificate_pem=public)["client_id"]
    thumbprint = x509.load_pem_x509_certificate(public).fingerprint(hashes.SHA256())
    now = int(time.time())
    claims = {"iss": client, "sub": client, "aud": cloud.token_url, "exp": now + 300, "jti": "1", **change}
    assertion = jwt.encode(
        claims, pem, algorithm="PS256", headers={"x5t#S256": jwt.utils.base64url_encode(thumbprint).decode()}
    )
    form = {"client_id": client, "client_assertion_type": ASSERTION_TYPE, "scope": FHIR + "/.default"}
    answer = post(cloud.token_url, client_assertion=assertion, **form)
    assert answer.status_code == 200 if expected == 200 else error_of(answer)[:2] == (401, expected)


def test_a_signature_of_another_key_is_refused_though_the_thumbprint_fits(cloud: CloudProcess) -> None:
    _, public = certificate()
    stranger, _ = certificate()
    client = cloud.register_application(certificate_pem=public)["client_id"]
    thumbprint = x509.load_pem_x509_certificate(public).fingerprint(hashes.SHA256())
    claims = {"iss": client, "sub": client, "aud": cloud.token_url, "exp": int(time.time()) + 300}
    header = {"x5t#S256": jwt.utils.base64url_encode(thumbprint).decode()}
    assertion = jwt.encode(claims, stranger, algorithm="RS256", headers=header)
    form = {"client_id": client, "client_assertion_type": ASSERTION_TYPE, "scope": FHIR + "/.default"}
    assert error_of(post(cloud.token_url, client_assertion=assertion, **form))[1] == 700027


def test_workload_identity_exchanges_its_token_file(
    cloud: CloudProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cloud.register_application(federated=True, roles={FHIR: ["system.all.read"]})["client_id"]
    for name, value in cloud.workload_environment(client, tmp_path).items():
        monkeypatch.setenv(name, value)
    token = WorkloadIdentityCredential(disable_instance_discovery=True).get_token(FHIR + "/.default").token
    assert claims_of(cloud, token)["appid"] == client
    assert proofs(cloud)[-1] == "federated"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"subject": "system:serviceaccount:exports:other"}, "AADSTS700213"),
        ({"subject": "system:serviceaccount:Exports:nightly"}, "AADSTS700213"),
        ({"issuer": "https://other.example/"}, "AADSTS700211"),
        ({"audience": "https://other.example/"}, "AADSTS700212"),
        ({"issuer": "https://other.example/", "subject": "other"}, "AADSTS70021:"),
        ({"seconds": -900}, "AADSTS700024"),
    ],
)
def test_a_federated_token_that_fits_no_record_is_refused(
    cloud: CloudProcess, tmp_path: Path, claims: dict[str, Any], code: str
) -> None:
    client = cloud.register_application(federated=True)["client_id"]
    cloud.workload_environment(client, tmp_path, **claims)
    credential = WorkloadIdentityCredential(
        tenant_id=cloud.tenant,
        client_id=client,
        token_file_path=str(tmp_path / "azure-identity-token"),
        authority=cloud.authority,
    )
    with pytest.raises(ClientAuthenticationError, match=code):
        credential.get_token(FHIR + "/.default")


def test_a_federated_token_needs_a_record_and_the_issuers_signature(cloud: CloudProcess) -> None:
    form = {"client_assertion_type": ASSERTION_TYPE, "scope": FHIR + "/.default"}
    without = cloud.register_application(secret="x")["client_id"]
    good = cloud.federated_token()
    assert error_of(post(cloud.token_url, client_id=without, client_assertion=good, **form))[1] == 70025
    client = cloud.register_application(federated=True)["client_id"]
    assert post(cloud.token_url, client_id=client, client_assertion=good, **form).status_code == 200
    claims = jwt.decode(good, options={"verify_signature": False})
    forged = jwt.encode(claims, certificate()[0], algorithm="RS256")
    assert error_of(post(cloud.token_url, client_id=client, client_assertion=forged, **form))[1] == 700027


def test_a_new_signing_key_is_published_beside_the_old_one(authority: Authority) -> None:
    with start_cloud(certificate=authority.certificate, key=authority.key) as cloud:
        cloud.register_application(CLIENT, secret="right", roles={FHIR: ["r"]})
        form = {"client_id": CLIENT, "client_secret": "right", "scope": FHIR + "/.default"}
        old = post(cloud.token_url, **form).json()["access_token"]
        assert claims_of(cloud, old)["roles"] == ["r"]
        kid = cloud.roll_token_key()
        new = post(cloud.token_url, **form).json()["access_token"]
        published = [key["kid"] for key in http().get(cloud.token_keys_url).json()["keys"]]
        assert published == [jwt.get_unverified_header(old)["kid"], kid]
        assert jwt.get_unverified_header(new)["kid"] == kid
        keys_at.cache_clear()
        assert claims_of(cloud, new)["oid"] == claims_of(cloud, old)["oid"]


def test_azurite_takes_the_token_for_storage(cloud: CloudProcess, azurite_tls: Azurite) -> None:
    from azure.storage.blob import BlobServiceClient

    token = by_secret(cloud).get_token("https://storage.azure.com/.default").token
    assert claims_of(cloud, token, "https://storage.azure.com")["aud"] == "https://storage.azure.com"
    service = BlobServiceClient(azurite_tls.endpoint, credential=FixedToken(token))
    name = azurite_tls.new_container()
    service.get_blob_client(name, "a").upload_blob(b"x")
    assert service.get_blob_client(name, "a").download_blob().readall() == b"x"
    directly = BlobServiceClient(azurite_tls.endpoint, credential=by_secret(cloud))
    assert directly.get_blob_client(name, "a").download_blob().readall() == b"x"


def test_throttling_is_sat_out_by_azure_identity(cloud: CloudProcess) -> None:
    cloud.fail(next=1, status=503, on="entra", path="oauth2/v2.0/token")
    assert by_secret(cloud).get_token(FHIR + "/.default").token
    asked = [one["status"] for one in cloud.requests("entra") if one["path"].endswith("/token")]
    assert asked[-2:] == [503, 200]
    cloud.fail(next=1, status=429, on="entra", retry_after=7)
    answer = post(cloud.token_url, client_id=CLIENT, client_secret="right", scope=FHIR + "/.default")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_the_log_holds_no_secret_and_no_token(
    cloud: CloudProcess, authority: Authority, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with start_cloud(certificate=authority.certificate, key=authority.key, access_log=log) as other:
        other.register_application(CLIENT, secret="a-secret-of-the-client", roles={FHIR: []})
        token = by_secret(other, "a-secret-of-the-client").get_token(FHIR + "/.default").token
        text = log.read_text() + json.dumps(other.requests())
        assert CLIENT in text
        assert "a-secret-of-the-client" not in text
        assert token not in text
        assert token.split(".")[2] not in text


def test_nobody_else_controls_it(cloud: CloudProcess) -> None:
    for headers in ({}, {"Authorization": "Bearer guess"}):
        answer = http().post(cloud.authority + "/control", json={"do": "revoke_tokens"}, headers=headers)
        assert answer.status_code == 403
    with pytest.raises(ValueError, match="No application"):
        cloud.expire_secret("unknown")
    with pytest.raises(ValueError, match="`do` must be one of"):
        cloud.control("nonsense")
