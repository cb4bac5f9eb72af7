"""Where a Content-Location or a `link next` leads, and whether the token may follow it (protocol facts 9,
17).

The rule: resolve against the URL that was asked. On the configured origin: take it. On another origin, but
with a path at or below the configured base's path: the server sits behind a proxy and names its inner host,
so the path and query are asked at the configured origin instead; the token never leaves that origin. Anything
else is refused.
"""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from pipeline.auth.origins import origin, printable
from pipeline.errors import ServerRefused


def resolve(fhir_url: str, asked_url: str, location: str) -> str:
    """The absolute URL to ask, always on the origin of `fhir_url`. Raises ServerRefused when there is
    none.
    """
    target = _joined(asked_url, location)
    if origin(target, error=ServerRefused) == origin(fhir_url):
        return target
    if not _below_base(fhir_url, target):
        raise ServerRefused(
            f"the server points to {printable(target)}, outside {printable(fhir_url)}",
            "The token is not sent there; set fhir_url to the address that the server itself uses.",
        )
    base = urlsplit(fhir_url)
    return urlsplit(target)._replace(scheme=base.scheme, netloc=base.netloc).geturl()


def is_elsewhere(fhir_url: str, location: str) -> bool:
    """Whether an absolute URL is neither on the FHIR origin nor a proxied server's inner name for it."""
    if origin(location, error=ServerRefused) == origin(fhir_url):
        return False
    return not urlsplit(fhir_url).path.strip("/") or not _below_base(fhir_url, location)


def _below_base(fhir_url: str, target: str) -> bool:
    prefix, path = urlsplit(fhir_url).path.rstrip("/"), urlsplit(target).path
    return path == prefix or path.startswith(f"{prefix}/")


def _joined(asked_url: str, location: str) -> str:
    try:
        return urljoin(asked_url, location.strip())
    except ValueError:
        raise ServerRefused(
            "the server points to an unreadable address", "Report it to its operator."
        ) from None
