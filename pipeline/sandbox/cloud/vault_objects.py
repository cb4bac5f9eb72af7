"""What a vault holds: secrets and keys with their versions, attributes and tags."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pipeline.sandbox.cloud.access_tokens import base64url
from pipeline.sandbox.cloud.vault_errors import BadParameter

_CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_OPERATIONS = {
    "RSA": ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
    "EC": ["sign", "verify"],
}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass
class Attributes:
    """Seconds since 1970; None where not set."""

    enabled: bool = True
    nbf: int | None = None
    exp: int | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    updated: int = field(default_factory=lambda: int(time.time()))

    def change(self, wanted: dict[str, Any]) -> None:
        """Take over what a request sets. BadParameter for what cannot be."""
        if unknown := set(wanted) - {"enabled", "nbf", "exp", "exportable"} - _READ_ONLY:
            raise BadParameter(f"Unknown attributes: {', '.join(sorted(unknown))}")
        enabled = wanted.get("enabled")
        if enabled is not None:
            if not isinstance(enabled, bool):
                raise BadParameter("Property 'enabled' has an invalid value.")
            self.enabled = enabled
        for name in ("nbf", "exp"):
            value = wanted.get(name)
            if value is not None:
                if type(value) is not int or value < 0:
                    raise BadParameter(f"Property '{name}' must be a whole number of seconds since 1970.")
                setattr(self, name, value)
        if self.nbf is not None and self.exp is not None and self.exp <= self.nbf:
            raise BadParameter("The property exp must be later than nbf.")
        self.updated = int(time.time())

    def shown(self) -> dict[str, Any]:
        """As in a bundle."""
        times = {name: value for name in ("nbf", "exp") if (value := getattr(self, name)) is not None}
        return {
            "enabled": self.enabled,
            **times,
            "created": self.created,
            "updated": self.updated,
            "recoveryLevel": "Recoverable+Purgeable",
            "recoverableDays": 90,
        }


_READ_ONLY = frozenset({"created", "updated", "recoveryLevel", "recoverableDays"})


@dataclass
class Version:
    """What a secret's and a key's version have in common. `id` is 32 hexadecimal digits."""

    attributes: Attributes = field(default_factory=Attributes)
    tags: dict[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass
class SecretVersion(Version):
    """A secret's value at one time."""

    value: str = ""
    content_type: str | None = None


@dataclass
class KeyVersion(Version):
    """One key pair; the private part never leaves this object but through `private.sign`."""

    private: PrivateKey = field(default_factory=lambda: make_private("EC", "P-384", 0), repr=False)
    operations: list[str] = field(default_factory=list)
    type_name: str = "EC"
    """The kty that was asked for: EC, RSA, EC-HSM or RSA-HSM."""

    @property
    def family(self) -> str:
        """EC or RSA."""
        return "EC" if isinstance(self.private, ec.EllipticCurvePrivateKey) else "RSA"

    @property
    def curve(self) -> str | None:
        """P-256, P-384, P-521; None for RSA."""
        if not isinstance(self.private, ec.EllipticCurvePrivateKey):
            return None
        size = self.private.curve.key_size
        return f"P-{size}"

    def public(self) -> dict[str, Any]:
        """The public members of its JWK."""
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            point = self.private.public_key().public_numbers()
            width = (self.private.curve.key_size + 7) // 8
            return {
                "crv": self.curve,
                "x": base64url(point.x.to_bytes(width, "big")),
                "y": base64url(point.y.to_bytes(width, "big")),
            }
        numbers = self.private.public_key().public_numbers()
        width = (numbers.n.bit_length() + 7) // 8
        return {
            "n": base64url(numbers.n.to_bytes(width, "big")),
            "e": base64url(numbers.e.to_bytes(3, "big")),
        }

    def successor(self) -> KeyVersion:
        """A new pair of the same kind, as rotation makes it. May take a second: not for the event loop."""
        size = self.private.key_size
        return KeyVersion(
            tags=dict(self.tags),
            private=make_private(self.family, self.curve, size),
            operations=list(self.operations),
            type_name=self.type_name,
        )


def make_private(family: str, curve: str | None, size: int) -> PrivateKey:
    """A new pair. BadParameter for a curve or a size that Key Vault does not make."""
    if family == "EC":
        if curve not in _CURVES:
            raise BadParameter("Property 'crv' has an invalid value: must be P-256, P-384 or P-521.")
        return ec.generate_private_key(_CURVES[curve])
    if size not in {2048, 3072, 4096}:
        raise BadParameter("Property 'key_size' has an invalid value: must be 2048, 3072 or 4096.")
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


def create_key(wanted: dict[str, Any]) -> KeyVersion:
    """What `POST /keys/{name}/create` asks for (kty, crv, key_size, key_ops, attributes, tags)."""
    kty = wanted.get("kty")
    if kty not in {"EC", "RSA", "EC-HSM", "RSA-HSM"}:
        raise BadParameter("Property 'kty' has an invalid value: must be EC, EC-HSM, RSA or RSA-HSM.")
    family = kty.removesuffix("-HSM")
    private = make_private(family, wanted.get("crv") or "P-256", wanted.get("key_size") or 2048)
    return _version(private, kty, wanted)


def import_key(pem: bytes, wanted: dict[str, Any]) -> KeyVersion:
    """A pair that was made elsewhere."""
    private = load_pem_private_key(pem, None)
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise BadParameter("Only RSA and EC keys can be imported.")
    kty = "EC" if isinstance(private, ec.EllipticCurvePrivateKey) else "RSA"
    return _version(private, kty, wanted)


def _version(private: PrivateKey, kty: str, wanted: dict[str, Any]) -> KeyVersion:
    possible = _OPERATIONS[kty.removesuffix("-HSM")]
    operations = wanted.get("key_ops") or list(possible)
    if set(operations) - set(possible):
        raise BadParameter("Property 'key_ops' has an invalid value for this type of key.")
    version = KeyVersion(
        tags=checked_tags(wanted.get("tags")), private=private, operations=operations, type_name=kty
    )
    version.attributes.change(wanted.get("attributes") or {})
    return version


def checked_tags(tags: Any) -> dict[str, str]:
    """BadParameter unless at most 15 pairs of texts."""
    tags = tags or {}
    if not isinstance(tags, dict) or len(tags) > 15 or not all(isinstance(one, str) for one in tags.values()):
        raise BadParameter("Property 'tags' must be at most 15 pairs of strings.")
    return dict(tags)
