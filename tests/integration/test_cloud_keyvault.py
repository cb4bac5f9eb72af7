"""Key Vault's stand-in, driven by the real azure-keyvault clients (azure-and-aidbox A and E)."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import azure.identity.aio
import azure.keyvault.secrets.aio
import httpx
import jwt
import pytest
from authority import Authority
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.identity import ClientSecretCredential, ManagedIdentityCredential
from azure.keyvault.keys import KeyClient, KeyVaultKey
from azure.keyvault.keys.crypto import CryptographyClient, SignatureAlgorithm
from azure.keyvault.secrets import SecretClient
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pipeline.sandbox.cloud.process import CloudProcess, start_cloud

DIGEST = hashlib.sha384(b"header.claims").digest()
PREHASHED = utils.Prehashed(hashes.SHA384())


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        for name in ("Administrator", "Secrets User", "Crypto User", "Reader"):
            role = f"Key Vault {name}"
            running.register_application(name.replace(" ", "-"), secret="s", vault_roles=[role])
        running.register_application("nobody", secret="s")
        yield running


def signed_in(cloud: CloudProcess, who: str = "Administrator") -> ClientSecretCredential:
    return _credential(cloud.authority, cloud.tenant, who)


@functools.cache
def _credential(authority: str, tenant: str, who: str) -> ClientSecretCredential:
    return ClientSecretCredential(tenant, who, "s", authority=authority, disable_instance_discovery=True)


def secrets_of(cloud: CloudProcess, who: str = "Administrator", **options: Any) -> SecretClient:
    return SecretClient(cloud.vault_url, signed_in(cloud, who), verify_challenge_resource=False, **options)


def keys_of(cloud: CloudProcess, who: str = "Administrator", **options: Any) -> KeyClient:
    return KeyClient(cloud.vault_url, signed_in(cloud, who), verify_challenge_resource=False, **options)


def signer(cloud: CloudProcess, key: KeyVaultKey | str, who: str = "Crypto-User") -> CryptographyClient:
    return CryptographyClient(key, signed_in(cloud, who), verify_challenge_resource=False)


@functools.cache
def http() -> httpx.Client:
    return httpx.Client()


def bearer(cloud: CloudProcess, audience: str = "https://vault.azure.net") -> dict[str, str]:
    token = signed_in(cloud).get_token(audience + "/.default").token
    return {"Authorization": f"Bearer {token}"}


def refusal(error: HttpResponseError) -> tuple[int | None, str | None]:
    """Status and the inner code, as the client shows them."""
    found = re.search(r'"code": "(\w+)"', str(error))
    return error.status_code, found[1] if found else None


def ec_public(key: KeyVaultKey) -> ec.EllipticCurvePublicKey:
    x, y = int.from_bytes(key.key.x, "big"), int.from_bytes(key.key.y, "big")  # type: ignore[attr-defined]
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


def test_whoever_comes_without_a_token_is_told_where_to_get_one(cloud: CloudProcess) -> None:
    answer = http().get(cloud.vault_url + "/secrets/a?api-version=7.5")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == (
        f'Bearer authorization="{cloud.authority}/{cloud.tenant}", resource="https://vault.azure.net"'
    )
    assert answer.json()["error"]["code"] == "Unauthorized"


def test_the_client_checks_the_challenge_unless_it_is_told_not_to(cloud: CloudProcess) -> None:
    with pytest.raises(ValueError, match="does not match the requested domain"):
        SecretClient(cloud.vault_url, signed_in(cloud)).get_secret("a")


def test_a_secret_is_written_read_and_kept_by_version(cloud: CloudProcess) -> None:
    """azure-and-aidbox A: the client's secret with the tag `jwks_url`."""
    client = secrets_of(cloud)
    first = client.set_secret("client-1", "old", tags={"jwks_url": "https://apim/jwks.json"})
    second = client.set_secret("client-1", "new", content_type="text/plain")
    assert client.get_secret("client-1").value == "new"
    assert client.get_secret("client-1").properties.content_type == "text/plain"
    pinned = client.get_secret("client-1", first.properties.version)
    assert (pinned.value, pinned.properties.tags) == ("old", {"jwks_url": "https://apim/jwks.json"})
    listed = list(client.list_properties_of_secret_versions("client-1"))
    assert {one.version for one in listed} == {first.properties.version, second.properties.version}
    assert pinned.id == f"{cloud.vault_url}/secrets/client-1/{first.properties.version}"
    assert "client-1" in [one.name for one in client.list_properties_of_secrets()]


