"""Reading the blobs of one storage account over plain HTTP, with a credential that goes nowhere else.

For the files that a FHIR server has exported into the customer's storage (azure-and-aidbox D). Nothing is
sent from here: the URL and the headers of each request are.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from urllib.parse import unquote

import httpx

from pipeline.azure.credentials import STORAGE_SCOPE, ReadSecret, token_credential
from pipeline.azure.endpoint import other_account
from pipeline.azure.entra_errors import identity_error
from pipeline.config import DownloadStorage
from pipeline.errors import AuthError, ConfigError, DownloadRefused, Unreachable
from pipeline.redaction import remember

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

API_VERSION = "2023-11-03"
"""`x-ms-version`; bearer tokens and large blobs need one, 2021-12-02 or later (azure-and-aidbox D)."""

SAS_LIFE = timedelta(hours=1)
"""Of a SAS made from an account key: it is checked when a request begins, and each has its own."""

SECRET_SECONDS = 300.0
"""After so long a SAS or connection string is read again, so that a renewed one is found."""

_SUFFIXES = {
    "https://login.microsoftonline.us": "core.usgovcloudapi.net",
    "https://login.chinacloudapi.cn": "core.chinacloudapi.cn",
}
_PUBLIC_SUFFIX = "core.windows.net"
T = TypeVar("T")

_PORTS = {"https": 443, "http": 80}
_PLAIN_URL = re.compile(r"https?://[!-\[\]^-~]+", re.IGNORECASE)
_SAS = re.compile(r"[A-Za-z0-9%=&._~:/+,*-]+")


class _Opening(Protocol):
    """What opens one blob: a query to append, and headers."""

    def for_blob(self, container: str, blob: str) -> tuple[str, Mapping[str, str]]: ...


@dataclass(frozen=True)
class AccountAccess:
    """One account's blob endpoint and what opens it; is a `bulkdata.storage.StorageAccess`."""

    account: str
    origin: str
    prefix: str
    """The path that the account's containers lie below: empty, or `/devstoreaccount1` at the emulator."""
    kind: str
    opening: _Opening = field(repr=False)

    @property
    def address(self) -> str:
        """Where the account's containers lie, without a final slash."""
        scheme, _, host = self.origin.partition("://")
        return f"{scheme}://{host.removesuffix(f':{_PORTS[scheme]}')}{self.prefix}"

    def covers(self, url: str) -> bool:
        """Whether `url` is a blob's plain address in this account, also where it is signed already.

        Exactly this scheme, host and port, no userinfo, no fragment, no query but a signed one, and no path
        that a server could read as leading out of `prefix`.
        """
        parsed = _parsed(url)
        if parsed is None or parsed.fragment or _origin(parsed) != self.origin:
            return False
        if parsed.query and "sig" not in {name.lower() for name in parsed.params}:
            return False
        return _stays_below(_raw_path(url), self.prefix) and _stays_below(_raw_path(str(parsed)), self.prefix)

    def prepare(self, url: str) -> tuple[str, dict[str, str]]:
        """URL and headers of one request; a signed URL stays as it is. Ask for each request anew.

        Raises DownloadRefused unless it is covered; AuthError, Unreachable, ConfigError when the credential
        cannot be had.
        """
        if not self.covers(url):
            raise DownloadRefused(
                f"a file does not lie in the storage account {self.account}",
                "Its credential goes nowhere else.",
            )
        headers = {"x-ms-version": API_VERSION}
        parsed = httpx.URL(url)
        if parsed.query:
            return str(parsed), headers
        path = unquote(_raw_path(str(parsed)).removeprefix(self.prefix)).removeprefix("/")
        container, slash, blob = path.partition("/")
        query, more = self.opening.for_blob(*((container, blob) if slash else ("$root", container)))
        plain = str(parsed).removesuffix("?")
        return (f"{plain}?{query}" if query else plain), {**headers, **more}

    def advice(self, status: int, error_code: str) -> str:
        """What to do about a refusal by the account, in words; `error_code` is `x-ms-error-code`."""
        if self.kind == "none" and status in (401, 403, 404, 409):
            return f"It is asked for without any credential; set downloads.storage.kind ({_KINDS})."
        if error_code in _ADVICE:
            return _ADVICE[error_code]
        if status in (404, 410):
            return "It is not there, or not any more; a fresh manifest is fetched at the next attempt."
        if status not in (401, 403):
            return "Look at the file in the storage account."
        if self.kind == "sas":
            return f"The SAS has expired, lacks the permission read, or is for another account; {_FIREWALL}."
        if self.kind == "connection-string":
            return (
                f"The account key is wrong or was renewed, or the account does not allow keys; {_FIREWALL}."
            )
        if status == 401:
            return "The identity's token is not accepted: check that the account belongs to its tenant."
        return _ROLE


