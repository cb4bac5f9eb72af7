"""azure-identity credentials from the configuration: one meaning of `kind` for lake, downloads and Key Vault.

The credentials cache and renew their tokens themselves; ask them for each request anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.config import AzureIdentity
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

ReadSecret = Callable[[str], bytes]
"""Reference -> secret, such as `Config.secret`."""

_ADVICE = {
    "workload-identity": "Set tenant_id and client_id, or run where the workload identity webhook sets "
    "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE",
    "service-principal": "Check tenant_id, client_id and authority; a certificate is a PEM file with the "
    "private key and the certificate",
    "managed-identity": "Check client_id: it is the client id of a user-assigned identity",
    "default": "Check authority",
}

STORAGE_SCOPE = "https://storage.azure.com/.default"

_PUBLIC_AUTHORITIES = frozenset(
    {
        "https://login.microsoftonline.com",
        "https://login.microsoftonline.us",
        "https://login.chinacloudapi.cn",
    }
)


def token_credential(identity: AzureIdentity, secret: ReadSecret) -> TokenCredential:
    """The credential for blocking callers. `secret` resolves references.

    Nothing is sent yet. Raises `ConfigError` for a secret that cannot be had.
    """
    import azure.identity

    return _build(azure.identity, identity, secret)  # type: ignore[no-any-return]


def async_token_credential(identity: AzureIdentity, secret: ReadSecret) -> AsyncTokenCredential:
    """The same for callers with an event loop (adlfs)."""
    import azure.identity.aio

    return _build(azure.identity.aio, identity, secret)  # type: ignore[no-any-return]


def _build(library: Any, identity: AzureIdentity, secret: ReadSecret) -> Any:
    # Its warnings repeat Entra's words uncleaned, before the error that says the same in ours.
    logging.getLogger("azure.identity").setLevel(logging.CRITICAL)
    try:
        return _of_kind(library, identity, secret)
    except ValueError:  # its text may quote what was given
        raise ConfigError(
            f"no {identity.kind} can be used as it is configured", _ADVICE[identity.kind]
        ) from None


def _of_kind(library: Any, identity: AzureIdentity, secret: ReadSecret) -> Any:
    # Callers wait and ask again by their own rules: a sensor's tick must not sleep through the library's.
    options: dict[str, Any] = {"retry_total": 2}
    if identity.authority is not None:
        options["authority"] = identity.authority
        # Microsoft's directory of clouds knows only these; any other authority was named by the operator.
        options["disable_instance_discovery"] = identity.authority not in _PUBLIC_AUTHORITIES
    if identity.kind == "managed-identity":
        return library.ManagedIdentityCredential(client_id=identity.client_id, retry_total=2)
    if identity.kind == "workload-identity":
        return library.WorkloadIdentityCredential(
            tenant_id=identity.tenant_id, client_id=identity.client_id, **options
        )
    if identity.kind == "service-principal":
        return _service_principal(library, identity, secret, options)
    return library.DefaultAzureCredential(
        managed_identity_client_id=identity.client_id,
        exclude_interactive_browser_credential=True,
        **options,
    )


def _service_principal(
    library: Any, identity: AzureIdentity, secret: ReadSecret, options: dict[str, Any]
) -> Any:
    if identity.certificate is not None:
        return library.CertificateCredential(
            identity.tenant_id,
            identity.client_id,
            certificate_data=secret(identity.certificate),
            **options,
        )
    value = secret(identity.client_secret or "").decode().strip()
    return library.ClientSecretCredential(identity.tenant_id, identity.client_id, value, **options)
