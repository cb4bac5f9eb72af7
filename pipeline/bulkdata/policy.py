"""Which file URLs are asked for, and which of them see the bearer token (protocol facts 9 and 28)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.auth.origins import origin, printable, require_secure
from pipeline.errors import ConfigError, DownloadRefused


@dataclass(frozen=True)
class DownloadPolicy:
    """`auth` and `allow_hosts` of the configuration's `downloads` section.

    | `requiresAccessToken` | `auto` | `bearer` | `none` |
    | --- | --- | --- | --- |
    | true | token; elsewhere only to `allow_hosts`, else refused | the same | no token |
    | false | no token | token on the FHIR origin only | no token |
    | missing | token on the FHIR origin only | token on the FHIR origin only | no token |

    `bearer` is for servers whose manifest wrongly says false. `allow_hosts` are `host`, `host:port` (https)
    or whole origins `https://host:port`. Raises ConfigError for an entry that is none of these.
    """

    auth: Literal["auto", "bearer", "none"] = "auto"
    allow_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.auth not in ("auto", "bearer", "none"):
            raise ConfigError(
                "downloads.auth is not auto, bearer or none", "Storage is not read by this client."
            )
        if any("*" in each for each in self.allow_hosts):
            raise ConfigError("downloads.allow_hosts holds a wildcard", "Name each host in full.")
        _ = self.allowed_origins

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins of `allow_hosts`; the `httpx.Auth` must know them too to send its token there."""
        return frozenset(_allowed(each) for each in self.allow_hosts)

    def bearer_goes(self, url: str, fhir_url: str, requires_access_token: bool | None) -> bool:
        """Whether the request for this file carries the token.

        Raises DownloadRefused for a URL that must not be asked at all: no http(s), plain http off loopback,
        userinfo, or a token demanded by an origin that may not have it.
        """
        require_secure(url, error=DownloadRefused)
        if self.auth == "none":
            return False
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
