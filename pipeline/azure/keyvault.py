"""Key Vault: where a secret or key lies, the clients that reach it, and secrets by reference.

A vault's own credential is read from `env:` and `file:` references only: a vault cannot open itself.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pipeline.azure.vault_errors import Vault, asked, patience
from pipeline.config import KeyVaultAuth, resolve_secret
from pipeline.errors import AuthError, ConfigError

if TYPE_CHECKING:
    from azure.keyvault.keys import KeyClient
    from azure.keyvault.secrets import SecretClient

SECRET_SECONDS = 60.0
"""How long a secret is kept: a sensor that looks every few seconds must not be throttled by the vault."""

CONNECT_SECONDS = 5.0
READ_SECONDS = 15.0

_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
_VERSION = re.compile(r"[0-9A-Za-z]{1,64}")


@dataclass(frozen=True)
class Address:
    """`https://NAME.vault.azure.net/secrets|keys/NAME[/VERSION]` in its parts."""

    vault_url: str
    """Scheme, host and port, without a path."""
    kind: Literal["secrets", "keys"]
    name: str
    version: str | None

    def __str__(self) -> str:
        path = f"{self.vault_url}/{self.kind}/{self.name}"
        return path if self.version is None else f"{path}/{self.version}"


def address_of(url: str) -> Address:
    """The address in a `keyvault:` reference. Raises `ConfigError`, which never repeats a query."""
    form = "keyvault:https://NAME.vault.azure.net/secrets/SECRET, or .../keys/KEY, and /VERSION if wanted"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError("a keyvault: reference is not a URL", f"Write {form}") from None
    if parts.query or parts.fragment or parts.username or parts.password or "?" in url or "#" in url:
        raise ConfigError(
            f"the keyvault: reference to {parts.hostname or 'a vault'} has more than an address",
            f"Without query, fragment and credentials: {form}",
        )
    if parts.scheme != "https" or not parts.hostname or "\\" in url:
        raise ConfigError(f"keyvault:{url} is not an https URL", f"Write {form}")
    segments = parts.path.removesuffix("/").split("/")[1:]
    known = (
        len(segments) in (2, 3)
        and _NAME.fullmatch(segments[1])
        and all(_VERSION.fullmatch(each) for each in segments[2:])
    )
    if not known or segments[0] not in ("secrets", "keys"):
        raise ConfigError(f"keyvault:{url} names neither a secret nor a key", f"Write {form}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(
        f"https://{host}" if port is None else f"https://{host}:{port}",
        "secrets" if segments[0] == "secrets" else "keys",
        segments[1],
        segments[2] if len(segments) == 3 else None,
    )


def read_secret(url: str, vault: KeyVaultAuth, folder: Path) -> bytes:
    """The secret at `https://NAME.vault.azure.net/secrets/SECRET[/VERSION]`, at most a minute old.

    `url` comes without `keyvault:`; `folder` is where `file:` references of `vault` start. Safe to share
    between threads. Raises `ConfigError` for a URL or secret that is not there, disabled or expired,
    `AuthError` when the vault or Entra refuses us, `Unreachable` when trying again may help.
    """
    address = address_of(url)
    if address.kind != "secrets":
        raise ConfigError(
            f"{address} is a key, which never leaves its vault; here a secret is needed",
            "Name .../secrets/SECRET. A key serves as auth.private_key only, where it signs",
        )
    where = Vault(address.vault_url, vault, folder)
    with _lock:
        kept = _secrets.get((address, where))
    if kept is not None and time.monotonic() < kept[1]:
        return kept[0]
    client = secret_client(where)
    value = asked(
        lambda: client.get_secret(address.name, address.version).value,
        str(address),
        where,
        "Key Vault Secrets User",
        forget=lambda: forget(where),
    )
    if not value:
        raise ConfigError(f"the secret {address} is empty", "Store its value in the vault")
    with _lock:
        _secrets[(address, where)] = (value.encode(), time.monotonic() + SECRET_SECONDS)
    return value.encode()


def secret_client(where: Vault) -> SecretClient:
    """The process's client for the secrets of a vault. Raises `ConfigError` for its own credential."""
    from azure.keyvault.secrets import SecretClient

    return _client(SecretClient, where)  # type: ignore[no-any-return]


def key_client(where: Vault) -> KeyClient:
    """The process's client for the keys of a vault. Raises `ConfigError` for its own credential."""
    from azure.keyvault.keys import KeyClient

    return _client(KeyClient, where)  # type: ignore[no-any-return]


def forget(where: Vault) -> None:
    """Make new clients next time: the vault's own credential may have been replaced."""
    with _lock:
        for key in [key for key in _clients if key[1] == where]:
            del _clients[key]


_lock = threading.Lock()
_clients: dict[tuple[str, Vault], Any] = {}
_secrets: dict[tuple[Address, Vault], tuple[bytes, float]] = {}


def _client(kind: Callable[..., Any], where: Vault) -> Any:
    from pipeline.azure.credentials import token_credential

    with _lock:
        known = _clients.get((kind.__name__, where))
        if known is not None:
            return known
        try:
            credential = token_credential(where.auth, lambda each: resolve_secret(each, where.folder))
        except ValueError:
            # azure-identity checks what it is given, and may repeat it.
            raise AuthError(
                f"keyvault_auth (kind {where.auth.kind}) is not usable for {where.url}",
                "Check tenant_id, client_id, the certificate's PEM, and the workload identity's environment",
            ) from None
        client = kind(
            where.url,
            credential,
            verify_challenge_resource=where.auth.verify_challenge_resource,
            retry_policy=patience(),
            connection_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        )
        _clients[(kind.__name__, where)] = client
        return client
