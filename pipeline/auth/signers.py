"""Signers: whoever holds a private key and signs with it, here a PEM; elsewhere a key vault."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from pipeline.auth.jwk import public_jwk
from pipeline.auth.keys import Algorithm, PrivateKey, check_fits, load_private_key, read_pem
from pipeline.errors import ConfigError

_P384_COORDINATE_BYTES = 48


class Signer(Protocol):
    """Signs for one registered key; the key itself may be somewhere that never gives it away."""

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def kid(self) -> str: ...

    def current(self) -> Signer:
        """Who signs at this moment, for one signature: where keys rotate, `kid` and `sign` must be of one."""

    def sign(self, message: bytes) -> bytes:
        """The JWS signature of the message: PKCS#1 v1.5 for RS384, r||s in 96 bytes for ES384 (RFC 7518)."""

    def public_jwk(self) -> dict[str, Any]:
        """What to register at the server: public members, `kid`, `alg`, `use`, `key_ops`."""


class PemSigner:
    """Signs with a private key held in memory."""

    def __init__(self, key: PrivateKey, algorithm: Algorithm, kid: str | None = None) -> None:
        check_fits(key, algorithm)
        if kid is not None and not kid.strip():
            raise ConfigError("auth.kid is blank", "Leave it out for the RFC 7638 thumbprint.")
        self._key = key
        self._jwk = public_jwk(key, algorithm, kid)
        self._algorithm = algorithm

    @classmethod
    def from_pem(
        cls, pem: bytes, algorithm: Algorithm, kid: str | None = None, password: bytes | None = None
    ) -> PemSigner:
        """A signer for a PEM private key; ConfigError when it is none or does not fit the algorithm."""
        return cls(load_private_key(pem, algorithm, password), algorithm, kid)

    @classmethod
    def from_file(
        cls, path: Path, algorithm: Algorithm, kid: str | None = None, password: bytes | None = None
    ) -> PemSigner:
        """The same for a file; ConfigError also when it cannot be read."""
        return cls.from_pem(read_pem(path), algorithm, kid, password)

    def named(self, kid: str) -> PemSigner:
        """The same key under another kid, without reading it again."""
        return PemSigner(self._key, self._algorithm, kid)

    @property
    def algorithm(self) -> Algorithm:
        return self._algorithm

    @property
    def kid(self) -> str:
        return str(self._jwk["kid"])

    def current(self) -> PemSigner:
        return self

    def sign(self, message: bytes) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), hashes.SHA384())
        r, s = decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(_P384_COORDINATE_BYTES, "big") + s.to_bytes(_P384_COORDINATE_BYTES, "big")

    def public_jwk(self) -> dict[str, Any]:
        return dict(self._jwk)

    def __repr__(self) -> str:
        return f"PemSigner(algorithm={self._algorithm!r}, kid={self.kid!r})"
