"""Where a lake on Azure is: from the URL and the settings to account, container, prefix and endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*|\$web|\$root")
_UNUSABLE_IN_A_PREFIX = re.compile(r"[?#%\\\x00-\x1f\x7f]|(^|/)\.{1,2}(/|$)|//")
_FORM = "abfss://container@account.dfs.core.windows.net/path"
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class BlobAddress:
    """A folder in a container: `prefix` has no slash at its ends and may be empty."""

    account: str
    container: str
    prefix: str
    host: str
    """Of the URL, such as `account.dfs.core.windows.net`."""

    @property
    def endpoint(self) -> str:
        """The account's blob endpoint in that cloud."""
        labels = self.host.split(".")
        labels[labels.index("dfs") if "dfs" in labels else labels.index("blob")] = "blob"
        return f"https://{'.'.join(labels)}"

    @property
    def place(self) -> str:
        return f"abfss://{self.container}@{self.host}/{self.prefix}".rstrip("/")


def parse_address(url: str) -> BlobAddress:
    """`abfs(s)://container@account.dfs.<cloud>/path`. Raises `ConfigError`, which repeats no query."""
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.password is not None:
        raise ConfigError(
            "the lake's URL holds a query, a fragment or a password",
            f"Write it as {_FORM}; a SAS goes into lake_auth as a reference (kind: sas)",
        )
    try:
        host = parts.hostname or ""
        container = parts.username or ""
        if parts.port is not None:
            raise ValueError
    except ValueError:
        raise ConfigError(
            "the lake's URL holds a port", f"{_FORM}; lake_auth.endpoint may hold one"
        ) from None
    account, _, suffix = host.partition(".")
    _require_names(container, account)
    if not {"dfs", "blob"} & set(suffix.split(".")):
        raise ConfigError(
            f"lake: {host} is no storage account's host",
            f"Write it as {_FORM}, with another cloud's suffix where it is there, such as "
            "dfs.core.chinacloudapi.cn; a private address goes into lake_auth.endpoint",
        )
    prefix = unquote(parts.path).strip("/")
    if _UNUSABLE_IN_A_PREFIX.search(prefix):
        raise ConfigError("the path in the lake's URL cannot be used", r"Leave out . .. // ? # % and \ there")
    return BlobAddress(account, container, prefix, host)


def _require_names(container: str, account: str) -> None:
    wrong, rules = [], []
    if not _CONTAINER.fullmatch(container):
        wrong.append(_no_name(container, "container"))
        rules.append(
            "a container's name has 3 to 63 lower-case letters, digits and single - between them, and stands "
            "before the @"
        )
    if not _ACCOUNT.fullmatch(account):
        wrong.append(_no_name(account, "storage account"))
        rules.append(
            "a storage account's name has 3 to 24 lower-case letters and digits, and begins the host after "
            "the @"
        )
    if wrong:
        raise ConfigError(f"lake: the URL {' and '.join(wrong)}", f"Write it as {_FORM}: {'; '.join(rules)}")


def _no_name(found: str, what: str) -> str:
    return f"has '{found}' as its {what}, which is no {what}'s name" if found else f"names no {what}"


@dataclass(frozen=True)
class ConnectionString:
    """What a connection string of the portal holds."""

    account: str
    endpoint: str
    key: str | None = field(repr=False)
    sas: str | None = field(repr=False)


def parse_connection_string(text: str) -> ConnectionString:
    """`AccountName=...;AccountKey=...;EndpointSuffix=...` and its other forms. Raises `ConfigError`."""
    pairs = [part.split("=", 1) for part in text.strip().strip(";").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise _no_connection_string("it is not made of NAME=VALUE;NAME=VALUE")
    held = {name.strip().lower(): value.strip() for name, value in pairs}
    if held.get("usedevelopmentstorage", "").lower() == "true":
        raise _no_connection_string("UseDevelopmentStorage hides where the emulator is; write it out in full")
    account = held.get("accountname") or _account_in(held.get("blobendpoint", ""))
    key, sas = held.get("accountkey"), held.get("sharedaccesssignature")
    if not account or not (key or sas):
        raise _no_connection_string("it needs AccountName, and AccountKey or SharedAccessSignature")
    scheme = held.get("defaultendpointsprotocol", "https").lower()
    suffix = held.get("endpointsuffix", "core.windows.net")
    endpoint = held.get("blobendpoint") or f"{scheme}://{account}.blob.{suffix}"
    parts = urlsplit(endpoint)
    if parts.scheme != "https" and parts.hostname not in _LOCAL:
        raise _no_connection_string("its endpoint is plain http; that is for this machine only")
    return ConnectionString(account, endpoint.rstrip("/"), key or None, None if key else sas)


def _account_in(endpoint: str) -> str:
    return (urlsplit(endpoint).hostname or "").partition(".")[0]


def _no_connection_string(why: str) -> ConfigError:
    return ConfigError(
        f"lake_auth.connection_string is no connection string of a storage account: {why}",
        "Copy it from the portal: storage account, Access keys (or Shared access signature)",
    )
