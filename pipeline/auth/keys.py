"""Private keys: made, read and written."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipeline.errors import ConfigError
from pipeline.redaction import remember

Algorithm = Literal["RS384", "ES384"]
"""The two that a SMART client shall support (protocol fact 4)."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

MADE_RSA_BITS = 3072
ACCEPTED_RSA_BITS = 2048
"""RFC 7518 section 3.3: smaller keys must not be used."""


def generate_key(algorithm: Algorithm) -> bytes:
    """A new private key as unencrypted PKCS#8 PEM: RSA with 3072 bits for RS384, P-384 for ES384."""
    key: PrivateKey
    if algorithm == "RS384":
        key = rsa.generate_private_key(public_exponent=65537, key_size=MADE_RSA_BITS)
    elif algorithm == "ES384":
        key = ec.generate_private_key(ec.SECP384R1())
    else:
        raise _unknown_algorithm()
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_private_key(pem: bytes, algorithm: Algorithm, password: bytes | None = None) -> PrivateKey:
    """The private key in `pem` (PKCS#8, PKCS#1 or SEC1), checked to fit the algorithm.

    Raises ConfigError when it is no private key, wants another password, or does not fit.
    """
    remember(pem, lasting=True)
    key = _decode(pem, password)
    check_fits(key, algorithm)
    return key


def check_fits(key: object, algorithm: Algorithm) -> None:
    """Raise ConfigError unless the (private or public) key can serve the algorithm."""
    if algorithm == "RS384":
        if not isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
            raise _misfit("RS384 needs an RSA key", "RS384")
        if key.key_size < ACCEPTED_RSA_BITS:
            raise _misfit(f"the RSA key has {key.key_size} bits, RS384 needs {ACCEPTED_RSA_BITS}", "RS384")
    elif algorithm == "ES384":
        if not isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
            raise _misfit("ES384 needs an elliptic curve key", "ES384")
        if not isinstance(key.curve, ec.SECP384R1):
            raise _misfit(f"ES384 needs the curve P-384, the key is on {key.curve.name}", "ES384")
    else:
        raise _unknown_algorithm()


def write_private_key(path: Path, pem: bytes) -> None:
    """Write `pem` to `path` with mode 0600; whole or not at all, and never over an existing file.

    Folders that are missing are made. Raises ConfigError when the file exists or cannot be written.
    """
    if os.path.lexists(path):
        raise _exists(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _create(draft, pem)
            _publish(draft, path, pem)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise ConfigError(
            f"the private key cannot be written to {path}: {error.strerror}",
            "Choose a folder that this user can write to.",
        ) from None


def replace_file(path: Path, content: bytes, like: Path) -> None:
    """Put `content` at `path` in one step, durably, for those who can read `like` and nobody else.

    Raises OSError; then what was at `path` is still there.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _create(draft, content)
        make_readable_like(draft, like)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync_folder(path.parent)


def make_readable_like(path: Path, other: Path) -> None:
    """The owner of `other`; mode 0600, and 0640 where its group reads it too.

    A key that the service of today's key cannot read would fail when its time comes. Raises OSError.
    """
    wanted, mine = other.stat(), path.stat()
    group_reads = bool(wanted.st_mode & stat.S_IRGRP)
    if wanted.st_uid != mine.st_uid or (group_reads and wanted.st_gid != mine.st_gid):
        os.chown(path, wanted.st_uid, wanted.st_gid)
    path.chmod(0o640 if group_reads else 0o600)


def read_pem(path: Path) -> bytes:
    """The bytes of a key file. Raises ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the private key {path} cannot be read: {error.strerror}",
            "Check auth.private_key, or make a key with 'fhir-export keys new'.",
        ) from None


def _decode(pem: bytes, password: bytes | None) -> PrivateKey:
    if b"-----BEGIN" not in pem or b"PRIVATE KEY-----" not in pem:
        raise ConfigError(
            f"the private key is not one: {_what_it_is(pem)}",
            "Give a PEM file that begins with '-----BEGIN PRIVATE KEY-----'.",
        )
    try:
        key = serialization.load_pem_private_key(pem, password)
    except TypeError:
        cause = "is encrypted and no password was given" if password is None else "is not encrypted"
        raise ConfigError(
            f"the private key {cause}", "Give the password only with an encrypted key."
        ) from None
    except Exception:  # noqa: BLE001 - cryptography's errors are many, and may quote what they read
        wrong = "" if password is None else ", or its password is wrong"
        raise ConfigError(
            f"the private key cannot be decoded{wrong}", "Check that the PEM file is complete."
        ) from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigError(
            "the private key is neither RSA nor elliptic curve",
            "Make one with 'fhir-export keys new --algorithm RS384' or ES384.",
        )
    return key


def _what_it_is(pem: bytes) -> str:
    if b"PUBLIC KEY-----" in pem:
        return "it holds a public key"
    if b"BEGIN CERTIFICATE" in pem:
        return "it holds a certificate"
    return "it holds no PEM" if pem.strip() else "it is empty"


def _create(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(draft: Path, path: Path, content: bytes) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        # File systems without hard links (Azure Files, some container mounts): exclusive, if not atomic.
        try:
            _create(path, content)
        except FileExistsError:
            raise
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every mounted file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists", "A key is never overwritten: choose another file, or move the old one away first."
    )


def _misfit(cause: str, algorithm: Algorithm) -> ConfigError:
    return ConfigError(
        cause,
        f"Set auth.algorithm to fit the key, or make a key: 'fhir-export keys new --algorithm {algorithm}'.",
    )


def _unknown_algorithm() -> ConfigError:
    return ConfigError("the signing algorithm is unknown", "It is RS384 or ES384.")
