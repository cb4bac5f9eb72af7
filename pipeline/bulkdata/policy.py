"""Which file URLs are asked for, and which credential goes where (protocol facts 9 and 28)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.auth.origins import origin, printable, require_secure
from pipeline.bulkdata.storage import StorageAccess, is_signed
from pipeline.errors import ConfigError, DownloadRefused
from pipeline.network.known_hosts import KnownHosts


@dataclass(frozen=True)
class Route:
    """How a file is asked for: with the FHIR server's token, the storage account's credential, or neither."""

    bearer: bool
    storage: StorageAccess | None = None


@dataclass(frozen=True)
class DownloadPolicy:
    """The configuration's `downloads` section.

    | `requiresAccessToken` | `auto` | `bearer` | `none` |
    | --- | --- | --- | --- |
    | true | token; elsewhere only to `allow_hosts`, else refused | the same | no token |
    | false | no token | token on the FHIR origin only | no token |
    | missing | token on the FHIR origin only | token on the FHIR origin only | no token |

    `bearer` is for servers whose manifest wrongly says false. `allow_hosts` are `host`, `host:port` (https)
    or whole origins `https://host:port`. Raises ConfigError for an entry that is none of these.

    `storage` is the customer's account that the server exports to: its files are read with its own
    credential, whatever the manifest says, unless they are signed already. With `auto` other files go by the
    table; with `storage` there are no others.

    A host that is neither the FHIR server's, nor the account's, nor in `allow_hosts` must be on the open
    internet: a manifest leads nobody to a neighbour of ours.
    """

    auth: Literal["auto", "bearer", "none", "storage"] = "auto"
    allow_hosts: tuple[str, ...] = ()
    storage: StorageAccess | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.auth not in ("auto", "bearer", "none", "storage"):
            raise ConfigError("downloads.auth is unknown", "Use auto, bearer, none or storage.")
        if self.auth == "storage" and self.storage is None:
            raise ConfigError(
                "files are read from a storage account, but downloads.storage names none",
                "Set downloads.storage: {account, kind}.",
            )
        if any("*" in each for each in self.allow_hosts):
            raise ConfigError("downloads.allow_hosts holds a wildcard", "Name each host in full.")
        allowed = self.allowed_origins
        if self.storage is not None and self.storage.origin in allowed:
            raise ConfigError(
                f"downloads.allow_hosts holds the host of the storage account {self.storage.account}",
                "Remove it: the FHIR server's token never goes there.",
            )

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins of `allow_hosts`; the `httpx.Auth` must know them too to send its token there."""
        return frozenset(_allowed(each) for each in self.allow_hosts)

    def known_hosts(self, *urls: str | None) -> KnownHosts:
        """Those that may be inside a network: the hosts of `urls`, `allow_hosts` and the storage account."""
        named = [] if self.storage is None else [self.storage.origin]
        return KnownHosts.of([each for each in urls if each], [*self.allowed_origins, *named])

    def route(self, url: str, fhir_url: str, requires_access_token: bool | None) -> Route:
        """How this file is asked for. Raises DownloadRefused for one that must not be asked for at all."""
        require_secure(url, error=DownloadRefused)
        if self.storage is not None and self.storage.covers(url):
            return Route(bearer=False, storage=None if is_signed(url) else self.storage)
        bearer = self.bearer_goes(url, fhir_url, requires_access_token)
        self.known_hosts(fhir_url).check(url, DownloadRefused)
        return Route(bearer)

    def bearer_goes(self, url: str, fhir_url: str, requires_access_token: bool | None) -> bool:
        """Whether the request for this file, which is none of `storage`, carries the token.

        Raises DownloadRefused for a URL that must not be asked at all: no http(s), plain http off loopback,
        userinfo, or a token demanded by an origin that may not have it.
        """
        require_secure(url, error=DownloadRefused)
        if self.auth == "none":
            return False
        if self.auth == "storage":
            account = self.storage.account if self.storage else ""
            raise DownloadRefused(
                f"{printable(url)} is no file of the storage account {account}",
                "Correct downloads.storage (account, endpoint), or set downloads.auth to auto and the knob "
                "downloads to auto.",
            )
        target = origin(url, error=DownloadRefused)
        if target == origin(fhir_url):
            return requires_access_token is not False or self.auth == "bearer"
        if requires_access_token is not True:
            return False
        if target in self.allowed_origins:
            return True
        raise DownloadRefused(
            f"the manifest wants the access token sent to {target}, which is not the FHIR server",
            f"If that host is to be trusted, add {printable(url).split('/')[2]} to downloads.allow_hosts.",
        )


def _allowed(entry: str) -> str:
    url = entry if "://" in entry else f"https://{entry}"
    require_secure(url)
    return origin(url)
