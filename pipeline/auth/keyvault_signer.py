"""A signer whose private key stays in Key Vault (azure-and-aidbox E)."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pipeline.auth.jwk import public_jwk
from pipeline.auth.keys import Algorithm, check_fits
from pipeline.azure.vault_keys import VaultKey
from pipeline.errors import AuthError, ConfigError

_COORDINATE_BYTES = 48


class KeyVaultSigner:
    """Signs with one version of a key in Key Vault; `kid` is our own (default: RFC 7638 thumbprint).

    Making one reads the public half. Raises `ConfigError` when the key does not fit the algorithm; making
    and signing raise `ConfigError`, `AuthError`, `Unreachable` as `VaultKey` does.
    """

    def __init__(self, key: VaultKey, version: str, algorithm: Algorithm, kid: str | None = None) -> None:
        if kid is not None and not kid.strip():
            raise ConfigError("auth.kid is blank", "Leave it out for the RFC 7638 thumbprint.")
        public = key.public_key(version)
        try:
            check_fits(public, algorithm)
        except ConfigError as misfit:
            made = "--kty RSA --size 3072" if algorithm == "RS384" else "--kty EC --curve P-384"
            raise ConfigError(
                f"{key.address}: {misfit.cause}",
                f"Set auth.algorithm to fit the key, or make one: `az keyvault key create {made}`",
            ) from None
        self._key = key
        self._version = version
        self._public = public
        self._algorithm: Algorithm = algorithm
        self._jwk = public_jwk(public, algorithm, kid)

    @property
    def algorithm(self) -> Algorithm:
        return self._algorithm

    @property
    def kid(self) -> str:
        return str(self._jwk["kid"])

    @property
    def version(self) -> str:
        """The version of the vault's key that signs."""
        return self._version

    def current(self) -> KeyVaultSigner:
        return self

    def sign(self, message: bytes) -> bytes:
        """Only the digest goes to the vault. `AuthError` for a signature that the public key denies."""
        signature = self._key.sign(self._version, self._algorithm, hashlib.sha384(message).digest())
        if not self._holds(signature, message):
            raise AuthError(
                f"{self._key.address} signed with a key that is not version {self._version}",
                "Check that the reference names the vault's own address, not a proxy's",
            )
        return signature

    def public_jwk(self) -> dict[str, Any]:
        return dict(self._jwk)

    def _holds(self, signature: bytes, message: bytes) -> bool:
        try:
            if isinstance(self._public, rsa.RSAPublicKey):
                self._public.verify(signature, message, padding.PKCS1v15(), hashes.SHA384())
                return True
            if len(signature) != 2 * _COORDINATE_BYTES:
                return False
            r = int.from_bytes(signature[:_COORDINATE_BYTES], "big")
            s = int.from_bytes(signature[_COORDINATE_BYTES:], "big")
            self._public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            return False
        return True

    def __repr__(self) -> str:
        return f"KeyVaultSigner(algorithm={self._algorithm!r}, kid={self.kid!r})"
