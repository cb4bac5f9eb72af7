"""Ports for servers that must be told theirs before they start."""

from __future__ import annotations

import os
import random
import socket

_FIRST, _EACH, _WORKERS = 20_000, 500, 25
"""Below the ephemeral ports, which begin at 32768: no client's socket and no server on port 0 gets one."""
_given: set[int] = set()


def own_port() -> int:
    """A port of 127.0.0.1 that nobody has; never the same one twice in a process.

    Each worker of xdist has a range of its own. Another run on this machine has the same ranges: so the
    choice is random, from the system's own source, since tests seed the other one.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + _EACH * (worker % _WORKERS)
    for port in random.SystemRandom().sample(range(first, first + _EACH), _EACH):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise AssertionError(f"no port between {first} and {first + _EACH} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
