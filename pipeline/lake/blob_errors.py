"""What Azure storage answers when it does not do what was asked, in words and with the way out.

The SDK's own texts are never passed on: they hold URLs with signatures, headers and strings that were signed.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from pipeline.lake.blob_address import BlobAddress

if TYPE_CHECKING:
    from pipeline.lake.blob_account import BlobAccess

Words = tuple[str, str]
"""What is wrong, and what to do."""

MOST_SKEW = 300
"""Seconds between this machine's clock and the storage's, from which we speak of it (it refuses at 900)."""

_GONE = ("there is no such file", "See whether it was removed since the table or fact that names it")


def explain(error: Exception, at: BlobAddress, access: BlobAccess | None) -> Words:
    """What went wrong and what to do; safe to print. `access`: how the account was opened, if it was."""
    from azure.core.exceptions import HttpResponseError

    from pipeline.lake.blob_filesystem import origins

    causes = list(origins(error))
    answered = next(
        (each for each in causes if isinstance(each, HttpResponseError) and error_code(each)), None
    )
    if answered is not None:
        return _Answer(answered, at, access).words()
    silent = next((each for each in causes if isinstance(each, HttpResponseError)), None)
    if silent is not None:
        return _Answer(silent, at, access).words()
    if isinstance(error, FileExistsError):
        return "File exists", "Nothing is overwritten in the lake; somebody else has written that name"
    if isinstance(error, FileNotFoundError):
        return _GONE
    return _connection(causes, at, urlsplit(access.endpoint if access else at.endpoint).netloc)


def error_code(error: BaseException) -> str:
    """The storage's own word for a refusal, such as ContainerNotFound; empty when it gave none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _connection(causes: list[BaseException], at: BlobAddress, host: str) -> Words:
    if any(isinstance(each, socket.gaierror) for each in causes):
        return (
            f"there is no host for the storage account {at.account} ({host})",
            "Check the account's name in lake, this machine's DNS, and private endpoints",
        )
    if any(isinstance(each, ssl.SSLError) for each in causes):
        return (
            f"the TLS certificate of {host} is not trusted",
            "Behind a proxy that opens TLS, point SSL_CERT_FILE and REQUESTS_CA_BUNDLE to its CA; "
            "else check that the endpoint is the right one",
        )
    if any(isinstance(each, ConnectionRefusedError) for each in causes):
        return f"{host} refuses connections", "Check lake_auth.endpoint, firewalls and proxies"
    if any(isinstance(each, TimeoutError) for each in causes):
        return f"{host} does not answer in time", "Check firewalls, private endpoints and proxies; try again"
    local = next((each for each in causes if isinstance(each, OSError) and each.strerror), None)
    if local is not None and not _from_network(causes):
        return str(local.strerror), "Check the disk and the file that was to be written"
    return (
        f"the connection to {host} broke ({type(causes[-1]).__name__})",
        "Try again; if it stays so, look at network, proxies and the account's status",
    )


def _from_network(causes: list[BaseException]) -> bool:
    from azure.core.exceptions import AzureError

    return any(isinstance(each, AzureError) for each in causes)


