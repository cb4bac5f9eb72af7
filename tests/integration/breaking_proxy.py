"""A TCP proxy of the tests that breaks connections after so many bytes, and keeps what clients have sent."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """One request without a body, as its bytes were on the wire."""

    target: str
    headers: dict[str, str] = field(repr=False)


class BreakingProxy:
    """Listens on loopback in front of `upstream` (host, port).

    Connection number i (from 0) ends after `budgets[i]` bytes of answers, without warning; None or no entry:
    never. `on_break(i)` is called before the client learns of it.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        budgets: list[int | None] | None = None,
        *,
        reset: bool = False,
        on_break: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._upstream = upstream
        self._budgets = list(budgets or [])
        self._reset = reset
        self._on_break = on_break
        self._sent: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> BreakingProxy:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._sockets):
            _close(each)
        self._accepting.join(10)

    @property
    def connections(self) -> int:
        """How many were opened so far."""
        return len(self._sent)

    def asked(self) -> list[Asked]:
        """All requests, in the order of their connections."""
        return [_request(head) for sent in self._sent for head in bytes(sent).split(b"\r\n\r\n") if head]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
            except OSError:
                return
            number = len(self._sent)
            self._sent.append(bytearray())
            self._sockets += [client, server]
            for target, arguments in (
                (self._up, (number, client, server)),
                (self._down, (number, server, client)),
            ):
                threading.Thread(target=target, args=arguments, daemon=True).start()

    def _up(self, number: int, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                self._sent[number] += data
                server.sendall(data)
        _close(server)

    def _down(self, number: int, server: socket.socket, client: socket.socket) -> None:
        left = self._budgets[number] if number < len(self._budgets) else None
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if left is None:
                    client.sendall(data)
                    continue
                client.sendall(data[:left])
                left -= min(left, len(data))
                if left == 0:
                    self._on_break(number)
                    if self._reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        _close(client)
        _close(server)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RD)
    one.close()


def _request(head: bytes) -> Asked:
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest)
    return Asked(first.split(" ")[1], {name.lower(): value.strip() for name, _, value in pairs})
