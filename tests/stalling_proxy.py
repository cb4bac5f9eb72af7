"""A TCP proxy that stops in the middle of a request, as a network does that is lost."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class StallingProxy:
    """Forwards bytes both ways; the `number`-th request line that matches stops `after` bytes behind it."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pattern: re.Pattern[bytes] | None = None
        self._left = 0
        self._after = 0
        self.stalled = threading.Event()
        """Set when a request has been stopped."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def stall(self, request_line: str, *, number: int = 1, after: int = 2000) -> None:
        """From now on: the `number`-th request whose line matches is cut off there, and its connection
        hangs."""
        with self._lock:
            self.stalled.clear()
            self._pattern, self._left, self._after = re.compile(request_line.encode()), number, after

    def pass_all(self) -> None:
        """Nothing is stopped any more (what hangs goes on hanging)."""
        with self._lock:
            self._pattern = None

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._upstream, args=(client, server), daemon=True).start()
                threading.Thread(target=_pump, args=(server, client), daemon=True).start()

    def _upstream(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                cut = self._cut(data)
                if cut is None:
                    server.sendall(data)
                    continue
                server.sendall(data[:cut])
                left = self._after - (len(data) - cut)
                while left > 0 and (data := client.recv(min(left, 65536))):
                    server.sendall(data)
                    left -= len(data)
                self.stalled.set()
                return  # the sockets stay open: nobody learns that nothing more comes
        for each in (client, server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _cut(self, data: bytes) -> int | None:
        """Where to stop in this piece, if it holds the request that is waited for."""
        with self._lock:
            if self._pattern is None:
                return None
            for found in re.finditer(rb"(?:^|(?<=\n))[A-Z]+ [^\r\n]+ HTTP/1\.1\r\n", data):
                if self._pattern.search(found[0]):
                    self._left -= 1
                    if self._left == 0:
                        self._pattern = None
                        return min(len(data), found.end() + self._after)
            return None


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def stalling_proxy(host: str, port: int) -> Iterator[StallingProxy]:
    proxy = StallingProxy((host, port))
    try:
        yield proxy
    finally:
        proxy.close()
