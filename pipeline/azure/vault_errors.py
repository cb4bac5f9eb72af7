"""What Key Vault's and Entra's refusals mean and what to do about them, in words that are safe to print."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pipeline.azure.root_causes import PRIVATE_AUTHORITY, chain, silent_host, trouble_of_transport
from pipeline.config import KeyVaultAuth
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable
from pipeline.redaction import clean
from pipeline.retry_after import retry_after

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.core.pipeline.policies import RetryPolicy

Asked = TypeVar("Asked")

LONGEST_PAUSE = 5.0
"""Seconds that a throttled request waits within itself; a sensor's tick has 20."""

TRIES_AGAIN = 2

_PASSING = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Vault:
    """A vault, and who we are there; `folder` is where relative `file:` references start."""

    url: str
    auth: KeyVaultAuth
    folder: Path


def asked(
    ask: Callable[[], Asked], what: str, where: Vault, role: str, *, forget: Callable[[], None]
) -> Asked:
    """What `ask` gives; what the Azure libraries raise in it becomes an error of ours alone.

    `what` is the address asked for, `role` what allows it; `forget` is called when our identity is refused.
    """
    from azure.core.exceptions import AzureError

    try:
        return ask()
    except (AzureError, ValueError, OSError) as error:
        failure = _failure(error, what, where, role, forget)
    raise failure  # outside the except block: the library's error would carry request and answer along


