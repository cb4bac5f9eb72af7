"""From a reference to the ring of keys that it names."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.auth.keys import Algorithm
from pipeline.auth.pem_ring import PemRing
from pipeline.auth.rotation import KeyRing, Rotation
from pipeline.auth.signers import PemSigner
from pipeline.config import KeyVaultAuth, resolve_secret, secret_path
from pipeline.errors import ConfigError


def key_ring(
    reference: str,
    *,
    algorithm: Algorithm,
    kid: str | None,
    wait: timedelta,
    folder: Path,
    vault: KeyVaultAuth,
) -> KeyRing:
    """The keys that `reference` names: `file:`, `env:`, or `keyvault:` with a key or a PEM as secret.

    `wait` is how long a next key is published before it signs. Nothing is read yet. Raises `ConfigError` for
    a reference that is none.
    """
    path = secret_path(reference, folder)
    if path is not None:
        return PemRing(path, algorithm=algorithm, kid=kid, wait=wait)
    if reference.startswith("keyvault:"):
        from pipeline.azure.keyvault import address_of

        address = address_of(reference.removeprefix("keyvault:"))
        if address.kind == "keys":
            from pipeline.auth.vault_ring import VaultRing
            from pipeline.azure.vault_keys import VaultKey

            return VaultRing(VaultKey(address, vault, folder), algorithm=algorithm, kid=kid, wait=wait)
    return LoneKey(reference, algorithm=algorithm, kid=kid, folder=folder, vault=vault)


class LoneKey:
    """A PEM in an environment variable or a vault's secret: it signs, and somebody else replaces it."""

    def __init__(
        self, reference: str, *, algorithm: Algorithm, kid: str | None, folder: Path, vault: KeyVaultAuth
    ) -> None:
        self._reference = reference
        self._algorithm: Algorithm = algorithm
        self._kid = kid
        self._folder = folder
        self._vault = vault

    def signer(self, now: datetime | None = None) -> PemSigner:  # noqa: ARG002 - the same at all times
        pem = resolve_secret(self._reference, self._folder, self._vault)
        return PemSigner.from_pem(pem, self._algorithm, self._kid)

    def public_jwks(self, now: datetime | None = None) -> list[dict[str, Any]]:
        return [self.signer(now).public_jwk()]

    def rotate(self, now: datetime | None = None) -> Rotation:  # noqa: ARG002 - never
        raise ConfigError(
            f"{self._reference} holds one key, and there is no place for the next",
            "To rotate, keep it as file:PATH or, better, keyvault:https://NAME.vault.azure.net/keys/KEY",
        )