def test_versions_come_page_by_page_in_the_order_of_their_ids(cloud: CloudProcess) -> None:
    for number in range(27):
        cloud.vault_secret("many", str(number))
    versions = [one.version for one in secrets_of(cloud).list_properties_of_secret_versions("many")]
    assert len(versions) == 27
    assert versions == sorted(versions)
    pages = secrets_of(cloud).list_properties_of_secret_versions("many", max_page_size=10).by_page()
    assert [len(list(page)) for page in pages] == [10, 10, 7]


def test_a_disabled_secret_and_one_that_is_not_there_are_refused(cloud: CloudProcess) -> None:
    client = secrets_of(cloud, "Secrets-User")
    cloud.vault_secret("off", "v", enabled=False)
    with pytest.raises(HttpResponseError) as disabled:
        client.get_secret("off")
    assert refusal(disabled.value) == (403, "SecretDisabled")
    with pytest.raises(ResourceNotFoundError, match="SecretNotFound"):
        client.get_secret("never-was")
    cloud.vault_secret("on", "v")
    with pytest.raises(ResourceNotFoundError, match="SecretNotFound"):
        client.get_secret("on", "0" * 32)


def test_an_updated_secret_keeps_its_value(cloud: CloudProcess) -> None:
    client = secrets_of(cloud)
    made = client.set_secret("changing", "v", tags={"a": "1"})
    changed = client.update_secret_properties(
        "changing", made.properties.version, enabled=False, tags={"b": "2"}
    )
    assert (changed.enabled, changed.tags) == (False, {"b": "2"})
    client.update_secret_properties("changing", made.properties.version, enabled=True)
    assert client.get_secret("changing").value == "v"


@pytest.mark.parametrize(
    ("who", "value", "metadata", "write", "sign"),
    [
        ("nobody", False, False, False, False),
        ("Reader", False, True, False, False),
        ("Secrets-User", True, True, False, False),
        ("Crypto-User", False, False, False, True),
        ("Administrator", True, True, True, True),
    ],
)
def test_each_role_opens_what_azure_says_and_no_more(
    cloud: CloudProcess, who: str, value: bool, metadata: bool, write: bool, sign: bool
) -> None:
    cloud.vault_secret("shared", "v")
    key = cloud.vault_key("shared")["key"]["kid"]
    client = secrets_of(cloud, who)
    attempts = [
        (lambda: client.get_secret("shared"), value),
        (lambda: list(client.list_properties_of_secrets()), metadata),
        (lambda: client.set_secret("written-by-" + who, "v"), write),
        (lambda: signer(cloud, key, who).sign(SignatureAlgorithm.es384, DIGEST), sign),
    ]
    for attempt, allowed in attempts:
        if allowed:
            attempt()
            continue
        with pytest.raises(HttpResponseError) as refused:
            attempt()
        assert refusal(refused.value) == (403, "ForbiddenByRbac")


def test_a_role_that_is_taken_away_ends_at_once(cloud: CloudProcess) -> None:
    object_id = cloud.register_application("fleeting", secret="s", vault_roles=["Key Vault Secrets User"])
    cloud.vault_secret("shared", "v")
    client = secrets_of(cloud, "fleeting")
    assert client.get_secret("shared").value == "v"
    cloud.allow_vault(object_id["object_id"], [])
    with pytest.raises(HttpResponseError, match="Caller is not authorized"):
        client.get_secret("shared")


def test_an_ec_key_signs_es384_as_jose_wants_it(cloud: CloudProcess) -> None:
    """azure-and-aidbox E: the digest goes in, raw r and s come out, the private key stays."""
    key = keys_of(cloud).create_ec_key("ec", curve="P-384")
    signature = signer(cloud, key).sign(SignatureAlgorithm.es384, DIGEST).signature
    assert len(signature) == 96
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    ec_public(key).verify(utils.encode_dss_signature(r, s), DIGEST, ec.ECDSA(PREHASHED))
    asked = [one for one in cloud.requests("vault") if one["path"].endswith("/sign")][-1]
    assert (asked["algorithm"], asked["version"]) == ("ES384", key.properties.version)


