"""The HTTP client of a source: it connects only to whom it may, and no answer's head can keep it for ever.

A name is looked up once, and the connection goes to the very addresses that were judged: a name that is
public when it is checked and private when it is used has no chance. Behind a proxy the proxy looks names up;
then the URL alone is judged.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from pipeline.network.addresses import IPAddress
from pipeline.network.allowance import allowed, seconds_left, spent
from pipeline.network.known_hosts import KnownHosts

HEAD_SECONDS = 120.0
"""For status line and headers of an answer, all interim answers included."""

HEAD_BYTES = 4 << 20
"""Received before the headers of an answer are whole."""


def guarded_client(known: KnownHosts, *, head_seconds: float = HEAD_SECONDS, **options: Any) -> httpx.Client:
    """An `httpx.Client` for one source. `options` are httpx's, without transport, proxy and mounts.

    TLS is verified; HTTPS_PROXY and its like are followed. Its requests raise ServerRefused for a host that
    `known` does not name and that is not on the open internet.
    """
    limits = options.get("limits", httpx.Limits())

    def transport(proxy: str | None) -> Guarded:
        inner = httpx.HTTPTransport(limits=limits, proxy=proxy)
        # A proxy is the operator's own, wherever it is: what it is asked for is judged by URL.
        backend = _Backend(known if proxy is None else None)
        inner._pool._network_backend = backend  # httpx 0.28 takes no backend; httpcore's pools do
        return Guarded(inner, known, head_seconds)

    mounts = {
        pattern: None if proxy is None else transport(proxy)
        for pattern, proxy in environment_proxies().items()
    }
    return httpx.Client(transport=transport(None), mounts=mounts, **options)


def environment_proxies() -> dict[str, str | None]:
    """httpx's mount patterns and their proxies, as httpx itself reads them from HTTPS_PROXY, NO_PROXY, ..."""
    named = urllib.request.getproxies()
    mounts: dict[str, str | None] = {}
    for scheme in ("http", "https", "all"):
        if named.get(scheme):
            proxy = named[scheme]
            mounts[f"{scheme}://"] = proxy if "://" in proxy else f"http://{proxy}"
    for host in (each.strip() for each in named.get("no", "").split(",")):
        if host == "*":
            return {}
        if host:
            mounts[_pattern(host)] = None
    return mounts


def _pattern(host: str) -> str:
    if "://" in host:
        return host
    try:
        address = ip_address(host.partition("/")[0])
    except ValueError:
        return f"all://{host}" if host.lower() == "localhost" else f"all://*{host}"
    return f"all://[{host}]" if address.version == 6 else f"all://{host}"


class Guarded(httpx.BaseTransport):
    """Judges each request's URL, and bounds the time until its answer's headers are there."""

    def __init__(self, inner: httpx.BaseTransport, known: KnownHosts, head_seconds: float) -> None:
        self._inner = inner
        self._known = known
        self._head_seconds = head_seconds

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._known.check(request.url)
        with allowed(self._head_seconds, HEAD_BYTES):
            return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


class _Backend(httpcore.NetworkBackend):
    """Connects to addresses that were judged. `known` None: to a proxy, which may be anywhere."""

    def __init__(self, known: KnownHosts | None) -> None:
        self._known = known
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        targets = [host]
        if self._known is not None and not self._known.names(host, port):
            addresses = _looked_up(host, port)
            self._known.check_addresses(host, port, addresses)
            targets = [str(each) for each in addresses]
        failure: Exception = httpcore.ConnectError("no address")
        for target in targets:
            try:
                stream = self._sockets.connect_tcp(
                    target, port, _within(timeout, httpcore.ConnectTimeout), local_address, socket_options
                )
                return _Watched(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def sleep(self, seconds: float) -> None:
        self._sockets.sleep(seconds)


class _Watched(httpcore.NetworkStream):
    """A connection that keeps to the allowance of the thread that uses it."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, _within(timeout, httpcore.ReadTimeout))
        if spent(len(data)):
            raise httpcore.RemoteProtocolError("the headers of the answer have no end")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _within(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _within(timeout, httpcore.ConnectTimeout)
        return _Watched(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _within(timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
    left = seconds_left(timeout)
    if left is not None and left <= 0:
        raise error("the answer does not end")
    return left


def _looked_up(host: str, port: int) -> list[IPAddress]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError("the host name is not known") from error
    return list(dict.fromkeys(ip_address(each[4][0]) for each in found))
