"""`register --apply` for apim-smart: the secret that API Management's token endpoint reads, in a Key Vault
that the real azure-keyvault client speaks to (azure-and-aidbox A)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from azure.identity import ClientSecretCredential
from azure.keyvault.secrets import SecretClient

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.config import Config
from pipeline.errors import AuthError, ConfigError
from pipeline.registration.steps import Known
from pipeline.registration.vault import vault_name, vault_url
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.terminal.registering import Applying, apply

CLIENT = "6f2c7e0a-1111-4222-8333-944445555666"
JWKS_URL = "https://apim.example.org/smart/.well-known/jwks.json"


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        yield running


@pytest.fixture
def vault(cloud: CloudProcess, request: pytest.FixtureRequest) -> SecretClient:
    """The test's own look into the vault, as an administrator."""
    cloud.register_application(
        client_id="looker", secret="of-looker", vault_roles=["Key Vault Administrator"]
    )
    credential = ClientSecretCredential(
        cloud.tenant, "looker", "of-looker", authority=cloud.authority, disable_instance_discovery=True
    )
    return SecretClient(cloud.vault_url, credential, verify_challenge_resource=False)


def setup(cloud: CloudProcess, tmp_path: Path, client_id: str, *vault_roles: str) -> Config:
    """A configuration whose keyvault_auth is an application with these roles on the vault."""
    cloud.register_application(client_id="registrar", secret="of-registrar", vault_roles=list(vault_roles))
    write_private_key(tmp_path / "key.pem", generate_key("ES384"))
    (tmp_path / "registrar").write_text("of-registrar")
    (tmp_path / "entra").write_text("the-entra-secret\n")
    source = {
        "name": "apim",
        "profile": "apim-smart",
        "fhir_url": "https://apim.example.org/smart",
        "auth": {"client_id": client_id, "private_key": "file:key.pem", "algorithm": "ES384"},
        "export": {"group": "g"},
    }
    auth = {
        "kind": "service-principal",
        "tenant_id": cloud.tenant,
        "client_id": "registrar",
        "client_secret": "file:registrar",
        "authority": cloud.authority,
        "verify_challenge_resource": False,
    }
    return Config.model_validate(
        {"lake": "lake", "keyvault_auth": auth, "sources": [source], "folder": tmp_path}
    )


def run(config: Config, cloud: CloudProcess, **asked: Any) -> str:
    applying = Applying(**{"vault": cloud.vault_url, "client_secret": "file:entra", **asked})
    (done,) = apply(config, config.source(None), Known(), applying)
    outcome: str = done["outcome"]
    return outcome


def test_the_secret_is_stored_with_its_tag_and_a_second_time_nothing_is(
    cloud: CloudProcess, vault: SecretClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = setup(cloud, tmp_path, CLIENT, "Key Vault Secrets Officer")
    assert run(config, cloud) == "stored"
    found = vault.get_secret(CLIENT)
    assert found.value == "the-entra-secret"
    assert found.properties.tags == {"jwks_url": JWKS_URL}
    assert run(config, cloud) == "unchanged"
    assert vault.get_secret(CLIENT).properties.version == found.properties.version
    said = capsys.readouterr()
    assert "the-entra-secret" not in said.out + said.err
    assert "named value JWKS" in said.err


def test_a_renewed_secret_is_a_new_version_and_other_tags_stay(
    cloud: CloudProcess, vault: SecretClient, tmp_path: Path
) -> None:
    vault.set_secret("renewed", "last-years", tags={"owner": "fhir-team", "jwks_url": "https://old"})
    config = setup(cloud, tmp_path, "renewed", "Key Vault Secrets Officer")
    assert run(config, cloud) == "stored"
    found = vault.get_secret("renewed")
    assert found.value == "the-entra-secret"
    assert found.properties.tags == {"owner": "fhir-team", "jwks_url": JWKS_URL}


def test_without_a_value_only_the_tag_of_what_is_there_is_set(
    cloud: CloudProcess, vault: SecretClient, tmp_path: Path
) -> None:
    vault.set_secret("untagged", "theirs")
    config = setup(cloud, tmp_path, "untagged", "Key Vault Secrets Officer")
    assert run(config, cloud, client_secret=None) == "tagged"
    found = vault.get_secret("untagged")
    assert (found.value, found.properties.tags) == ("theirs", {"jwks_url": JWKS_URL})


def test_without_a_value_and_a_secret_there_is_nothing_to_tag(cloud: CloudProcess, tmp_path: Path) -> None:
    config = setup(cloud, tmp_path, "not-there", "Key Vault Secrets Officer")
    with pytest.raises(ConfigError, match="--client-secret"):
        run(config, cloud, client_secret=None)


def test_an_identity_without_the_role_is_told_which_one(
    cloud: CloudProcess, vault: SecretClient, tmp_path: Path
) -> None:
    vault.set_secret("readable", "theirs")
    config = setup(cloud, tmp_path, "readable", "Key Vault Secrets User")
    with pytest.raises(AuthError) as refused:
        run(config, cloud)
    assert "Key Vault Secrets Officer" in refused.value.advice
    assert "the-entra-secret" not in str(refused.value)
    assert vault.get_secret("readable").value == "theirs"


def test_an_empty_secret_is_refused_before_anything_is_sent(cloud: CloudProcess, tmp_path: Path) -> None:
    config = setup(cloud, tmp_path, CLIENT, "Key Vault Secrets Officer")
    (tmp_path / "entra").write_text("\n")
    before = len(cloud.requests("vault"))
    with pytest.raises(ConfigError, match="empty"):
        run(config, cloud)
    assert len(cloud.requests("vault")) == before


def test_the_vault_must_be_named(cloud: CloudProcess, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--vault"):
        run(setup(cloud, tmp_path, CLIENT), cloud, vault=None)


@pytest.mark.parametrize(
    ("given", "url", "name"),
    [
        ("contosobackkv", "https://contosobackkv.vault.azure.net", "contosobackkv"),
        ("https://x-backkv.vault.azure.cn/", "https://x-backkv.vault.azure.cn", "x-backkv"),
    ],
)
def test_a_vault_is_a_name_or_a_url(given: str, url: str, name: str) -> None:
    assert (vault_url(given), vault_name(given)) == (url, name)


@pytest.mark.parametrize(
    "given", ["http://x.vault.azure.net", "https://x.example/secrets/y", "a/b", "https://u:p@x"]
)
def test_anything_else_is_no_vault(given: str) -> None:
    with pytest.raises(ConfigError, match="--vault"):
        vault_url(given)
