"""Running the application with uvicorn, on a port that is known before the first request."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from pipeline.sandbox.addresses import Addresses
from pipeline.sandbox.app import build_app
from pipeline.sandbox.options import Options

_WITH_STORAGE_HOST = ("apim", "aidbox", "smartbox")
"""Stand-ins that listen at a second port, another origin, where their file URLs point."""


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; print the base URL once ready. OSError where the port is not free."""
    listeners = [socket.create_server((options.host, options.port), backlog=128)]
    if options.stand_in in _WITH_STORAGE_HOST:
        listeners.append(socket.create_server((options.host, 0), backlog=128))
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "http" if options.certificate is None else "https"
    urls = [f"{scheme}://{host}:{listener.getsockname()[1]}" for listener in listeners]
    ready: dict[str, Any] = {"base_url": urls[0], "pid": os.getpid()}
    if options.stand_in is None:
        app = build_app(options, urls[0])
    else:
        from pipeline.sandbox.standins import build_stand_in

        served = build_stand_in(options, Addresses(urls[0], urls[-1]))
        app = served.app
        ready |= {
            "fhir_url": served.fhir_url,
            "token_url": served.token_url,
            "audience": served.audience,
            "storage_url": urls[1] if len(urls) > 1 else None,
        }
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        server_header=False,
        ssl_certfile=options.certificate,
        ssl_keyfile=options.key,
    )
    # uvicorn raises the signal once more after its graceful end: this makes the exit code 0.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    _Server(config, options.ready_file, ready).run(sockets=listeners)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready_file: Path | None, ready: dict[str, Any]) -> None:
        super().__init__(config)
        self._ready_file = ready_file
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(self._ready["base_url"] + "\n")
        sys.stdout.flush()
        if self._ready_file is not None:
            draft = self._ready_file.with_name(self._ready_file.name + ".tmp")
            draft.write_text(json.dumps(self._ready), encoding="utf-8")
            draft.replace(self._ready_file)