_KINDS = "managed-identity, workload-identity, service-principal, sas or connection-string"
_FIREWALL = "or the account's firewall does not let this machine in (networking: selected networks)"
_ROLE = (
    "Give the identity the role Storage Blob Data Reader on the account or container (Owner and Contributor "
    f"do not include it; it takes some minutes); {_FIREWALL}."
)
_ADVICE = {
    "AuthorizationPermissionMismatch": (
        "The identity lacks the role Storage Blob Data Reader on the account or container (a new assignment "
        "takes some minutes), or the SAS lacks the permission read."
    ),
    "AuthenticationFailed": (
        "The signature or its time is not accepted: the SAS or the token has expired or is not for this "
        "account, the account key was renewed, or a clock is wrong."
    ),
    "InvalidAuthenticationInfo": (
        "The identity's token is not accepted: it is of another tenant than the account's, or a clock is "
        "wrong."
    ),
    "NoAuthenticationInformation": f"No credential was sent; set downloads.storage.kind ({_KINDS}).",
    "KeyBasedAuthenticationNotPermitted": (
        "The account does not allow its key, nor a SAS made from it: use an identity (managed-identity, "
        "workload-identity, service-principal)."
    ),
    "AuthorizationSourceIPMismatch": "The SAS is for other IP addresses than this machine's.",
    "AuthorizationProtocolMismatch": "The SAS is for https only.",
    "AuthorizationServiceMismatch": "The SAS is not for the blob service.",
    "AuthorizationResourceTypeMismatch": "The SAS is not for objects; it needs the resource type object.",
    "AccountIsDisabled": "The storage account is disabled.",
    "PublicAccessNotPermitted": f"Nothing is public there; set downloads.storage.kind ({_KINDS}).",
    "ResourceNotFound": ("The container is not there; without a credential, private containers look so too."),
    "ContainerNotFound": "The export's container is gone: ask for the export again.",
    "BlobNotFound": "The file is gone: a rule of the account may delete exports too early.",
    "BlobArchived": "A rule of the account has archived the file; exclude the export's container from it.",
}


