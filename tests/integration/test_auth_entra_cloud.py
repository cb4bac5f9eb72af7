"""EntraTokenSource at the sandbox's Entra, over TLS: v1 and v2, secret and certificate, and trouble."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from authority import Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.auth.entra import EntraTokenSource
from pipeline.errors import AuthError, Unreachable
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud

AUDIENCE = "https://contoso-fhir.fhir.azurehealthcareapis.com"
SECRET = "q7K8Q~Zx.3vB_mN-0pLsWeRtYuIoP1aSdFgHjKlX"


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        running.allow_resource(AUDIENCE)
        yield running


@pytest.fixture
def application(cloud: CloudProcess) -> str:
    """The client id of a new application with SECRET and a role at the FHIR service."""
    return cloud.register_application(secret=SECRET, roles={AUDIENCE: ["FHIR Data Exporter"]})["client_id"]


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as client:
        yield client


def _source(cloud: CloudProcess, client_id: str, **settings: Any) -> EntraTokenSource:
    given = {"tenant_id": cloud.tenant, "authority": cloud.authority, "audience": AUDIENCE, **settings}
    if "certificate" not in given:
        given.setdefault("client_secret", SECRET)
    return EntraTokenSource(client_id=client_id, sleep=lambda seconds: None, **given)


def _verified(cloud: CloudProcess, http: httpx.Client, token: str, audience: str) -> dict[str, Any]:
    keys = jwt.PyJWKSet.from_dict(http.get(cloud.token_keys_url).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], audience=audience)
    return claims


def _pem(certificate_days: float = 1) -> tuple[bytes, bytes]:
    """A PEM with key and certificate, and the certificate alone."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nightly exports")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=certificate_days))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate, certificate


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_both_endpoints_give_a_token_for_exactly_that_audience(
    version: str, slash: str, cloud: CloudProcess, application: str, http: httpx.Client
) -> None:
    """azure-and-aidbox C, with `//.default` for an audience that ends in a slash."""
    token = _source(cloud, application, version=version, audience=AUDIENCE + slash).fetch(http)
    claims = _verified(cloud, http, token.value, AUDIENCE + slash)
    assert claims["appid"] == application
    assert claims["roles"] == ["FHIR Data Exporter"]
    assert token.obtained_at is not None
    assert token.expires_at - token.obtained_at == pytest.approx(3599)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_certificate_is_as_good_as_a_secret(
    version: str, cloud: CloudProcess, application: str, http: httpx.Client
) -> None:
    pem, certificate = _pem()
    cloud.register_application(application, certificate_pem=certificate)
    token = _source(cloud, application, certificate=pem, version=version).fetch(http)
    assert _verified(cloud, http, token.value, AUDIENCE)["appid"] == application


def test_a_scope_of_smart_never_gets_to_entra(
    cloud: CloudProcess, application: str, http: httpx.Client
) -> None:
    """azure-and-aidbox C, by the server's word: what was asked for is the audience, nothing else."""
    _source(cloud, application).fetch(http)
    asked = [entry for entry in cloud.requests("entra") if entry.get("principal") == application]
    assert [(entry["resource"], entry["auth"], entry["query"]) for entry in asked] == [(AUDIENCE, None, {})]


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"client_secret": "wrong~secret~value"}, "AADSTS7000215", "store its value, not its id"),
        ({"tenant_id": str(uuid.uuid4())}, "AADSTS90002", "check tenant_id"),
        ({"audience": "https://nobody.example"}, "AADSTS500011", "auth.audience"),
        ({"audience": "https://nobody.example", "version": "v1"}, "AADSTS50001", "auth.audience"),
        ({"certificate": _pem()[0]}, "AADSTS700027", "upload the one that belongs to this key"),
    ],
)
def test_a_wrong_setting_is_refused_once_and_named(
    settings: dict[str, Any], code: str, words: str, cloud: CloudProcess, application: str, http: httpx.Client
) -> None:
    before = len(cloud.requests("entra"))
    with pytest.raises(AuthError, match=words) as caught:
        _source(cloud, application, **settings).fetch(http)
    assert code in caught.value.cause
    assert len(cloud.requests("entra")) == before + 1


def test_an_application_that_is_not_in_the_tenant_is_named(cloud: CloudProcess, http: httpx.Client) -> None:
    with pytest.raises(AuthError, match="check client_id and tenant_id") as caught:
        _source(cloud, str(uuid.uuid4())).fetch(http)
    assert "AADSTS700016" in caught.value.cause


def test_an_expired_secret_is_final(cloud: CloudProcess, application: str, http: httpx.Client) -> None:
    """azure-and-aidbox C: 7000222 is not tried again, and the message says what to do."""
    cloud.expire_secret(application)
    before = len(cloud.requests("entra"))
    with pytest.raises(AuthError, match="has expired: make a new one") as caught:
        _source(cloud, application).fetch(http)
    assert "AADSTS7000222" in caught.value.cause
    assert len(cloud.requests("entra")) == before + 1


def test_an_expired_certificate_is_told_so(cloud: CloudProcess, application: str, http: httpx.Client) -> None:
    pem, certificate = _pem(certificate_days=-1)
    cloud.register_application(application, certificate_pem=certificate)
    with pytest.raises(AuthError, match="has not expired"):
        _source(cloud, application, certificate=pem).fetch(http)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_throttling_is_waited_out(
    status: int, cloud: CloudProcess, application: str, http: httpx.Client
) -> None:
    pem, certificate = _pem()
    cloud.register_application(application, certificate_pem=certificate)
    cloud.fail(3, on="entra", status=status, retry_after=2, path="token")
    waits: list[float] = []
    source = EntraTokenSource(
        tenant_id=cloud.tenant,
        client_id=application,
        audience=AUDIENCE,
        authority=cloud.authority,
        certificate=pem,
        sleep=waits.append,
    )
    _verified(cloud, http, source.fetch(http).value, AUDIENCE)
    assert waits == [2.0, 2.0, 2.0]


def test_a_throttling_without_end_is_left_to_the_caller(
    cloud: CloudProcess, application: str, http: httpx.Client
) -> None:
    cloud.fail(4, on="entra", status=503, path="token")
    with pytest.raises(Unreachable):
        _source(cloud, application).fetch(http)
    _source(cloud, application).fetch(http)
