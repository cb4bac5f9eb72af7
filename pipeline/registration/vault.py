"""Doing it at a Key Vault: the client's secret with its tag, as API Management's token endpoint reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pipeline.azure.keyvault import secret_client
from pipeline.azure.vault_errors import Vault, explained
from pipeline.config import KeyVaultAuth
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from azure.keyvault.secrets import KeyVaultSecret, SecretClient

ROLE = "Key Vault Secrets Officer"
TAG = "jwks_url"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]")

Outcome = Literal["stored", "tagged", "unchanged"]


def vault_url(vault: str) -> str:
    """`https://NAME.vault.azure.net` for a name; an https URL (other clouds) stays. Raises `ConfigError`."""
    if _NAME.fullmatch(vault):
        return f"https://{vault}.vault.azure.net"
    parts = urlsplit(vault)
    plain = parts.scheme == "https" and parts.hostname and not parts.username and not parts.query
    if not plain or parts.path not in ("", "/"):
        raise ConfigError("--vault is neither a vault's name nor its https URL", "Such as contosobackkv")
    return f"https://{parts.netloc}"


def vault_name(vault: str) -> str:
    """The name alone, for `az`."""
    return (urlsplit(vault_url(vault)).hostname or "").partition(".")[0]


def store(
    vault: str, auth: KeyVaultAuth, folder: Path, *, name: str, value: str | None, jwks_url: str
) -> Outcome:
    """Sees to it that the secret has this value and the tag `jwks_url`; other tags stay. Safe to run again.

    Without a value only the tag is set, on a secret that must be there. The value is never shown.
    Raises `ConfigError`, `AuthError`, `Unreachable`.
    """
    where = Vault(vault_url(vault), auth, folder)
    client = secret_client(where)
    what = f"{where.url}/secrets/{name}"
    with explained(what, where, ROLE):
        there = _present(client, name)
    if there is None and value is None:
        raise ConfigError(
            f"there is no secret {what} yet", "Give its value: --client-secret file:PATH, or prompt"
        )
    tags = {**((there.properties.tags or {}) if there else {}), TAG: jwks_url}
    if there is not None and (value is None or there.value == value):
        if there.properties.tags == tags:
            return "unchanged"
        with explained(what, where, ROLE):
            client.update_secret_properties(name, tags=tags)
        return "tagged"
    assert value is not None  # noqa: S101 - for the type checker: refused above
    with explained(what, where, ROLE):
        client.set_secret(name, value, tags=tags)
    return "stored"


def _present(client: SecretClient, name: str) -> KeyVaultSecret | None:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return client.get_secret(name)
    except ResourceNotFoundError:
        return None