def test_an_rsa_key_signs_rs384_and_ps384(cloud: CloudProcess) -> None:
    key = keys_of(cloud).create_rsa_key("rsa", size=3072)
    numbers = rsa.RSAPublicNumbers(
        int.from_bytes(key.key.e, "big"),  # type: ignore[attr-defined]
        int.from_bytes(key.key.n, "big"),  # type: ignore[attr-defined]
    )
    public = numbers.public_key()
    assert public.key_size == 3072
    client = signer(cloud, key)
    signature = client.sign(SignatureAlgorithm.rs384, DIGEST).signature
    public.verify(signature, DIGEST, padding.PKCS1v15(), PREHASHED)
    signature = client.sign(SignatureAlgorithm.ps384, DIGEST).signature
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    public.verify(signature, DIGEST, pss, PREHASHED)


def test_an_identifier_without_version_signs_with_the_newest(cloud: CloudProcess) -> None:
    cloud.vault_key("newest")
    newest = keys_of(cloud).rotate_key("newest")
    signed = signer(cloud, f"{cloud.vault_url}/keys/newest").sign(SignatureAlgorithm.es384, DIGEST)
    r, s = int.from_bytes(signed.signature[:48], "big"), int.from_bytes(signed.signature[48:], "big")
    ec_public(newest).verify(utils.encode_dss_signature(r, s), DIGEST, ec.ECDSA(PREHASHED))
    url = f"{cloud.vault_url}/keys/newest//sign?api-version=7.6"
    body = {"alg": "ES384", "value": jose(DIGEST)}
    assert http().post(url, json=body, headers=bearer(cloud)).json()["kid"] == newest.id


def jose(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_private_parts_are_never_shown(cloud: CloudProcess) -> None:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for name, bundle in (
        ("ec-made", cloud.vault_key("ec-made")),
        ("rsa-made", cloud.vault_key("rsa-made", kty="RSA", size=2048)),
        ("rsa-brought", cloud.vault_key("rsa-brought", pem=pem)),
    ):
        seen = http().get(f"{cloud.vault_url}/keys/{name}?api-version=7.6", headers=bearer(cloud)).json()
        assert seen == bundle
        members = {"kid", "kty", "key_ops", *(("crv", "x", "y") if name == "ec-made" else ("n", "e"))}
        assert set(seen["key"]) == members
    modulus = keys_of(cloud).get_key("rsa-brought").key.n  # type: ignore[attr-defined]
    assert int.from_bytes(modulus, "big") == own.public_key().public_numbers().n


def test_rotation_makes_a_version_of_the_same_kind_and_keeps_the_old(cloud: CloudProcess) -> None:
    client = keys_of(cloud)
    old = client.create_ec_key("turning", curve="P-384", tags={"use": "export"})
    new = client.rotate_key("turning")
    assert new.properties.version != old.properties.version
    assert (new.key.crv, new.properties.tags) == ("P-384", {"use": "export"})  # type: ignore[attr-defined]
    assert client.get_key("turning").properties.version == new.properties.version
    kept = client.get_key("turning", old.properties.version)
    assert kept.key.x == old.key.x != new.key.x  # type: ignore[attr-defined]
    versions = [one.version for one in client.list_properties_of_key_versions("turning")]
    assert versions == sorted([old.properties.version, new.properties.version])  # type: ignore[type-var]
    assert "turning" in [one.name for one in client.list_properties_of_keys()]


def test_nbf_exp_and_enabled_decide_whether_a_key_signs(cloud: CloudProcess) -> None:
    """Key Vault's date-time rules: sign is refused outside, verify is not; a public key is always read."""
    client, now = keys_of(cloud), datetime.now(UTC)
    key = client.create_ec_key("timed", curve="P-384")
    version = key.properties.version
    signature = signer(cloud, key.id).sign(SignatureAlgorithm.es384, DIGEST).signature
    hour, day = timedelta(hours=1), timedelta(days=1)
    for change, reason in (
        ({"not_before": now + hour}, "KeyNotYetValid"),
        ({"not_before": now - day, "expires_on": now - hour}, "KeyExpired"),
        ({"expires_on": now + hour, "enabled": False}, "KeyDisabled"),
    ):
        client.update_key_properties("timed", version, **change)
        with pytest.raises(HttpResponseError) as refused:
            signer(cloud, key.id).sign(SignatureAlgorithm.es384, DIGEST)
        assert refusal(refused.value) == (403, reason)
        assert client.get_key("timed", version).key.x == key.key.x  # type: ignore[attr-defined]
    body = {"alg": "ES384", "digest": jose(DIGEST), "value": jose(signature)}
    url = f"{key.id}/verify?api-version=7.6"
    assert http().post(url, json=body, headers=bearer(cloud)).status_code == 403
    client.update_key_properties("timed", version, enabled=True, expires_on=now - hour)
    assert http().post(url, json=body, headers=bearer(cloud)).json() == {"value": True}
    wrong = {**body, "value": jose(bytes(96))}
    assert http().post(url, json=wrong, headers=bearer(cloud)).json() == {"value": False}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"alg": "RS384", "value": jose(DIGEST)}, "incompatible"),
        ({"alg": "ES256", "value": jose(bytes(32))}, "incompatible"),
        ({"alg": "none", "value": jose(DIGEST)}, "'alg'"),
        ({"alg": "ES384", "value": jose(b"header.claims")}, "13 bytes. ES384 requires 48 bytes"),
        ({"alg": "ES384", "value": "not base64url!"}, "base64url"),
        ({"alg": "ES384"}, "base64url"),
    ],
)
def test_what_cannot_be_signed_is_a_bad_parameter(
    cloud: CloudProcess, body: dict[str, str], message: str
) -> None:
    identifier = cloud.vault_key("strict")["key"]["kid"]
    answer = http().post(f"{identifier}/sign?api-version=7.6", json=body, headers=bearer(cloud))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "BadParameter"
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/keys/absent?api-version=7.6", 404),
        ("/keys/strict", 400),
        ("/keys/strict?api-version=1.0", 400),
        ("/keys/under_score?api-version=7.6", 400),
        ("/secrets?api-version=7.6&maxresults=26", 400),
        ("/other?api-version=7.6", 404),
    ],
)
def test_version_name_and_path_are_checked(cloud: CloudProcess, path: str, status: int) -> None:
    cloud.vault_key("strict")
    assert http().get(cloud.vault_url + path, headers=bearer(cloud)).status_code == status


