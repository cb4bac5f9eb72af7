"""Who we are on Azure: in Entra, at storage accounts, at Key Vault."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.model import HttpsUrl, SecretReference, Strict

IdentityKind = Literal["default", "managed-identity", "workload-identity", "service-principal"]
StorageKind = Literal[
    "default",
    "managed-identity",
    "workload-identity",
    "service-principal",
    "sas",
    "connection-string",
    "none",
]


class AzureIdentity(Strict):
    """Who we are in Entra: the identity of the machine, or a service principal."""

    kind: IdentityKind = "default"
    client_id: str | None = None
    """Of the service principal, or of a user-assigned managed identity; absent: the system-assigned one."""
    tenant_id: str | None = None
    client_secret: SecretReference | None = None
    certificate: SecretReference | None = None
    """PEM with private key and certificate, instead of the client secret."""
    authority: HttpsUrl | None = None
    """Entra's address in another cloud; the public one by default."""

    @model_validator(mode="after")
    def _complete_identity(self) -> AzureIdentity:
        if self.kind == "service-principal":
            missing = [name for name in ("tenant_id", "client_id") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"kind service-principal needs {' and '.join(missing)}")
            if (self.client_secret is None) == (self.certificate is None):
                raise ValueError("kind service-principal needs one of client_secret and certificate")
        return self


class StorageAuth(AzureIdentity):
    """How a storage account is opened: by an identity, or by what the account itself has issued."""

    kind: StorageKind = "default"  # type: ignore[assignment]
    sas: SecretReference | None = None
    connection_string: SecretReference | None = None
    endpoint: HttpsUrl | None = None
    """The account's blob endpoint where it is not https://ACCOUNT.blob.core.windows.net: another cloud, a
    custom domain, the emulator (https://127.0.0.1:10000/devstoreaccount1)."""

    @model_validator(mode="after")
    def _complete_storage(self) -> StorageAuth:
        for kind, name in (("sas", "sas"), ("connection-string", "connection_string")):
            if (self.kind == kind) != (getattr(self, name) is not None):
                raise ValueError(f"kind {kind} and the key {name} go together")
        return self


class LakeAuth(StorageAuth):
    """How the lake's storage account is opened (Azure only; a local lake needs none)."""


class KeyVaultAuth(AzureIdentity):
    """Who we are at Key Vault, for `keyvault:` references."""

    verify_challenge_resource: bool = True
    """False only where the vault's host is not below its cloud's vault domain (private clouds)."""


class KeyRotation(Strict):
    """How long a new public key is published before it signs: servers cache JWK Sets."""

    wait_minutes: Annotated[float, Field(ge=0, le=7 * 24 * 60)] = 15
