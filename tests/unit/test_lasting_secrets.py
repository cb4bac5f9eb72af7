"""What is good for months stays hidden, however many tokens this process gets meanwhile."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from pipeline import redaction
from pipeline.auth.entra import EntraTokenSource
from pipeline.auth.keys import generate_key, load_private_key
from pipeline.auth.tokens import Token
from pipeline.azure.storage_access import storage_access
from pipeline.config import DownloadStorage, LakeAuth, resolve_secret
from pipeline.lake.blob_account import BlobAccess
from pipeline.redaction import hide

SAS = "sv=2024-11-04&sr=c&sig=Z1%2BSgnatureOfTheAccount%3D"
SIGNATURE = "Z1+SgnatureOfTheAccount="
ACCOUNT_KEY = base64.b64encode(b"the key of an account").decode()
BLOB = "https://hospfiles.blob.core.windows.net/c/f.ndjson"


@pytest.fixture(autouse=True)
def _empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_memory", redaction._Memory())


def outlasts_tokens(secret: str) -> bool:
    for number in range(1100):
        Token(f"a-token-of-no-form-{number:06}", expires_at=1.0)
    return secret not in hide(f"it is {secret} indeed")


def a_line_of(pem: bytes) -> str:
    return pem.decode().splitlines()[1]


def with_certificate(pem: bytes) -> bytes:
    """The RSA key with a certificate of its own."""
    key = serialization.load_pem_private_key(pem, None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nightly")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name,
        name,
        key.public_key(),
        1,
        now,
        now + timedelta(days=1),  # type: ignore[arg-type]
    ).sign(key, hashes.SHA256())  # type: ignore[arg-type]
    return pem + made.public_bytes(serialization.Encoding.PEM)


def test_private_keys_outlast_tokens() -> None:
    pem = generate_key("ES384")
    load_private_key(pem, "ES384")
    assert outlasts_tokens(a_line_of(pem))


def test_client_secrets_and_certificates_outlast_tokens() -> None:
    identity = {"tenant_id": "contoso.example", "client_id": "me", "audience": "https://fhir.example.org"}
    EntraTokenSource(client_secret="s3cret~of.the~client", **identity)
    pem = with_certificate(generate_key("RS384"))
    EntraTokenSource(certificate=pem, **identity)
    assert outlasts_tokens("s3cret~of.the~client")
    assert outlasts_tokens(a_line_of(pem))


def test_what_opens_the_lake_outlasts_tokens() -> None:
    BlobAccess("acc", "https://acc.example", LakeAuth(), key=ACCOUNT_KEY, sas=SAS)
    assert outlasts_tokens(ACCOUNT_KEY)
    assert outlasts_tokens(SIGNATURE)


def test_what_opens_the_downloads_account_outlasts_tokens() -> None:
    """azure-and-aidbox D."""
    for kind, member, secret in (
        ("sas", "sas", SAS),
        ("connection-string", "connection_string", f"AccountName=hospfiles;AccountKey={ACCOUNT_KEY}"),
    ):
        storage = DownloadStorage.model_validate({"account": "hospfiles", "kind": kind, member: "env:X"})
        storage_access(storage, lambda _, held=secret: held.encode()).prepare(BLOB)  # type: ignore[misc]
    assert outlasts_tokens(SIGNATURE)
    assert outlasts_tokens(ACCOUNT_KEY)


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_of_the_configuration_is_hidden_from_then_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a webhook, say: nobody else remembers it."""
    secret = "correct horse battery staple"
    monkeypatch.setenv("HOOK", secret)
    (tmp_path / "HOOK").write_text(f"{secret}\n")
    assert resolve_secret(f"{kind}:HOOK", tmp_path).decode().strip() == secret
    assert outlasts_tokens(secret)
