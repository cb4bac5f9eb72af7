"""Environment variables that would replace the configured credential behind its back (azure-and-aidbox E).

adlfs takes `AZURE_STORAGE_CONNECTION_STRING` before any credential that it is given, and an account key
before a SAS. delta-rs adds what it finds to its options: an account key, which beats a SAS; an endpoint;
even `AZURE_ALLOW_INVALID_CERTIFICATES`. So with a lake on Azure none of them may be set, whatever
`lake_auth.kind` is: with kind `default` too, where an operator who sets one expects it to count, and half of
the libraries would agree. The exception is a variable that the configuration itself names
(`connection_string: env:AZURE_STORAGE_CONNECTION_STRING`).

What azure-identity reads (AZURE_CLIENT_ID, AZURE_TENANT_ID, AZURE_CLIENT_SECRET, AZURE_FEDERATED_TOKEN_FILE,
AZURE_AUTHORITY_HOST, IDENTITY_ENDPOINT, ...) is left alone: workload identity lives by it, and neither
library looks at it once it has been given a token.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from pipeline.errors import ConfigError

OF_ADLFS = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_TENANT_ID",
    "AZURE_STORAGE_ANON",
)
"""adlfs 2026.8, `AzureBlobFileSystem.__init__`."""

OF_DELTA_RS = (
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_AUTHORITY_ID",
    "AZURE_STORAGE_AUTHORITY_HOST",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_CONTAINER_NAME",
    "AZURE_USE_FABRIC_ENDPOINT",
    "AZURE_FABRIC_TOKEN_SERVICE_URL",
    "AZURE_FABRIC_WORKLOAD_HOST",
    "AZURE_FABRIC_SESSION_TOKEN",
    "AZURE_FABRIC_CLUSTER_IDENTIFIER",
    "AZURE_SKIP_SIGNATURE",
    "AZURE_USE_AZURE_CLI",
    "AZURE_ALLOW_HTTP",
    "AZURE_ALLOW_INVALID_CERTIFICATES",
    "AZURE_PROXY_URL",
    "AZURE_PROXY_CA_CERTIFICATE",
)
"""deltalake 1.6: `AZURE_*` names that its object store knows, without those of azure-identity."""


def refuse_overrides(allowed: Collection[str] = (), environment: Mapping[str, str] | None = None) -> None:
    """Raises `ConfigError` that names the variables which are set and must not be. `allowed`: names that the
    configuration refers to itself."""
    environment = os.environ if environment is None else environment
    found = [name for name in (*OF_ADLFS, *OF_DELTA_RS) if environment.get(name) and name not in allowed]
    if found:
        raise ConfigError(
            f"the environment holds {' and '.join(found)}, which would override lake_auth",
            "Unset it here, or name it in lake_auth (such as kind: connection-string with connection_string: "
            "env:AZURE_STORAGE_CONNECTION_STRING): there must be one credential for the lake",
        )