@contextmanager
def explained(
    what: str, where: Vault, role: str, *, forget: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The same for a block, at a terminal: nobody looks into the error there."""
    from azure.core.exceptions import AzureError

    try:
        yield
    except (AzureError, ValueError, OSError) as error:
        raise _failure(error, what, where, role, forget) from None


def _failure(error: Exception, what: str, where: Vault, role: str, forget: Callable[[], None]) -> ExportError:
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    from pipeline.azure.entra_errors import identity_error

    if isinstance(error, AzureError):
        if isinstance(error, ClientAuthenticationError):
            forget()
        return _in_words(error, what, where, role)
    if isinstance(error, ValueError):
        return _not_its_domain(error, where)
    forget()  # the federated token's file cannot be read
    return identity_error(error, f"{what}, by keyvault_auth (kind {where.auth.kind})")


def patience() -> RetryPolicy[Any, Any]:
    """Tries again twice, and leaves longer waits to the caller's next look."""
    from azure.core.pipeline import PipelineResponse
    from azure.core.pipeline.policies import RetryPolicy

    class ShortPatience(RetryPolicy[Any, Any]):
        def is_retry(self, settings: dict[str, Any], response: PipelineResponse[Any, Any]) -> bool:
            asked = self.get_retry_after(response)
            return (asked is None or asked <= LONGEST_PAUSE) and super().is_retry(settings, response)

    return ShortPatience(retry_total=TRIES_AGAIN, retry_backoff_max=LONGEST_PAUSE)


def _in_words(error: AzureError, what: str, where: Vault, role: str) -> ExportError:
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    if isinstance(error, ClientAuthenticationError):
        return _not_signed_in(error, what, where)
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        return _refusal(error, what, where, role)
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        cause, advice = _no_answer(error)
        return Unreachable(f"{_silent_host(error, where)} cannot be reached: {cause}", advice)
    return Unreachable(f"Key Vault {where.url} gave no usable answer ({type(error).__name__})")


def _not_signed_in(error: HttpResponseError, what: str, where: Vault) -> ExportError:
    from pipeline.azure.entra_errors import identity_error

    if _asked_host(error) == urlsplit(where.url).netloc:
        return AuthError(
            f"Key Vault {where.url} does not accept the token of keyvault_auth (kind {where.auth.kind})",
            "Check tenant_id: the identity must be of the tenant that the vault belongs to",
        )
    return identity_error(error, f"{what}, by keyvault_auth (kind {where.auth.kind})")


def _asked_host(error: HttpResponseError) -> str | None:
    """Whose answer it is; azure-identity's own errors may have none."""
    request = getattr(error.response, "request", None)
    return urlsplit(str(getattr(request, "url", ""))).netloc or None


def _refusal(error: HttpResponseError, what: str, where: Vault, role: str) -> ExportError:
    status = error.status_code or 0
    code, inner, message = _said(error)
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    if _is_passing(status):
        why = "asks us to slow down" if status == 429 else "is in trouble"
        return Unreachable(
            f"Key Vault {where.url} {why} (HTTP {status})",
            "Try again later; vaults allow some thousand requests in ten seconds for all who use them",
            retry_after(headers),
        )
    if status == 404:
        return ConfigError(
            f"{what} is not in the vault ({code or 'NotFound'})",
            "Check name and version; a deleted one can be recovered with `az keyvault ... recover`",
        )
    unusable = _unusable(inner, message)
    if status in (400, 403) and unusable is not None:
        return ConfigError(f"{what} {unusable[0]}", unusable[1])
    if status == 403:
        return _forbidden(inner, message, what, where, role)
    named = clean(inner or code or "no code", 60)
    return ConfigError(f"Key Vault answered HTTP {status} ({named}) for {what}", "Check the reference")


def _unusable(inner: str, message: str) -> tuple[str, str] | None:
    """In which way a secret or key is there and yet not usable: words and advice."""
    said = f"{inner} {message}".lower()
    if "disabled" in said:
        return "is disabled in the vault", "Enable it there, or name another version"
    if "notyetvalid" in said or "not yet valid" in said:
        return "is not valid yet (its not-before date)", "Wait, or change the date in the vault"
    if "expired" in said:
        return "has expired (its expiry date)", "Store or make a new version"
    return None


def _forbidden(inner: str, message: str, what: str, where: Vault, role: str) -> AuthError:
    if "firewall" in inner.lower() or "not authorized and caller is not a trusted service" in message.lower():
        return AuthError(
            f"the firewall of Key Vault {where.url} keeps us out",
            "Allow this machine's network there (networking, or a private endpoint)",
        )
    return AuthError(
        f"keyvault_auth (kind {where.auth.kind}) may not use {what} (HTTP 403)",
        f"Give its identity the role '{role}' on the vault (roles take a few minutes), or with access "
        "policies the permission; and check the vault's firewall",
    )


def _said(error: HttpResponseError) -> tuple[str, str, str]:
    """Code, inner code and message of the vault's answer; the message is only compared, never shown."""
    try:
        body = error.response.json() if error.response is not None else {}  # type: ignore[attr-defined]
    except (ValueError, AttributeError):
        body = {}
    said = body.get("error") if isinstance(body, dict) else None
    said = said if isinstance(said, dict) else {}
    inner = said.get("innererror")
    inner_code = inner.get("code") if isinstance(inner, dict) else ""
    return str(said.get("code") or ""), str(inner_code or ""), str(said.get("message") or "")


def _not_its_domain(error: ValueError, where: Vault) -> ExportError:
    if "challenge resource" in str(error):
        return ConfigError(
            f"{where.url} asks for a token that is not for its own domain, and gets none",
            "Check the vault's name; in a private cloud set keyvault_auth.verify_challenge_resource: false",
        )
    return ConfigError(f"{where.url} does not answer as a Key Vault does", "Check the vault's URL")


def _no_answer(error: AzureError) -> tuple[str, str]:
    text, trouble = "", trouble_of_transport(error)
    if trouble is not None:
        return trouble
    for root in chain(error):
        text += f" {type(root).__name__} {root}"
        if isinstance(root, socket.gaierror):
            return _UNKNOWN_HOST
        if isinstance(root, ConnectionRefusedError):
            return "the connection was refused", "Check the vault's URL, and the firewall"
    if "NameResolution" in text or "name or service not known" in text.lower():
        return _UNKNOWN_HOST
    if "certificate verify failed" in text.lower():
        return "its certificate is not trusted", PRIVATE_AUTHORITY
    return "no answer came", "Check the network and firewall between this machine and the vault"


def _silent_host(error: AzureError, where: Vault) -> str:
    """The vault, or Entra, which is asked on the way."""
    host = silent_host(error)
    if host is None or host in urlsplit(where.url).netloc:
        return f"Key Vault {where.url}"
    return f"https://{host}"


_UNKNOWN_HOST = (
    "nothing has this name (DNS)",
    "Check the vault's name in the reference, and the DNS of this machine (private endpoints)",
)


def _is_passing(status: int) -> bool:
    return status in _PASSING or (status >= 500 and status != 501)