class _Answer:
    """A refusal by the storage itself."""

    def __init__(self, error: BaseException, at: BlobAddress, access: BlobAccess | None) -> None:
        self.at = at
        self.access = access
        self.code = error_code(error)
        response: Any = getattr(error, "response", None)
        self.status = int(getattr(response, "status_code", 0) or 0)
        self.headers = dict(getattr(response, "headers", None) or {})
        self.text = str(getattr(error, "message", ""))

    @property
    def by_sas(self) -> bool:
        return self.access is not None and self.access.sas is not None

    @property
    def by_key(self) -> bool:
        return self.access is not None and self.access.key is not None

    def words(self) -> Words:
        skew = self._skew()
        if self.status in (401, 403) and skew is not None and abs(skew) > MOST_SKEW:
            side = "behind" if skew < 0 else "ahead of"
            return (
                f"this machine's clock is {abs(skew) / 60:.0f} minutes {side} the storage's ({self._label})",
                "Set the clock (NTP): requests are signed with it",
            )
        known = _KNOWN.get(self.code)
        if known is not None:
            return known(self)
        if self.status in (401, 403):
            return self.refused_credential()
        if self.status >= 500 or self.status == 429:
            return f"the storage is busy or in trouble ({self._label})", "Try again later"
        return (
            f"the storage refuses it ({self._label})",
            "Look the code up in the list of Blob service error codes",
        )

    @property
    def _label(self) -> str:
        return f"HTTP {self.status} {self.code}".strip() if self.status else self.code

    def _skew(self) -> float | None:
        """Seconds that our clock is ahead of the server's."""
        said = next((value for name, value in self.headers.items() if name.lower() == "date"), None)
        try:
            return (datetime.now(UTC) - parsedate_to_datetime(str(said))).total_seconds()
        except (TypeError, ValueError):
            return None

    def no_file(self) -> Words:
        return _GONE

    def no_container(self) -> Words:
        return (
            f"there is no container {self.at.container} in the storage account {self.at.account}",
            "Create it (az storage container create --auth-mode login --account-name "
            f"{self.at.account} --name {self.at.container}), or correct lake; it is never created from here",
        )

    def no_permission(self) -> Words:
        if self.by_sas:
            return (
                f"the SAS does not allow this ({self._label})",
                "Make one for the container with read, add, create, write, delete and list (racwdl)",
            )
        if self.access is not None and self.access.auth.kind == "none":
            return self.no_anonymous()
        return (
            f"this identity has no role for the data of the container {self.at.container} ({self._label})",
            "Assign it 'Storage Blob Data Contributor' on the container or the storage account "
            f"{self.at.account} (Owner and Contributor are not enough); it takes up to ten minutes",
        )

    def firewall(self) -> Words:
        if "authenticate" in self.text:
            return self.refused_credential()
        if self.by_sas:
            return (
                f"the SAS or the account's firewall does not allow this ({self._label})",
                "Check its permissions (racwdl), resource types (container and object) and addresses; then "
                f"Networking of {self.at.account}",
            )
        return (
            f"the firewall of the storage account {self.at.account} keeps this machine out ({self._label})",
            "Networking of the account: add this machine's address or network, or use a private endpoint",
        )

    def refused_credential(self) -> Words:
        if self.by_sas:
            return self._refused_sas()
        if self.by_key:
            return (
                f"the account key is wrong ({self._label})",
                f"Copy the connection string of {self.at.account} again: its keys may have been rotated",
            )
        if self.access is not None and self.access.auth.kind == "none":
            return self.no_anonymous()
        return (
            f"the storage does not accept the token ({self._label})",
            f"Check that lake_auth.tenant_id is the tenant of the account {self.at.account}, and the cloud "
            "(authority)",
        )

    def _refused_sas(self) -> Words:
        end = self._sas_time("se")
        start = self._sas_time("st")
        if end is not None and end <= datetime.now(UTC):
            return (
                f"the SAS ended on {end:%Y-%m-%d %H:%M} UTC ({self._label})",
                "Make a new one and put it where lake_auth.sas points",
            )
        if start is not None and start > datetime.now(UTC):
            return (
                f"the SAS begins only on {start:%Y-%m-%d %H:%M} UTC ({self._label})",
                "Wait, or make another",
            )
        return (
            f"the SAS is not accepted ({self._label})",
            f"Make a new one for this container of {self.at.account}: the key or policy behind it may have "
            "been rotated, or it was cut when it was copied",
        )

    def _sas_time(self, name: str) -> datetime | None:
        held = parse_qs((self.access.sas if self.access else None) or "").get(name)
        try:
            said = datetime.fromisoformat(held[0]) if held else None
        except ValueError:
            return None
        return said.replace(tzinfo=said.tzinfo or UTC) if said is not None else None

    def no_keys(self) -> Words:
        return (
            f"the storage account {self.at.account} takes no account keys and no SAS made with them",
            "Use an identity (lake_auth.kind managed-identity, workload-identity or service-principal), or "
            "allow storage account key access in its configuration",
        )

    def no_anonymous(self) -> Words:
        return (
            f"the container {self.at.container} is not open to everyone ({self._label})",
            "Set lake_auth.kind to an identity: a lake is never public",
        )

    def disabled(self) -> Words:
        return f"the storage account {self.at.account} is disabled", "Look at its subscription in the portal"

    def kept(self) -> Words:
        return (
            f"a policy of the container keeps its files from being changed or removed ({self._label})",
            "Lift immutability, legal hold or lease for this path",
        )

    def archived(self) -> Words:
        return "the file is in the archive tier", "Rehydrate it, and keep lifecycle rules away from the lake"

    def wrong_sas_form(self) -> Words:
        return (
            f"the SAS was made for something else ({self._label})",
            "Make one for the service Blob with the resource types container and object, https, and this "
            "machine's address where it is limited",
        )


_KNOWN: dict[str, Callable[[_Answer], Words]] = {
    "BlobNotFound": _Answer.no_file,
    "ContainerNotFound": _Answer.no_container,
    "ContainerBeingDeleted": _Answer.no_container,
    "ResourceNotFound": _Answer.no_container,
    "AuthorizationPermissionMismatch": _Answer.no_permission,
    "InsufficientAccountPermissions": _Answer.no_permission,
    "AuthorizationFailure": _Answer.firewall,
    "InvalidAuthenticationInfo": _Answer.refused_credential,
    "AuthorizationSourceIPMismatch": _Answer.wrong_sas_form,
    "AuthorizationProtocolMismatch": _Answer.wrong_sas_form,
    "AuthorizationServiceMismatch": _Answer.wrong_sas_form,
    "AuthorizationResourceTypeMismatch": _Answer.wrong_sas_form,
    "KeyBasedAuthenticationNotPermitted": _Answer.no_keys,
    "PublicAccessNotPermitted": _Answer.no_anonymous,
    "NoAuthenticationInformation": _Answer.no_anonymous,
    "AccountIsDisabled": _Answer.disabled,
    "BlobImmutableDueToPolicy": _Answer.kept,
    "LeaseIdMissing": _Answer.kept,
    "BlobArchived": _Answer.archived,
}
