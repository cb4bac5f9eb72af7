"""The configuration file: what to export from where, and where to write it.

One YAML file, named by `EXPORTS_CONFIG`; else `exports.yaml` in `DAGSTER_HOME`; else
`dagster_home/exports.yaml` of the working directory. Relative paths in it start at the file's own folder.
It never holds a secret, only references to secrets (`env:NAME`, `file:PATH`, `keyvault:URL`).
"""

from pipeline.config.identity import (
    AzureIdentity,
    IdentityKind,
    KeyRotation,
    KeyVaultAuth,
    LakeAuth,
    StorageAuth,
    StorageKind,
)
from pipeline.config.loading import Config, Conversion, default_config_path, load_config
from pipeline.config.model import HttpsUrl, SecretReference
from pipeline.config.secrets import resolve_secret, secret_path
from pipeline.config.source import (
    PROFILE_NAMES,
    AskAgain,
    Auth,
    DownloadLimits,
    Downloads,
    DownloadStorage,
    Export,
    MaxQuarantined,
    Source,
    Timeouts,
)
from pipeline.config.upkeep import Notifier, Occasion, Retention, Spool

__all__ = [
    "PROFILE_NAMES",
    "AskAgain",
    "Auth",
    "AzureIdentity",
    "Config",
    "Conversion",
    "DownloadLimits",
    "DownloadStorage",
    "Downloads",
    "Export",
    "HttpsUrl",
    "IdentityKind",
    "KeyRotation",
    "KeyVaultAuth",
    "LakeAuth",
    "MaxQuarantined",
    "Notifier",
    "Occasion",
    "Retention",
    "SecretReference",
    "Source",
    "Spool",
    "StorageAuth",
    "StorageKind",
    "Timeouts",
    "default_config_path",
    "load_config",
    "resolve_secret",
    "secret_path",
]
