"""Which attachments' URLs are asked for, and with what (protocol facts 9 and 28).

Stricter than for files of a manifest: these URLs are data that anyone may have written into a chart. What is
a document on the FHIR server's own origin (`attachment_paths`) is asked for with the token, hosts that are
named get none, and nobody else is asked; redirects too.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urljoin

import httpx

from pipeline.auth.origins import origin, require_secure
from pipeline.bulkdata.attachment_paths import why_no_document
from pipeline.errors import DownloadRefused
from pipeline.network.known_hosts import KnownHosts


@dataclass(frozen=True)
class AttachmentPolicy:
    """`fhir_url`: the FHIR base; `allow_hosts`: as `attachments.allow_hosts`, checked there."""

    fhir_url: str
    allow_hosts: tuple[str, ...] = ()

    @property
    def allowed_origins(self) -> frozenset[str]:
        return frozenset(origin(each if "://" in each else f"https://{each}") for each in self.allow_hosts)

    @property
    def known_hosts(self) -> KnownHosts:
        """Those that may be inside a network: the FHIR server's, and named ones on their port."""
        return KnownHosts.of([self.fhir_url], self.allowed_origins)

    def resolve(self, url: str) -> str:
        """The absolute URL; a relative one starts at the FHIR base. Raises DownloadRefused."""
        if url.strip().startswith("#"):
            raise DownloadRefused("the attachment points into its own resource")
        try:
            return urljoin(f"{self.fhir_url.rstrip('/')}/", url.strip())
        except ValueError:
            raise DownloadRefused("the attachment's URL cannot be read") from None

    def is_own(self, url: str) -> bool:
        """Whether it is on the FHIR server's origin: then the token goes with it."""
        return origin(url, error=DownloadRefused) == origin(self.fhir_url)

    def check(self, url: str | httpx.URL) -> None:
        """Raise DownloadRefused for a URL that must not be asked; for each hop of a redirect anew."""
        require_secure(url, error=DownloadRefused)
        target = origin(url, error=DownloadRefused)
        if target == origin(self.fhir_url):
            if why := why_no_document(url, self.fhir_url):
                raise DownloadRefused(f"a URL of the FHIR server is not asked for: {why}")
            return
        if target not in self.allowed_origins:
            raise DownloadRefused(f"{target} is neither the FHIR server nor named in attachments.allow_hosts")
        self.known_hosts.check(url, DownloadRefused)


def without_query(url: str) -> str | None:
    """Scheme, host and path: what may be kept of a URL, whose query may be a capability. None: no http(s)."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        return None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return None
    return str(parsed.copy_with(query=None, fragment=None, userinfo=b""))
