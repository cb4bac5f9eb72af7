"""Keys and secrets in Key Vault, with the real azure-identity and azure-keyvault clients over TLS.

The vault is the stand-in of pipeline.sandbox.cloud, written from the vendor's documentation by someone else.
PyJWT and cryptography judge the signatures.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from authority import Authority
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.auth.assertion import client_assertion
from pipeline.auth.jwk import PRIVATE_MEMBERS
from pipeline.auth.keyring import key_ring
from pipeline.auth.keys import Algorithm, generate_key
from pipeline.auth.rotation import KeyRing
from pipeline.auth.signers import PemSigner
from pipeline.azure.keyvault import address_of, read_secret
from pipeline.config import Config, KeyVaultAuth
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud

SECRET = "correct-horse-battery-staple-1"
AUDIENCE = "https://as.example.org/auth/token"
WAIT = timedelta(minutes=15)
SECOND = timedelta(seconds=1)
KINDS: dict[Algorithm, dict[str, Any]] = {
    "RS384": {"kty": "RSA", "size": 3072},
    "ES384": {"kty": "EC", "curve": "P-384"},
}


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        yield running


@pytest.fixture
def principal(cloud: CloudProcess) -> dict[str, str]:
    """An application of its own for each test, so that nothing that the process has kept helps it."""
    return cloud.register_application(
        secret=SECRET, vault_roles=["Key Vault Secrets User", "Key Vault Crypto Officer"]
    )


@pytest.fixture
def vault(cloud: CloudProcess, principal: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> KeyVaultAuth:
    monkeypatch.setenv("VAULT_CLIENT_SECRET", SECRET)
    return identity(cloud, principal["client_id"])


def identity(cloud: CloudProcess, client_id: str, **changes: Any) -> KeyVaultAuth:
    return KeyVaultAuth.model_validate(
        {
            "kind": "service-principal",
            "tenant_id": cloud.tenant,
            "client_id": client_id,
            "client_secret": "env:VAULT_CLIENT_SECRET",
            "authority": cloud.authority,
            "verify_challenge_resource": False,
            **changes,
        }
    )


def new_name(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def ring(
    cloud: CloudProcess, name: str, vault: KeyVaultAuth, *, algorithm: Algorithm = "ES384", **changes: Any
) -> KeyRing:
    options = {"kid": None, "wait": WAIT, "folder": Path(), **changes}
    return key_ring(f"keyvault:{cloud.vault_url}/keys/{name}", algorithm=algorithm, vault=vault, **options)


def signed_before(cloud: CloudProcess, name: str) -> list[str]:
    """Paths of the sign requests that the vault has seen for the key."""
    return [
        each["path"]
        for each in cloud.requests("vault")
        if f"/keys/{name}/" in each["path"] and each["path"].endswith("/sign")
    ]


def all_requests(cloud: CloudProcess, part: str) -> int:
    return sum(part in each["path"] for each in cloud.requests("vault"))


# --- signing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_the_vault_signs_and_only_the_public_half_is_ever_seen_here(
    cloud: CloudProcess, vault: KeyVaultAuth, algorithm: Algorithm
) -> None:
    """azure-and-aidbox E: sign(rs384|es384, sha384 digest); kid is our own RFC 7638 thumbprint."""
    name = new_name("signs")
    bundle = cloud.vault_key(name, **KINDS[algorithm])
    signer = ring(cloud, name, vault, algorithm=algorithm).signer()
    jwk = signer.public_jwk()
    token = client_assertion(signer, client_id="nightly", audience=AUDIENCE)
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["kid"]) == (algorithm, jwk["kid"])
    claims = jwt.decode(token, jwt.PyJWK(jwk), algorithms=[algorithm], audience=AUDIENCE)
    assert claims["iss"] == claims["sub"] == "nightly"

    assert not PRIVATE_MEMBERS & jwk.keys()
    members = {"RS384": ("n", "e"), "ES384": ("x", "y")}[algorithm]
    assert {each: jwk[each] for each in members} == {each: bundle["key"][each] for each in members}
    required = {
        "RS384": '{"e":"%(e)s","kty":"RSA","n":"%(n)s"}',
        "ES384": '{"crv":"P-384","kty":"EC","x":"%(x)s","y":"%(y)s"}',
    }
    canonical = (required[algorithm] % jwk).encode()
    assert jwk["kid"] == jwt.utils.base64url_encode(hashlib.sha256(canonical).digest()).decode()

    version = bundle["key"]["kid"].rpartition("/")[2]
    assert signed_before(cloud, name) == [f"/keys/{name}/{version}/sign"], "pinned to the version"


def test_an_es384_signature_is_r_and_s_in_96_bytes_every_time(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("raw")
    cloud.vault_key(name)
    signer = ring(cloud, name, vault).signer()
    public = jwt.PyJWK(signer.public_jwk())
    algorithm = jwt.get_algorithm_by_name("ES384")
    for number in range(20):
        message = f"message {number}".encode()
        signature = signer.sign(message)
        assert len(signature) == 96
        assert algorithm.verify(message, public.key, signature)
        assert not algorithm.verify(message + b".", public.key, signature)


def test_a_configured_kid_is_used_and_a_version_in_the_reference_stays(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("pinned")
    first = cloud.vault_key(name)["key"]["kid"].rpartition("/")[2]
    cloud.vault_key(name)
    pinned = ring(cloud, f"{name}/{first}", vault, kid="ours")
    (jwk,) = pinned.public_jwks()
    assert jwk["kid"] == pinned.signer().kid == "ours"
    pinned.signer().sign(b"message")
    assert signed_before(cloud, name) == [f"/keys/{name}/{first}/sign"]
    with pytest.raises(ConfigError, match="names one version") as refused:
        ring(cloud, f"{name}/{first}", vault).rotate()
    assert "Take the version off" in refused.value.advice
    with pytest.raises(ConfigError, match=r"auth\.kid 'ours'"):
        ring(cloud, name, vault, kid="ours").rotate()


@pytest.mark.parametrize(
    ("algorithm", "made", "words"),
    [
        ("RS384", {"kty": "EC", "curve": "P-384"}, "RS384 needs an RSA key"),
        ("ES384", {"kty": "RSA", "size": 2048}, "ES384 needs an elliptic curve key"),
        ("ES384", {"kty": "EC", "curve": "P-256"}, "P-384"),
        ("ES384", {"kty": "EC", "curve": "P-521"}, "P-384"),
    ],
)
def test_a_key_that_does_not_fit_the_algorithm_is_refused_before_it_is_used(
    cloud: CloudProcess, vault: KeyVaultAuth, algorithm: Algorithm, made: dict[str, Any], words: str
) -> None:
    name = new_name("misfit")
    cloud.vault_key(name, **made)
    keys = ring(cloud, name, vault, algorithm=algorithm)
    for use in (keys.signer, keys.public_jwks, keys.rotate):
        with pytest.raises(ConfigError, match=words) as refused:
            use()
        assert name in refused.value.cause
        assert "az keyvault key create" in refused.value.advice
    assert len({each["path"] for each in cloud.requests("vault") if f"/{name}/create" in each["path"]}) == 0


def test_ticks_do_not_ask_the_vault_again(cloud: CloudProcess, vault: KeyVaultAuth) -> None:
    name = new_name("ticks")
    cloud.vault_key(name)
    for _ in range(20):
        ring(cloud, name, vault).signer().public_jwk()
        ring(cloud, name, vault).public_jwks()
    assert all_requests(cloud, f"/keys/{name}") <= 4, "a challenge, the list, the public half"


def test_while_the_vault_is_away_the_keys_are_those_of_before(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("away")
    cloud.vault_key(name)
    brief = timedelta(0)
    kid = ring(cloud, name, vault, wait=brief).signer().kid
    with pytest.raises(Unreachable):
        cloud.fail(50, status=503, path=f"/keys/{name}")
        ring(cloud, name, vault, wait=brief).rotate()
    assert ring(cloud, name, vault, wait=brief).public_jwks()[0]["kid"] == kid
    cloud.fail(0)
    assert ring(cloud, name, vault, wait=brief).signer().kid == kid


# --- rotation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_a_rotation_makes_a_version_alike_that_everyone_sees_at_once_and_that_signs_later(
    cloud: CloudProcess, vault: KeyVaultAuth, principal: dict[str, str], algorithm: Algorithm
) -> None:
    name = new_name("turns")
    first = cloud.vault_key(name, **KINDS[algorithm], tags={"owner": "exports"})["key"]
    keys = ring(cloud, name, vault, algorithm=algorithm)
    before = keys.signer().kid
    now = datetime.now(UTC)
    rotation = keys.rotate(now)
    assert rotation.signs_from == now + WAIT

    # Another machine: another identity, which may use keys but not make them.
    other = cloud.register_application(secret=SECRET, vault_roles=["Key Vault Crypto User"])
    for machine in (vault, identity(cloud, other["client_id"])):
        seen = ring(cloud, name, machine, algorithm=algorithm)
        course = {
            now: [before, rotation.kid],
            now + WAIT - SECOND: [before, rotation.kid],
            now + WAIT: [rotation.kid, before],
            now + 2 * WAIT - SECOND: [rotation.kid, before],
            now + 2 * WAIT: [rotation.kid],
        }
        for moment, published in course.items():
            assert [jwk["kid"] for jwk in seen.public_jwks(moment)] == published, moment
            assert seen.signer(moment).kid == published[0], moment
        token = client_assertion(seen.signer(now + WAIT), client_id="nightly", audience=AUDIENCE)
        public = {jwk["kid"]: jwt.PyJWK(jwk) for jwk in seen.public_jwks(now)}
        jwt.decode(token, public[rotation.kid], algorithms=[algorithm], audience=AUDIENCE)

    jwk = next(jwk for jwk in keys.public_jwks(now) if jwk["kid"] == rotation.kid)
    assert jwk["kty"] == first["kty"]
    if algorithm == "RS384":
        assert len(jwt.utils.base64url_decode(jwk["n"])) == 384
    else:
        assert isinstance(jwt.PyJWK(jwk).key, ec.EllipticCurvePublicKey)
    with pytest.raises(ConfigError, match="under way"):
        ring(cloud, name, identity(cloud, other["client_id"]), algorithm=algorithm).rotate(now)


def test_a_rotation_is_refused_while_one_waits_and_possible_right_after(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("twice")
    cloud.vault_key(name)
    keys = ring(cloud, name, vault)
    now = datetime.now(UTC)
    rotation = keys.rotate(now)
    with pytest.raises(ConfigError, match="under way") as refused:
        keys.rotate(now + WAIT - SECOND)
    assert rotation.kid in refused.value.cause
    assert all_requests(cloud, f"/keys/{name}/create") == 1
    third = keys.rotate(now + WAIT)
    published = [jwk["kid"] for jwk in keys.public_jwks(now + WAIT)]
    assert published[0] == rotation.kid
    assert published.count(third.kid) == 1
    assert len(published) == 3
    assert keys.signer(now + 2 * WAIT).kid == third.kid


def test_rotations_at_once_leave_no_key_but_those_that_they_report(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    """A vault has no compare-and-swap: who comes second takes its own version back."""
    name = new_name("race")
    cloud.vault_key(name)
    before = ring(cloud, name, vault).signer().kid
    now = datetime.now(UTC)
    barrier = threading.Barrier(4)
    outcomes: list[str | None] = []

    def rotate() -> None:
        barrier.wait()
        try:
            outcomes.append(ring(cloud, name, vault).rotate(now).kid)
        except ConfigError as refused:
            assert "under way" in refused.cause
            outcomes.append(None)

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = {kid for kid in outcomes if kid is not None}
    assert len(outcomes) == 4
    assert made
    keys = ring(cloud, name, vault)
    assert {jwk["kid"] for jwk in keys.public_jwks(now)} == {before, *made}
    assert keys.signer(now).kid == before
    assert keys.signer(now + WAIT).kid in made


def test_a_machine_that_may_not_make_keys_is_told_the_role(cloud: CloudProcess, vault: KeyVaultAuth) -> None:
    name = new_name("user")
    cloud.vault_key(name)
    user = cloud.register_application(secret=SECRET, vault_roles=["Key Vault Crypto User"])
    keys = ring(cloud, name, identity(cloud, user["client_id"]))
    keys.signer().sign(b"message")
    with pytest.raises(AuthError, match="may not use") as refused:
        keys.rotate()
    assert "'Key Vault Crypto Officer'" in refused.value.advice
    assert refused.value.exit_code == 3


def test_disabling_a_compromised_version_lets_the_next_one_sign_at_once(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("stolen")
    cloud.vault_key(name, enabled=False)
    cloud.vault_key(name, tags={"signs-from": "2999-01-01T00:00:00Z"})
    keys = ring(cloud, name, vault)
    signer = keys.signer()
    assert [jwk["kid"] for jwk in keys.public_jwks()] == [signer.kid]
    signer.sign(b"message")
    disabled = new_name("none")
    cloud.vault_key(disabled, enabled=False)
    with pytest.raises(ConfigError, match="is disabled or has expired"):
        ring(cloud, disabled, vault).signer()


# --- secrets -----------------------------------------------------------------------------------------


def test_a_secret_is_read_by_reference_and_kept_for_a_minute(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("password")
    old = cloud.vault_secret(name, "yesterday's")["id"].rpartition("/")[2]
    cloud.vault_secret(name, "gehëim\n")
    config = Config(lake="lake", keyvault_auth=vault)
    for _ in range(20):
        assert config.secret(f"keyvault:{cloud.vault_url}/secrets/{name}") == "gehëim\n".encode()
    assert config.secret(f"keyvault:{cloud.vault_url}/secrets/{name}/") == "gehëim\n".encode()
    assert config.secret(f"keyvault:{cloud.vault_url}/secrets/{name}/{old}") == b"yesterday's"
    asked = [each for each in cloud.requests("vault") if f"/secrets/{name}" in each["path"]]
    assert sum(each["status"] == 200 for each in asked) == 2


def test_a_private_key_may_be_a_secret_of_the_vault_and_then_signs_here(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name, pem = new_name("pem"), generate_key("ES384")
    cloud.vault_secret(name, pem.decode())
    reference = f"keyvault:{cloud.vault_url}/secrets/{name}"
    lone = key_ring(reference, algorithm="ES384", kid=None, wait=WAIT, folder=Path(), vault=vault)
    assert lone.public_jwks() == [PemSigner.from_pem(pem, "ES384").public_jwk()]
    with pytest.raises(ConfigError, match="no place for the next"):
        lone.rotate()


def test_every_kind_of_identity_opens_the_vault(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = new_name("any")
    cloud.vault_secret(name, "value")
    url = f"{cloud.vault_url}/secrets/{name}"
    roles = ["Key Vault Secrets User"]

    managed = cloud.assign_identity(system=False, vault_roles=roles)
    for variable, value in cloud.identity_environment.items():
        monkeypatch.setenv(variable, value)
    auth = KeyVaultAuth(
        kind="managed-identity", client_id=managed["client_id"], verify_challenge_resource=False
    )
    assert read_secret(url, auth, tmp_path) == b"value"

    workload = cloud.register_application(federated=True, vault_roles=roles)
    for variable, value in cloud.workload_environment(workload["client_id"], tmp_path).items():
        monkeypatch.setenv(variable, value)
    auth = KeyVaultAuth(kind="workload-identity", authority=cloud.authority, verify_challenge_resource=False)
    assert read_secret(url, auth, tmp_path) == b"value"


# --- refusals ----------------------------------------------------------------------------------------


def refusal(url: str, vault: KeyVaultAuth, folder: Path = Path()) -> ExportError:
    with pytest.raises(ExportError) as caught:
        read_secret(url, vault, folder)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None, "the library's error holds request and answer"
    assert SECRET not in str(error)
    return error


def test_what_is_not_there_disabled_or_out_of_date_is_said(cloud: CloudProcess, vault: KeyVaultAuth) -> None:
    missing = refusal(f"{cloud.vault_url}/secrets/nowhere", vault)
    assert isinstance(missing, ConfigError)
    assert "is not in the vault (SecretNotFound)" in missing.cause
    disabled = new_name("off")
    cloud.vault_secret(disabled, "value", enabled=False)
    off = refusal(f"{cloud.vault_url}/secrets/{disabled}", vault)
    assert isinstance(off, ConfigError)
    assert "is disabled in the vault" in off.cause
    with pytest.raises(ConfigError, match=r"is not in the vault \(KeyNotFound\)|has no version"):
        ring(cloud, "nowhere", vault).signer()
    expired = new_name("old")
    version = cloud.vault_key(expired, exp=int(time.time()) - 60, nbf=int(time.time()) - 120)
    with pytest.raises(ConfigError, match="disabled or has expired"):
        ring(cloud, expired, vault).signer()
    pinned = ring(cloud, f"{expired}/{version['key']['kid'].rpartition('/')[2]}", vault)
    with pytest.raises(ConfigError, match="has expired"):
        pinned.signer().sign(b"message")


def test_a_missing_role_is_named(cloud: CloudProcess, vault: KeyVaultAuth, principal: dict[str, str]) -> None:
    name = new_name("closed")
    cloud.vault_secret(name, "value")
    cloud.vault_key(name)
    cloud.allow_vault(principal["object_id"], [])
    error = refusal(f"{cloud.vault_url}/secrets/{name}", vault)
    assert isinstance(error, AuthError)
    assert "'Key Vault Secrets User'" in error.advice
    assert "HTTP 403" in error.cause
    with pytest.raises(AuthError) as caught:
        ring(cloud, name, vault).signer()
    assert "'Key Vault Crypto User'" in caught.value.advice
    cloud.allow_vault(principal["object_id"], ["Key Vault Secrets User"])
    assert read_secret(f"{cloud.vault_url}/secrets/{name}", vault, Path()) == b"value"


def test_a_wrong_or_expired_secret_of_the_vault_s_own_identity_is_entra_s_refusal_and_can_be_repaired(
    cloud: CloudProcess, vault: KeyVaultAuth, principal: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """azure-and-aidbox C: AADSTS7000215 and 7000222 are not retryable, and the message says what to do."""
    name = new_name("entra")
    cloud.vault_secret(name, "value")
    url = f"{cloud.vault_url}/secrets/{name}"
    monkeypatch.setenv("VAULT_CLIENT_SECRET", "not-it-S3CRET")
    wrong = refusal(url, vault)
    assert isinstance(wrong, AuthError)
    assert "AADSTS7000215" in wrong.cause
    assert "store its value, not its id" in wrong.advice
    assert "S3CRET" not in str(wrong)
    monkeypatch.setenv("VAULT_CLIENT_SECRET", SECRET)
    assert read_secret(url, vault, Path()) == b"value", "the new one is read without a restart"

    unknown = refusal(url, identity(cloud, str(uuid.uuid4())))
    assert isinstance(unknown, AuthError)
    assert "AADSTS700016" in unknown.cause
    late = cloud.register_application(secret=SECRET, vault_roles=["Key Vault Secrets User"])
    cloud.expire_secret(late["client_id"])
    expired = refusal(url, identity(cloud, late["client_id"]))
    assert "AADSTS7000222" in expired.cause
    assert "expired" in expired.advice


def test_a_throttled_vault_is_tried_again_and_then_left_for_later(
    cloud: CloudProcess, vault: KeyVaultAuth
) -> None:
    name = new_name("busy")
    cloud.vault_secret(name, "value")
    url = f"{cloud.vault_url}/secrets/{name}"
    cloud.fail(1, status=429, retry_after=1, path=f"/secrets/{name}")
    assert read_secret(url, vault, Path()) == b"value"

    other = new_name("busier")
    cloud.vault_secret(other, "value")
    cloud.fail(1, status=429, retry_after=600, path=f"/secrets/{other}")
    begun = time.monotonic()
    error = refusal(f"{cloud.vault_url}/secrets/{other}", vault)
    assert time.monotonic() - begun < 60, "a sensor's tick does not sleep for ten minutes"
    assert isinstance(error, Unreachable)
    assert error.retry_after == 600
    assert "slow down" in error.cause


def test_a_vault_that_is_not_there_is_unreachable_in_words(
    vault: KeyVaultAuth,
) -> None:
    unknown = refusal("https://no-such-vault.invalid/secrets/name", vault)
    assert isinstance(unknown, Unreachable)
    assert "DNS" in unknown.cause
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    silent = refusal(f"https://127.0.0.1:{port}/secrets/name", vault)
    assert isinstance(silent, Unreachable)
    assert f"127.0.0.1:{port}" in silent.cause


def test_the_token_goes_to_no_host_outside_the_vaults_domain_unless_that_is_configured(
    cloud: CloudProcess, vault: KeyVaultAuth, principal: dict[str, str]
) -> None:
    name = new_name("strict")
    cloud.vault_secret(name, "value")
    strict = identity(cloud, principal["client_id"], verify_challenge_resource=True)
    error = refusal(f"{cloud.vault_url}/secrets/{name}", strict)
    assert isinstance(error, ConfigError)
    assert "verify_challenge_resource" in error.advice
    asked = [each for each in cloud.requests("vault") if f"/secrets/{name}" in each["path"]]
    assert all(each["bearer"] is None for each in asked)


def test_the_vault_s_own_secret_cannot_be_in_the_vault(cloud: CloudProcess, vault: KeyVaultAuth) -> None:
    own = identity(cloud, vault.client_id or "", client_secret=f"keyvault:{cloud.vault_url}/secrets/anything")
    error = refusal(f"{cloud.vault_url}/secrets/x", own)
    assert isinstance(error, ConfigError)
    assert "Use file: or env:" in error.advice


@pytest.mark.parametrize(
    "url",
    [
        "http://name.vault.azure.net/secrets/a",
        "name.vault.azure.net/secrets/a",
        "https:///secrets/a",
        "https://name.vault.azure.net/",
        "https://name.vault.azure.net/secrets",
        "https://name.vault.azure.net/certificates/a",
        "https://name.vault.azure.net/secrets/a/b/c",
        "https://name.vault.azure.net/secrets/a_b",
        "https://name.vault.azure.net/secrets/../keys/a",
        "https://name.vault.azure.net/secrets/a?sig=S3CRET",
        "https://name.vault.azure.net/secrets/a#S3CRET",
        "https://user:S3CRET@name.vault.azure.net/secrets/a",
        "https://evil.example\\.vault.azure.net/secrets/a",
        "https://name.vault.azure.net:port/secrets/a",
    ],
)
def test_a_reference_that_is_no_address_in_a_vault_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_secret(url, KeyVaultAuth(), Path())
    assert "S3CRET" not in str(refused.value)
    assert "keyvault:https://NAME.vault.azure.net" in refused.value.advice


def test_a_key_is_no_secret_and_a_good_address_is_taken_apart() -> None:
    with pytest.raises(ConfigError, match="never leaves its vault"):
        read_secret("https://name.vault.azure.net/keys/a", KeyVaultAuth(), Path())
    address = address_of("https://Name.vault.azure.net:8443/keys/a-1/0123456789abcdef0123456789abcdef")
    assert (address.vault_url, address.kind, address.name) == (
        "https://name.vault.azure.net:8443",
        "keys",
        "a-1",
    )
    assert address.version == "0123456789abcdef0123456789abcdef"