def test_a_token_for_another_audience_or_of_another_maker_is_refused(cloud: CloudProcess) -> None:
    url = cloud.vault_url + "/keys?api-version=7.6"
    storage = http().get(url, headers=bearer(cloud, "https://storage.azure.com"))
    assert "AKV10022: Invalid audience. Expected https://vault.azure.net" in storage.text
    slash = http().get(url, headers=bearer(cloud, "https://vault.azure.net/"))
    assert "found: https://vault.azure.net/." in slash.text
    good = bearer(cloud)["Authorization"].removeprefix("Bearer ")
    claims = jwt.decode(good, options={"verify_signature": False})
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    kid = jwt.get_unverified_header(good)["kid"]
    forged = [
        jwt.encode(claims, own, algorithm="RS256", headers={"kid": kid}),
        jwt.encode(claims, own, algorithm="RS256", headers={"kid": "other"}),
        jwt.encode(claims, "", algorithm="none", headers={"kid": kid}),
        "opaque",
    ]
    for token in forged:
        answer = http().get(url, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer authorization=")


def test_an_expired_token_is_renewed_by_the_client(authority: Authority) -> None:
    with start_cloud(certificate=authority.certificate, key=authority.key, token_seconds=3) as cloud:
        cloud.register_application("Administrator", secret="s", vault_roles=["Key Vault Administrator"])
        cloud.vault_secret("a", "v")
        headers = bearer(cloud)
        client = secrets_of(cloud)
        assert client.get_secret("a").value == "v"
        claims = jwt.decode(headers["Authorization"].split()[1], options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == 3
        time.sleep(max(0.0, claims["exp"] + 0.1 - time.time()))
        refused = http().get(cloud.vault_url + "/secrets/a?api-version=7.6", headers=headers)
        assert (refused.status_code, "TokenExpired" in refused.text) == (401, True)
        assert client.get_secret("a").value == "v"


def test_a_revoked_token_is_asked_for_again_by_a_new_sign_in(cloud: CloudProcess) -> None:
    cloud.vault_secret("shared", "v")
    client = secrets_of(cloud)
    assert client.get_secret("shared").value == "v"
    cloud.revoke_tokens()
    with pytest.raises(ClientAuthenticationError, match="TokenRevoked"):
        client.get_secret("shared")
    _credential.cache_clear()
    assert secrets_of(cloud).get_secret("shared").value == "v"


def test_throttling_is_sat_out_by_the_clients(cloud: CloudProcess) -> None:
    cloud.vault_secret("busy", "v")
    cloud.fail(next=2, status=429, retry_after=0, path="^/secrets/busy")
    assert secrets_of(cloud, "Secrets-User").get_secret("busy").value == "v"
    seen = [one["status"] for one in cloud.requests("vault") if one["path"].startswith("/secrets/busy")]
    assert seen.count(429) == 2
    assert seen[-1] == 200
    cloud.fail(next=9, status=503, path="^/secrets/busy")
    with pytest.raises(HttpResponseError) as refused:
        secrets_of(cloud, "Secrets-User", retry_total=1, retry_backoff_factor=0).get_secret("busy")
    assert refused.value.status_code == 503
    cloud.fail(next=0)
    assert secrets_of(cloud, "Secrets-User").get_secret("busy").value == "v"


def test_a_managed_identity_reads_a_secret_asynchronously(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.vault_secret("shared", "v")
    cloud.assign_identity(vault_roles=["Key Vault Secrets User"])
    for name, value in cloud.identity_environment.items():
        monkeypatch.setenv(name, value)

    async def read() -> str | None:
        credential = azure.identity.aio.ManagedIdentityCredential()
        client = azure.keyvault.secrets.aio.SecretClient(
            cloud.vault_url, credential, verify_challenge_resource=False
        )
        async with credential, client:
            return (await client.get_secret("shared")).value

    assert asyncio.run(read()) == "v"
    blocking = SecretClient(cloud.vault_url, ManagedIdentityCredential(), verify_challenge_resource=False)
    assert blocking.get_secret("shared").value == "v"


def test_a_deleted_name_is_in_the_way_until_it_is_recovered_or_purged(cloud: CloudProcess) -> None:
    client = secrets_of(cloud)
    client.set_secret("gone", "v")
    client.begin_delete_secret("gone").wait()
    with pytest.raises(ResourceNotFoundError, match="SecretNotFound"):
        client.get_secret("gone")
    assert "gone" not in [one.name for one in client.list_properties_of_secrets()]
    with pytest.raises(ResourceExistsError) as conflict:
        client.set_secret("gone", "w")
    assert refusal(conflict.value) == (409, "ObjectIsDeletedButRecoverable")
    client.begin_recover_deleted_secret("gone").wait()
    assert client.get_secret("gone").value == "v"
    keys = keys_of(cloud)
    old = keys.create_ec_key("gone", curve="P-384")
    assert keys.begin_delete_key("gone").result().recovery_id == f"{cloud.vault_url}/deletedkeys/gone"
    keys.purge_deleted_key("gone")
    assert keys.create_ec_key("gone", curve="P-384").id != old.id


def test_the_firewall_is_told_apart_from_a_missing_role(cloud: CloudProcess) -> None:
    cloud.fail(next=1, status=403, path="^/secrets/firewalled")
    with pytest.raises(HttpResponseError) as refused:
        secrets_of(cloud).get_secret("firewalled")
    assert refusal(refused.value) == (403, "ForbiddenByFirewall")


def test_the_log_tells_who_asked_and_which_bearer_it_was(cloud: CloudProcess) -> None:
    cloud.vault_secret("logged", "a-value-that-is-nobodys-business")
    headers = bearer(cloud)
    http().get(cloud.vault_url + "/secrets/logged?api-version=7.6", headers=headers)
    entry = cloud.requests("vault")[-1]
    token = headers["Authorization"].removeprefix("Bearer ")
    assert entry["principal"] == "Administrator"
    assert entry["audience"] == "https://vault.azure.net"
    assert entry["bearer"] == hashlib.sha256(token.encode()).hexdigest()[:16]
    assert "a-value-that-is-nobodys-business" not in str(cloud.requests())
