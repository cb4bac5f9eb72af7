"""The HTTP client of a source: it connects only to whom it may, and no answer's head can keep it for ever.

A name is looked up once, and the connection goes to the very addresses that were judged: a name that is
public when it is checked and private when it is used has no chance. Behind a proxy the proxy looks names up;
then the URL alone is judged.
"""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from pipeline.errors import ConfigError
from pipeline.network.addresses import IPAddress
from pipeline.network.allowance import allowed, seconds_left, spent
from pipeline.network.bodies import OF_THE_TRANSFER, pieces
from pipeline.network.known_hosts import KnownHosts

HEAD_SECONDS = 120.0
"""For status line and headers of an answer, all interim answers included."""

HEAD_BYTES = 4 << 20
"""Received before the headers of an answer are whole."""

REFUSAL_BYTES = 64 << 10
"""Of the body of a 401."""


def guarded_client(known: KnownHosts, *, head_seconds: float = HEAD_SECONDS, **options: Any) -> httpx.Client:
    """An `httpx.Client` for one source. `options` are httpx's, without transport, proxy and mounts.

    TLS is verified; HTTPS_PROXY and its like are followed. Its requests raise ServerRefused for a host that
    `known` does not name and that is not on the open internet, and ConfigError where they would go through a
    proxy that cannot be used.
    """
    limits = options.get("limits", httpx.Limits())

    def transport(proxy: str | None) -> httpx.BaseTransport:
        try:
            inner = httpx.HTTPTransport(limits=limits, proxy=proxy)
        except (ImportError, ValueError, httpx.InvalidURL):
            if proxy is None:
                raise
            return _NoProxy(proxy)
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
            answer = self._inner.handle_request(request)
            return _read(answer, request) if answer.status_code == 401 else answer

    def close(self) -> None:
        self._inner.close()


def _read(answer: httpx.Response, request: httpx.Request) -> httpx.Response:
    """The same with its body's beginning, unpacked: before httpx asks again with a new token, it reads the
    whole, however long it is and whatever it unpacks to."""
    answer.request = request
    content = b""
    with contextlib.suppress(httpx.RequestError):  # it was a 401, whatever else was wrong with it
        for piece in pieces(answer):
            content += piece
            if len(content) >= REFUSAL_BYTES:
                break
    answer.close()
    headers = [each for each in answer.headers.multi_items() if each[0] not in OF_THE_TRANSFER]
    return httpx.Response(
        answer.status_code,
        headers=headers,
        stream=httpx.ByteStream(content[:REFUSAL_BYTES]),
        extensions=answer.extensions,
    )


class _NoProxy(httpx.BaseTransport):
    """In place of a proxy that cannot be used: SOCKS, or no URL. What goes past it, goes."""

    def __init__(self, proxy: str) -> None:
        self._kind = "a SOCKS proxy" if proxy.lower().startswith("socks") else "no proxy's URL"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise ConfigError(  # the value itself may hold a password
            f"HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names {self._kind}, and {request.url.host} is to be asked "
            "through it",
            "Set HTTPS_PROXY to an HTTP proxy (http://HOST:PORT; SOCKS is not spoken), or name the host in "
            "NO_PROXY, or unset the variable.",
        )


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
