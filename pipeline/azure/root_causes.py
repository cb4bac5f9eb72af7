"""What lies at the root of an error of Azure's libraries: they wrap what their transport says, many times."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipeline.redaction import clean

PRIVATE_AUTHORITY = "For a private authority set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to its certificate"

_SOCKS = (
    "the environment names a SOCKS proxy (HTTPS_PROXY or ALL_PROXY)",
    "Set HTTPS_PROXY to an HTTP proxy (http://HOST:PORT; SOCKS is not spoken), or name the host in NO_PROXY",
)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was made of: causes, contexts, arguments."""
    ahead: list[BaseException | None] = [error]
    told: set[int] = set()
    while ahead:
        seen = ahead.pop()
        if seen is None or id(seen) in told:
            continue
        told.add(id(seen))
        yield seen
        inner = [getattr(seen, "inner_exception", None), getattr(seen, "reason", None), *seen.args]
        ahead += [seen.__context__, seen.__cause__, *(e for e in inner if isinstance(e, BaseException))]


def silent_host(error: BaseException) -> str | None:
    """`host:port`, or the host, of the request that brought no answer; None where nothing tells it."""
    for root in chain(error):
        url = getattr(getattr(root, "request", None), "url", None)
        host = (
            urlsplit(url).netloc if isinstance(url, str) else getattr(getattr(root, "conn", None), "host", "")
        )
        if host:
            return str(host)
    return None


def trouble_of_transport(error: BaseException) -> tuple[str, str] | None:
    """Cause and advice where TLS failed, or a proxy that cannot be used is named; None for all else."""
    for root in chain(error):
        if isinstance(root, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({clean(root.verify_message)})", PRIVATE_AUTHORITY
        if isinstance(root, ssl.SSLError):
            return "TLS failed", "Check that its host and port speak https, with TLS 1.2 or later"
        if type(root).__name__ == "InvalidSchema" and "SOCKS" in str(root):  # requests', without its extra
            return _SOCKS
    return None
