"""Secrets by reference: read when they are used, so that a missing one harms one source only."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.identity import KeyVaultAuth
from pipeline.config.model import REFERENCE
from pipeline.errors import ConfigError
from pipeline.redaction import remember


def resolve_secret(reference: str, folder: Path, vault: KeyVaultAuth | None = None) -> bytes:
    """The secret that `reference` names, read when it is used: one missing secret harms one source only.

    `vault`: who we are at Key Vault; None where a reference to it would need itself (its own credential).
    From then on no log line and no error of this process repeats it. Raises `ConfigError` naming the
    reference, never the secret.
    """
    secret = _read(reference, folder, vault)
    remember(secret, lasting=True)
    return secret


def _read(reference: str, folder: Path, vault: KeyVaultAuth | None) -> bytes:
    match = REFERENCE.match(reference)
    if not match:
        raise ConfigError("a secret must be a reference: env:NAME, file:PATH or keyvault:URL")
    kind, rest = match.groups()
    if kind == "env":
        value = os.environ.get(rest)
        if not value:
            raise ConfigError(f"the environment variable {rest} is not set", f"It is named by {reference}")
        return value.encode()
    if kind == "file":
        path = _file_at(rest, folder)
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}",
                f"It is named by {reference}. Put the secret there, or correct the path; for a private key "
                f"`fhir-export keys new --out {rest}` makes one",
            ) from None
    if vault is None:
        raise ConfigError(f"{reference} cannot be read here", "Use file: or env: for this secret")
    from pipeline.azure.keyvault import read_secret

    return read_secret(rest, vault, folder)


def secret_path(reference: str, folder: Path) -> Path | None:
    """The path behind a `file:` reference; None for the other kinds."""
    match = REFERENCE.match(reference)
    return _file_at(match.group(2), folder) if match and match.group(1) == "file" else None


def _file_at(named: str, folder: Path) -> Path:
    try:
        found = folder / Path(named).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"file:{named} names the home of a user who is not here", "Write the whole path"
        ) from None
    return found
