"""Running the three applications with uvicorn in one process, on ports known before the first request."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from pipeline.sandbox.cloud.app import Addresses, build_cloud
from pipeline.sandbox.cloud.options import Options

_LAST_SECONDS = 2.0


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT. OSError where a port or a file is not to be had."""
    listeners = [
        socket.create_server((options.host, port), backlog=128)
        for port in (options.port, options.vault_port, options.identity_port)
    ]
    authority, vault, identity = (
        f"{scheme}://{options.host}:{listener.getsockname()[1]}"
        for scheme, listener in zip(("https", "https", "http"), listeners, strict=True)
    )
    password = secrets.token_urlsafe(24)
    cloud = build_cloud(options, Addresses(authority, vault, identity), password)
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    servers = [
        _Server(_config(cloud.entra, options, tls=True)),
        _Server(_config(cloud.vault, options, tls=True)),
        _Server(_config(cloud.identity, options, tls=False)),
    ]
    ready = {
        "authority": authority,
        "vault_url": vault,
        "identity_url": identity,
        "identity_header": cloud.identity_header,
        "federated_issuer": cloud.federated_issuer,
        "tenant": options.tenant,
        "control_password": password,
        "pid": os.getpid(),
    }
    asyncio.run(_run(servers, listeners, options, ready))


async def _run(
    servers: list[_Server], listeners: list[socket.socket], options: Options, ready: dict[str, object]
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _end, servers)
    running = [
        asyncio.create_task(server.serve(sockets=[listener]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    await asyncio.gather(*(server.up.wait() for server in servers))
    shown = {name: value for name, value in ready.items() if name != "control_password"}
    sys.stdout.write(json.dumps(shown) + "\n")
    sys.stdout.flush()
    if options.ready_file is not None:
        draft = options.ready_file.with_name(options.ready_file.name + ".tmp")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(ready), encoding="utf-8")
        draft.replace(options.ready_file)
    await asyncio.gather(*running)


def _config(app: ASGIApp, options: Options, *, tls: bool) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        ssl_certfile=options.certificate if tls else None,
        ssl_keyfile=options.key if tls else None,
    )
    # Now, not in the server's task, where a missing file would leave the others waiting for it.
    config.load()
    return config


def _end(servers: list[_Server]) -> None:
    for server in servers:
        server.should_exit = True


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server that says when it is up, leaves signals to the process, and ends whoever is still "
    "connected."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Clients keep TLS connections in their pools and never say goodbye: only requests are waited for.
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        deadline = time.monotonic() + _LAST_SECONDS
        while self.server_state.tasks and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
