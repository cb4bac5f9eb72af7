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

import uvicorn

from pipeline.sandbox.app import build_app
from pipeline.sandbox.options import Options


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; print the base URL once ready. OSError where the port is not free."""
    listener = socket.create_server((options.host, options.port), backlog=128)
    host = f"[{options.host}]" if ":" in options.host else options.host
    base_url = f"http://{host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        build_app(options, base_url),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    # uvicorn raises the signal once more after its graceful end: this makes the exit code 0.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    _Server(config, options.ready_file, base_url).run(sockets=[listener])


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready_file: Path | None, base_url: str) -> None:
        super().__init__(config)
        self._ready_file = ready_file
        self._base_url = base_url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(self._base_url + "\n")
        sys.stdout.flush()
        if self._ready_file is not None:
            draft = self._ready_file.with_name(self._ready_file.name + ".tmp")
            draft.write_text(json.dumps({"base_url": self._base_url, "pid": os.getpid()}), encoding="utf-8")
            draft.replace(self._ready_file)
