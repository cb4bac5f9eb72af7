"""A version of a vault's key that is disabled while we run: the next try signs with another one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from authority import Authority
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient

from pipeline.auth.keyring import key_ring
from pipeline.auth.rotation import RotatingSigner
from pipeline.config import KeyVaultAuth
from pipeline.errors import ConfigError, Unreachable
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        yield running


def test_the_version_before_signs_and_without_one_it_is_said(
    cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A final error would reject the night's export although a key is there; the list is kept a minute."""
    monkeypatch.setenv("VAULT_CLIENT_SECRET", "s3cret")
    who = cloud.register_application(secret="s3cret", vault_roles=["Key Vault Crypto Officer"])
    name = f"key-{uuid.uuid4().hex[:8]}"
    old = cloud.vault_key(name)["key"]["kid"].rpartition("/")[2]
    auth = KeyVaultAuth.model_validate(
        {
            "kind": "service-principal",
            "tenant_id": cloud.tenant,
            "client_id": who["client_id"],
            "client_secret": "env:VAULT_CLIENT_SECRET",
            "authority": cloud.authority,
            "verify_challenge_resource": False,
        }
    )

    def ring(wait: timedelta) -> RotatingSigner:
        reference = f"keyvault:{cloud.vault_url}/keys/{name}"
        rings = key_ring(reference, algorithm="ES384", kid=None, wait=wait, folder=Path(), vault=auth)
        if wait:
            return RotatingSigner(rings)
        rings.rotate()
        return RotatingSigner(rings)

    ring(timedelta(0))
    signer = ring(timedelta(minutes=15))
    new = signer.current()
    assert new.sign(b"message")
    officer = KeyClient(
        cloud.vault_url,
        ClientSecretCredential(
            cloud.tenant,
            who["client_id"],
            "s3cret",
            authority=cloud.authority,
            disable_instance_discovery=True,
        ),
        verify_challenge_resource=False,
    )
    versions = [each.version for each in officer.list_properties_of_key_versions(name)]
    (rotated,) = set(versions) - {old}
    officer.update_key_properties(name, rotated, enabled=False)
    with pytest.raises(Unreachable, match="just been disabled"):
        new.sign(b"message")
    again = signer.current()
    assert again.kid != new.kid
    assert again.sign(b"message")
    officer.update_key_properties(name, old, enabled=False)
    with pytest.raises(Unreachable):
        again.sign(b"message")
    with pytest.raises(ConfigError, match="every version"):
        signer.current()