def storage_access(
    storage: DownloadStorage,
    secret: ReadSecret,
    *,
    credential: TokenCredential | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AccountAccess:
    """Access to the configured account. Nothing is sent yet, except for secrets that Key Vault holds.

    `secret` resolves references; `credential` is used in place of the configured identity, `clock` gives
    monotonic seconds. Raises ConfigError for a SAS or connection string that is none, or of another account.
    """
    endpoint = storage.endpoint
    opening: _Opening
    if storage.kind == "connection-string":
        reading = _Renewed(lambda: _connection_of(storage, secret), clock)
        endpoint = endpoint or reading.value()["blobendpoint"]
        opening = _ByAccountKey(storage.account, reading, https_only=endpoint.startswith("https:"))
        if "sharedaccesssignature" in reading.value():
            opening = _BySas(_Renewed(lambda: _sas_of(_connection_of(storage, secret)), clock))
    elif storage.kind == "sas":
        opening = _BySas(
            _Renewed(lambda: _checked_sas(secret(storage.sas or "").decode(errors="replace")), clock)
        )
        opening.sas.value()
    elif storage.kind == "none":
        opening = _Anonymous()
    else:
        opening = _ByIdentity(storage.account, credential or token_credential(storage, secret))
    url = httpx.URL(endpoint or _default_endpoint(storage))
    other = other_account(str(url), storage.account)
    if other is not None:
        raise ConfigError(
            f"downloads.storage names the account {storage.account}, and its endpoint {other}",
            "Correct downloads.storage.account or the endpoint: one account's credential goes to no other.",
        )
    return AccountAccess(storage.account, _origin(url), url.path.rstrip("/"), storage.kind, opening)


class _Renewed(Generic[T]):
    """A secret that is read again now and then; a read that fails is passed on."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._held: tuple[float, T] | None = None

    def value(self) -> T:
        with self._lock:
            now = self._clock()
            if self._held is None or now - self._held[0] > SECRET_SECONDS:
                self._held = (now, self._read())
            return self._held[1]


@dataclass(frozen=True)
class _Anonymous:
    def for_blob(self, _container: str, _blob: str) -> tuple[str, Mapping[str, str]]:
        return "", {}


@dataclass(frozen=True)
class _BySas:
    sas: _Renewed[str] = field(repr=False)

    def for_blob(self, _container: str, _blob: str) -> tuple[str, Mapping[str, str]]:
        remember(sas := self.sas.value(), lasting=True)
        return sas, {}


@dataclass(frozen=True)
class _ByAccountKey:
    """A SAS for reading the one blob, made from the account's key; the key itself is never sent."""

    account: str
    connection: _Renewed[dict[str, str]] = field(repr=False)
    https_only: bool

    def for_blob(self, container: str, blob: str) -> tuple[str, Mapping[str, str]]:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        remember(key := self.connection.value()["accountkey"], lasting=True)
        sas = generate_blob_sas(
            self.account,
            container,
            blob,
            account_key=key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + SAS_LIFE,
            protocol="https" if self.https_only else "https,http",
        )
        return sas, {}


@dataclass(frozen=True)
class _ByIdentity:
    """A bearer token, asked for each request: azure-identity keeps it, and renews it in time."""

    account: str
    credential: TokenCredential = field(repr=False)

    def for_blob(self, _container: str, _blob: str) -> tuple[str, Mapping[str, str]]:
        from azure.core.exceptions import AzureError
        from msal.exceptions import MsalError  # type: ignore[import-untyped]

        failed: AuthError | Unreachable
        try:
            token = self.credential.get_token(STORAGE_SCOPE).token
        except (AzureError, MsalError, OSError, ValueError) as error:  # token files, answers that are no JSON
            failed = identity_error(error, f"the storage account {self.account}")
        else:
            remember(token)
            return "", {"Authorization": f"Bearer {token}"}
        raise failed  # outside the except block: its error may carry the request along


def _default_endpoint(storage: DownloadStorage, suffix: str | None = None) -> str:
    # A name belongs to its owner in one cloud only: in another it is a stranger's account.
    below = suffix or _SUFFIXES.get(storage.authority or "", _PUBLIC_SUFFIX)
    return f"https://{storage.account}.blob.{below}"


def _connection_of(storage: DownloadStorage, secret: ReadSecret) -> dict[str, str]:
    text = secret(storage.connection_string or "").decode(errors="replace").strip()
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    parts = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if not ({"accountkey", "sharedaccesssignature"} & parts.keys()):
        raise ConfigError(
            "downloads.storage.connection_string names no AccountKey and no SharedAccessSignature",
            "Copy it from the account's page Access keys.",
        )
    if "accountkey" in parts and not _is_base64(parts["accountkey"]):
        raise ConfigError(
            "the AccountKey of downloads.storage.connection_string is cut off or damaged", "Copy it again."
        )
    if parts.get("accountname", storage.account) != storage.account:
        raise ConfigError(
            f"downloads.storage.connection_string is not of the account {storage.account}",
            "Correct downloads.storage.account or the connection string.",
        )
    endpoint = parts.setdefault("blobendpoint", _default_endpoint(storage, parts.get("endpointsuffix")))
    url = _parsed(endpoint)
    if url is None or url.query or (url.scheme == "http" and not _is_this_machine(url.host)):
        raise ConfigError(
            "the BlobEndpoint of downloads.storage.connection_string is no https URL", "Copy it again."
        )
    return parts


def _sas_of(connection: Mapping[str, str]) -> str:
    return _checked_sas(connection.get("sharedaccesssignature", ""))


def _checked_sas(text: str) -> str:
    sas = text.strip().removeprefix("?")
    names = {part.partition("=")[0] for part in sas.split("&")}
    if not _SAS.fullmatch(sas) or not {"sig", "sv"} <= names:
        raise ConfigError(
            "downloads.storage.sas is no shared access signature",
            "It is the part behind the question mark: sv=...&sig=...",
        )
    return sas


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


def _is_this_machine(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def _parsed(url: str) -> httpx.URL | None:
    if not _PLAIN_URL.fullmatch(url):  # no spaces, controls, backslashes, other alphabets
        return None
    try:
        parsed = httpx.URL(url)
        named = bool(parsed.host)  # a name in punycode that stands for nothing raises
    except (httpx.InvalidURL, ValueError):
        return None
    written = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    return parsed if parsed.scheme in _PORTS and named and "@" not in written else None


def _origin(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii")
    host = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{host}:{_PORTS[url.scheme] if url.port is None else url.port}"


def _raw_path(url: str) -> str:
    """The path as written, before anything was resolved."""
    rest = url.partition("://")[2]
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"/{path.partition('/')[2]}"


def _stays_below(path: str, prefix: str) -> bool:
    if not path.startswith(f"{prefix}/") or path == f"{prefix}/":
        return False
    once = unquote(path)
    for reading in (path, once, unquote(once)):
        if "\\" in reading or any(each in (".", "..") for each in reading.split("/")):
            return False
    return not path.removeprefix(prefix).startswith("//")
