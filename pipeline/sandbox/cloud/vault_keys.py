"""The vault's keys: made or brought here, rotated, used for signatures, never given away."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pipeline.sandbox.cloud.access_tokens import base64url
from pipeline.sandbox.cloud.journal import note
from pipeline.sandbox.cloud.vault_errors import BadParameter, VaultRefusal, not_usable
from pipeline.sandbox.cloud.vault_objects import KeyVersion, create_key, import_key
from pipeline.sandbox.cloud.vault_shelf import Shelf, body_of, change, check_name

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_EC_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


class Keys(Shelf[KeyVersion]):
    """Their public parts are read by name and version; the private ones sign."""

    kind = "key"
    identifier = "kid"

    def make(self, name: str, pem: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """A key made here, or taken over from a PEM; its bundle, public parts only."""
        return self.add(name, import_key(pem.encode(), wanted) if pem else create_key(wanted))

    async def create(self, request: Request) -> dict[str, Any]:
        """`POST /keys/{name}/create`: a new version."""
        name, wanted = request.path_params["name"], await body_of(request)
        check_name(name)
        return self.add(name, await run_in_threadpool(create_key, wanted))

    async def rotate(self, request: Request) -> dict[str, Any]:
        """`POST /keys/{name}/rotate`: a new version of the same kind."""
        name, newest = self.find(request)
        return self.add(name, await run_in_threadpool(newest.successor))

    async def get(self, request: Request) -> dict[str, Any]:
        """`GET /keys/{name}[/{version}]`; a disabled key is shown too, only its use is refused."""
        return self.bundle(*self.find(request))

    async def update(self, request: Request) -> dict[str, Any]:
        """`PATCH /keys/{name}/{version}`."""
        wanted = await body_of(request)
        name, version = self.find(request)
        change(version, wanted)
        if wanted.get("key_ops") is not None:
            version.operations = list(wanted["key_ops"])
        return self.bundle(name, version)

    async def sign(self, request: Request) -> dict[str, Any]:
        """`POST /keys/{name}/{version}/sign`: a digest in, base64url out (EC: r and s as they are)."""
        wanted = await body_of(request)
        name, version = self.find(request)
        _check_usable(version, "sign")
        algorithm, digest = self._signing(name, version, wanted, "value")
        signature = await run_in_threadpool(_signature, version, algorithm, digest)
        note(request.scope, algorithm=algorithm, version=version.id)
        return {"kid": self.address(name, version), "value": base64url(signature)}

    async def verify(self, request: Request) -> dict[str, Any]:
        """`POST /keys/{name}/{version}/verify`."""
        wanted = await body_of(request)
        name, version = self.find(request)
        _check_usable(version, "verify")
        algorithm, digest = self._signing(name, version, wanted, "digest")
        return {"value": _fits(version, algorithm, digest, _bytes(wanted.get("value"), "value"))}

    def bundle(self, name: str, version: KeyVersion) -> dict[str, Any]:
        """Public parts only."""
        key = {
            "kid": self.address(name, version),
            "kty": version.type_name,
            "key_ops": version.operations,
            **version.public(),
        }
        return {"key": key, **self.item(version)}

    def item(self, version: KeyVersion) -> dict[str, Any]:
        """Without the key."""
        return {"attributes": version.attributes.shown(), "tags": version.tags}

    def _signing(
        self, name: str, version: KeyVersion, wanted: dict[str, Any], member: str
    ) -> tuple[str, bytes]:
        algorithm = wanted.get("alg")
        if not isinstance(algorithm, str) or algorithm[2:] not in _HASHES:
            raise BadParameter(f"Property 'alg' has an invalid value: {algorithm}.")
        if version.family == "EC":
            fits = _EC_CURVES.get(algorithm) == version.curve
        else:
            fits = algorithm[:2] in {"RS", "PS"}
        if not fits:
            raise BadParameter(
                f"Key and signing algorithm are incompatible. Key {self.address(name, version)} is of type "
                f"'{version.family}', and algorithm '{algorithm}' can not be used with it."
            )
        digest = _bytes(wanted.get(member), member)
        length = _HASHES[algorithm[2:]].digest_size
        if len(digest) != length:
            raise BadParameter(
                f"Invalid length of '{member}': {len(digest)} bytes. {algorithm} requires {length} bytes, "
                "encoded with base64url."
            )
        return algorithm, digest


def _check_usable(version: KeyVersion, operation: str) -> None:
    attributes, now = version.attributes, time.time()
    if not attributes.enabled:
        raise not_usable(operation, "key", "a disabled", "KeyDisabled")
    if operation not in version.operations:
        raise VaultRefusal(
            403, "Forbidden", f"Operation {operation} is not permitted on this key.", "KeyOperationForbidden"
        )
    if operation == "verify":
        # Outside of nbf and exp, Key Vault still verifies, decrypts and unwraps.
        return
    if attributes.nbf is not None and now < attributes.nbf:
        raise not_usable(operation, "key", "a not yet valid", "KeyNotYetValid")
    if attributes.exp is not None and now >= attributes.exp:
        raise not_usable(operation, "key", "an expired", "KeyExpired")


def _bytes(text: object, member: str) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]+={0,2}", text):
        raise BadParameter(f"Property '{member}' must be encoded with base64url.")
    bare = text.rstrip("=")
    return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))


def _padding(algorithm: str) -> padding.AsymmetricPadding:
    if algorithm.startswith("RS"):
        return padding.PKCS1v15()
    digest = _HASHES[algorithm[2:]]
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)


def _signature(version: KeyVersion, algorithm: str, digest: bytes) -> bytes:
    prehashed = utils.Prehashed(_HASHES[algorithm[2:]])
    if isinstance(version.private, rsa.RSAPrivateKey):
        return version.private.sign(digest, _padding(algorithm), prehashed)
    width = (version.private.curve.key_size + 7) // 8
    r, s = utils.decode_dss_signature(version.private.sign(digest, ec.ECDSA(prehashed)))
    return r.to_bytes(width, "big") + s.to_bytes(width, "big")


def _fits(version: KeyVersion, algorithm: str, digest: bytes, signature: bytes) -> bool:
    prehashed = utils.Prehashed(_HASHES[algorithm[2:]])
    public = version.private.public_key()
    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, digest, _padding(algorithm), prehashed)
        else:
            half = len(signature) // 2
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            public.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(prehashed))
    except InvalidSignature:
        return False
    return True
