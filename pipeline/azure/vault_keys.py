"""A key in Key Vault: its versions, their public halves, and signatures made there.

The private half never leaves the vault; what is kept here is public.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipeline.azure.keyvault import Address, forget, key_client
from pipeline.azure.vault_errors import Asked, Vault, asked
from pipeline.config import KeyVaultAuth
from pipeline.errors import ConfigError, Unreachable

if TYPE_CHECKING:
    from azure.keyvault.keys import JsonWebKey, KeyProperties
    from azure.keyvault.keys.crypto import CryptographyClient

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

VERSIONS_SECONDS = 60.0
"""How long the list of versions is kept at most."""

USER_ROLE = "Key Vault Crypto User"
OFFICER_ROLE = "Key Vault Crypto Officer"

_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1,
    "P-256K": ec.SECP256K1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}


@dataclass(frozen=True)
class KeyVersion:
    """One version of a key, without its key material. Instants are aware; None where the vault has none."""

    version: str
    enabled: bool
    created: datetime
    not_before: datetime | None
    expires: datetime | None
    tags: tuple[tuple[str, str], ...]

    def tag(self, name: str) -> str | None:
        return dict(self.tags).get(name)


@dataclass
class _Known:
    """What the process knows of a key."""

    versions: tuple[KeyVersion, ...] = ()
    read_at: float | None = None
    public: dict[str, PublicKey] = field(default_factory=dict)
    signers: dict[str, CryptographyClient] = field(default_factory=dict)


_lock = threading.Lock()
_known: dict[tuple[Address, Vault], _Known] = {}


class VaultKey:
    """The key at an address, as one identity sees it. Safe to share between threads.

    All methods raise `ConfigError` for a key that is not there or not usable, `AuthError` when the vault or
    Entra refuses us, `Unreachable` when trying again may help.
    """

    def __init__(self, address: Address, auth: KeyVaultAuth, folder: Path) -> None:
        if address.kind != "keys":
            raise ConfigError(f"{address} is not a key", "Name .../keys/KEY")
        self.address = address
        self._vault = Vault(address.vault_url, auth, folder)
        with _lock:
            self._known = _known.setdefault((Address(*self._name, None), self._vault), _Known())

    @property
    def _name(self) -> tuple[str, Literal["secrets", "keys"], str]:
        return self.address.vault_url, self.address.kind, self.address.name

    def versions(self, *, fresh: bool = False, seconds: float = VERSIONS_SECONDS) -> tuple[KeyVersion, ...]:
        """All versions, at most `seconds` old, in no particular order; `fresh` asks the vault now."""
        read_at = self._known.read_at
        if not fresh and read_at is not None and time.monotonic() < read_at + seconds:
            return self._known.versions
        begun = time.monotonic()
        try:
            found = self._listed()
        except Unreachable:
            # A vault that is away takes no key away: what was the case a minute ago still is.
            if fresh or read_at is None:
                raise
            found = self._known.versions
        if not found:
            raise ConfigError(
                f"{self.address} has no version", "Make the key: `az keyvault key create`, or check its name"
            )
        with _lock:
            self._known.versions, self._known.read_at = found, begun
        return found

    def _listed(self) -> tuple[KeyVersion, ...]:
        client = key_client(self._vault)
        listed = self._ask(lambda: list(client.list_properties_of_key_versions(self.address.name)))
        return tuple(_version(each) for each in listed)

    def public_key(self, version: str) -> PublicKey:
        """The public half, which never changes."""
        kept = self._known.public.get(version)
        if kept is None:
            client = key_client(self._vault)
            key = self._ask(lambda: client.get_key(self.address.name, version).key)
            kept = self._known.public[version] = _public_key(key, self.address)
        return kept

    def sign(self, version: str, algorithm: Literal["RS384", "ES384"], digest: bytes) -> bytes:
        """The signature of a SHA-384 digest, made in the vault: PKCS#1 v1.5, or r||s.

        `Unreachable` where the version has been taken out of use since the versions were listed: asked
        again, another one's turn has come.
        """
        from azure.keyvault.keys.crypto import SignatureAlgorithm

        known = {"RS384": SignatureAlgorithm.rs384, "ES384": SignatureAlgorithm.es384}
        signer = self._known.signers.get(version)
        if signer is None:
            signer = key_client(self._vault).get_cryptography_client(self.address.name, key_version=version)
            self._known.signers[version] = signer
        try:
            return self._ask(lambda: signer.sign(known[algorithm], digest).signature)
        except ConfigError:
            usable = {each.version for each in self.versions(fresh=True) if each.enabled}
            if self.address.version is not None or version in usable:
                raise
            gone = f"{self.address}: version {version} has just been disabled or deleted"
        raise Unreachable(gone, "The next try signs with another version, where there is one")

    def create_like(self, version: str, tags: dict[str, str]) -> KeyVersion:
        """A new version of the same type, size, curve and operations, with the old one's tags and `tags`."""
        client = key_client(self._vault)
        model = self._ask(lambda: client.get_key(self.address.name, version))
        material: Any = model.key
        made = self._ask(
            lambda: client.create_key(
                self.address.name,
                str(getattr(material.kty, "value", material.kty)),
                size=None if material.n is None else _integer(material.n).bit_length(),
                curve=material.crv,
                key_operations=model.key_operations,
                tags={**(model.properties.tags or {}), **tags},
            ),
            OFFICER_ROLE,
        )
        self._known.read_at = None
        return _version(made.properties)

    def disable(self, version: str) -> None:
        """Nothing is signed with it any more, and it is published no more."""
        client = key_client(self._vault)
        self._ask(
            lambda: client.update_key_properties(self.address.name, version, enabled=False), OFFICER_ROLE
        )
        self._known.read_at = None

    def _ask(self, ask: Callable[[], Asked], role: str = USER_ROLE) -> Asked:
        return asked(ask, str(self.address), self._vault, role, forget=self._forget)

    def _forget(self) -> None:
        forget(self._vault)
        self._known.signers.clear()


def _version(properties: KeyProperties) -> KeyVersion:
    created = properties.created_on
    if created is None or properties.version is None:
        raise ConfigError("Key Vault describes a key version without version or date of creation")
    return KeyVersion(
        version=properties.version,
        enabled=properties.enabled is not False,
        created=created,
        not_before=properties.not_before,
        expires=properties.expires_on,
        tags=tuple(sorted((properties.tags or {}).items())),
    )


def _public_key(key: JsonWebKey, address: Address) -> PublicKey:
    members: Any = key
    try:
        if members.n is not None and members.e is not None:
            return rsa.RSAPublicNumbers(_integer(members.e), _integer(members.n)).public_key()
        curve = _CURVES.get(str(getattr(members.crv, "value", members.crv)))
        if curve is not None and members.x is not None and members.y is not None:
            numbers = ec.EllipticCurvePublicNumbers(_integer(members.x), _integer(members.y), curve())
            return numbers.public_key()
    except ValueError:
        pass
    raise ConfigError(f"{address} is neither an RSA nor an elliptic curve key", "Make one that signs")


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big")
