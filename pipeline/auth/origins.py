"""Origins of URLs: what may see a bearer token, and what may be spoken to without TLS.

Parsing is httpx's own, so that what is judged here and what is connected to cannot differ.
"""

from __future__ import annotations

import ipaddress
import re

import httpx

from pipeline.errors import ConfigError, ExportError

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")
_PRINTED_PATH = 160


def origin(url: str | httpx.URL, *, error: type[ExportError] = ConfigError) -> str:
    """`scheme://host:port` of an http(s) URL, always with its port, in one spelling for each origin.

    Scheme and host in lower case, international names in their ASCII form, IPv6 compressed in brackets.
    Raises `error` for any other scheme, a missing or unreadable host, a port that cannot be, or userinfo.
    """
    parsed = _parse(url, error)
    if parsed.userinfo:
        raise error(
            "a URL carries a user name or a password",
            "Remove the part before '@'; credentials belong in the auth section, by reference.",
        )
    port = DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if not 0 < port < 65536:
        raise error(f"{printable(url)} has a port that cannot be", "Ports go from 1 to 65535.")
    return f"{parsed.scheme}://{_host(parsed, error)}:{port}"


def is_loopback(url: str | httpx.URL) -> bool:
    """Whether the URL's host is this machine: `localhost`, 127.0.0.0/8 or ::1. Names are not looked up."""
    try:
        host = _host(_parse(url, ConfigError), ConfigError)
    except ConfigError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_secure(url: str | httpx.URL, *, error: type[ExportError] = ConfigError) -> None:
    """Raise `error` unless the URL is https, or http on loopback (protocol fact 1)."""
    origin(url, error=error)
    if _parse(url, error).scheme != "https" and not is_loopback(url):
        raise error(
            f"{printable(url)} is plain http",
            "Use the https URL; plain http is for loopback addresses only.",
        )


def printable(url: str | httpx.URL) -> str:
    """The URL without userinfo, query and fragment, cut to a sane length: safe in messages and logs."""
    try:
        parsed = _parse(url, ConfigError)
        host = _host(parsed, ConfigError)
    except ConfigError:
        return "(an unreadable URL)"
    port = "" if parsed.port is None else f":{parsed.port}"
    path = parsed.raw_path.partition(b"?")[0].decode("ascii")
    path = "" if path == "/" else path
    short = path if len(path) <= _PRINTED_PATH else f"{path[:_PRINTED_PATH]}..."
    return f"{parsed.scheme}://{host}{port}{short}"


def _parse(url: str | httpx.URL, error: type[ExportError]) -> httpx.URL:
    parsed = _parse_or_none(url)
    if parsed is None:
        raise error("a URL cannot be read", "Give an absolute URL such as https://fhir.example.org/r4.")
    if parsed.scheme not in DEFAULT_PORTS:
        raise error("a URL is neither https nor http", "Give an absolute URL that begins with https://.")
    return parsed


def _parse_or_none(url: str | httpx.URL) -> httpx.URL | None:
    try:
        parsed = httpx.URL(url)
        _ = parsed.host  # httpx reads it again when it chooses a proxy, and raises for broken punycode
    except (httpx.InvalidURL, UnicodeError, ValueError):
        return None
    return parsed


def _host(parsed: httpx.URL, error: type[ExportError]) -> str:
    host = parsed.raw_host.decode("ascii")
    if ":" in host:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    if _HOST_NAME.fullmatch(host) is None:
        raise error(
            "a URL has no readable host name", "Give an absolute URL such as https://fhir.example.org/r4."
        )
    return host
