"""The public keys of the configured sources as one JWK Set, printed or served."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.config import Config, Source
from pipeline.errors import ConfigError, ExportError

logger = logging.getLogger(__name__)

WELL_KNOWN = "/.well-known/jwks.json"
CACHE_SECONDS = 300
"""How long a server may keep the keys: as long as the servers that we know do (azure-and-aidbox B)."""

REREAD_SECONDS = 2.0
"""With --serve: how old the answer may be, so that many requests do not all open key files and vaults."""

JwkSet = dict[str, Any]
Missing = Callable[[str, ExportError], None]

_PASTED = {
    "apim-smart": "paste `fhir-export jwks {name}` into API Management: the named value JWKS (4,096 "
    "characters at most, served at /smart/.well-known/jwks.json); `fhir-export register {name}` prints "
    "the command",
}


def set_of_file(path: Path) -> JwkSet:
    """The JWK Set of a private key in a file, and of the next or former one where it was rotated.

    The algorithm is what the key is for. Raises `ConfigError`.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from pipeline.auth.jwk import jwk_set
    from pipeline.auth.keys import Algorithm, read_pem
    from pipeline.auth.pem_ring import PemRing

    pem = read_pem(path)
    algorithm: Algorithm = "RS384"
    try:
        if isinstance(load_pem_private_key(pem, None), ec.EllipticCurvePrivateKey):
            algorithm = "ES384"
    except Exception:  # noqa: BLE001, S110 - what is wrong with it is said by the ring below
        pass
    return jwk_set(*PemRing(path, algorithm=algorithm, kid=None, wait=timedelta(0)).public_jwks())


class PublishedKeys:
    """The keys of sources (default: all) that sign: signing, coming and former; a shared one is there once.

    A source whose keys could be had before and now cannot keeps those: a vault that is away for a minute
    must not take the keys from servers that read them just then. Safe to share between threads.
    """

    def __init__(self, config: Config, sources: Collection[Source] | None = None) -> None:
        self._config = config
        self._sources = config.sources if sources is None else sources
        self._last: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def read(self, missing: Missing) -> JwkSet:
        """The set as it is now. `missing` is told of a source whose keys cannot be had: it does not keep the
        others' from being published. Raises `ConfigError` for two different keys with one kid.
        """
        from pipeline.auth.jwk import jwk_set

        with self._lock:
            found: dict[str, dict[str, Any]] = {}
            for source in self._sources:
                if source.auth.kind != "smart":
                    continue
                for jwk in self._of(source, missing):
                    if found.setdefault(jwk["kid"], jwk) != jwk:
                        raise ConfigError(
                            f"two different keys have the kid '{jwk['kid']}'",
                            "Leave auth.kid out, or give each its own",
                        )
            return jwk_set(*found.values())

    def _of(self, source: Source, missing: Missing) -> list[dict[str, Any]]:
        from pipeline.exports.connection import ring_for

        try:
            self._last[source.name] = ring_for(self._config, source).public_jwks()
        except ExportError as error:
            missing(source.name, error)
        return self._last.get(source.name, [])


def set_of_sources(config: Config, missing: Missing) -> JwkSet:
    """The keys of every source that signs, now; `missing` as `PublishedKeys.read` has it."""
    return PublishedKeys(config).read(missing)


def where_to_paste(sources: Collection[Source]) -> list[str]:
    """For people: what to do with the printed set, for sources whose server cannot read it from us."""
    return [
        f"{source.name}: {_PASTED[source.profile].format(name=source.name)}"
        for source in sources
        if source.auth.kind == "smart" and source.profile in _PASTED
    ]


def cache_seconds(wait: timedelta) -> int:
    """How long others may keep the set: short enough for a next key to be known before it signs."""
    return int(min(CACHE_SECONDS, wait.total_seconds() / 3))


def serve(
    read: Callable[[], JwkSet], wait: timedelta, host: str, port: int, ready: Callable[[str, JwkSet], None]
) -> None:
    """Serves what `read` gives until it is told to stop; a request reads it anew after two seconds at most.

    `wait` is how long a next key is published before it signs: others may keep the set for a third of it,
    five minutes at most. `ready` is given the URL and the first set. Raises `ConfigError`; while it serves,
    an error keeps the last good set.
    """
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    fresh = _Reread(read, min(REREAD_SECONDS, wait.total_seconds() / 10))
    headers = {"Cache-Control": f"public, max-age={cache_seconds(wait)}"}

    async def answer(_: Request) -> Response:
        body = json.dumps(await run_in_threadpool(fresh.now)).encode()
        return Response(body, media_type="application/json", headers=headers)

    listener = _listener(host, port)
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listener.getsockname()[1]}{WELL_KNOWN}", fresh.now())
    application = Starlette(routes=[Route(WELL_KNOWN, answer, methods=["GET"])])
    uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])


class _Reread:
    """A set that is at most `seconds` old, or as old as the last one that could be read."""

    def __init__(self, read: Callable[[], JwkSet], seconds: float) -> None:
        self._read = read
        self._seconds = seconds
        self._lock = threading.Lock()
        self._set = read()
        self._read_at = time.monotonic()

    def now(self) -> JwkSet:
        with self._lock:
            if time.monotonic() >= self._read_at + self._seconds:
                try:
                    self._set = self._read()
                except ExportError as error:
                    logger.warning("the keys served are the last that could be read: %s", error)
                self._read_at = time.monotonic()
            return self._set


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "no such address"
        raise ConfigError(
            f"{host} port {port} cannot be listened on: {why}", "Choose another --port"
        ) from None
