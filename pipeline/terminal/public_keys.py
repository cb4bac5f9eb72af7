"""The public keys of the configured sources as one JWK Set, printed or served."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import ConfigError, ExportError

WELL_KNOWN = "/.well-known/jwks.json"
CACHE_SECONDS = 300
"""How long a server may keep the keys: as long as the servers that we know do (azure-and-aidbox B)."""

JwkSet = dict[str, Any]


def set_of_file(path: Path) -> JwkSet:
    """The JWK Set of one private key; the algorithm is what the key is for. Raises `ConfigError`."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from pipeline.auth.jwk import jwk_set
    from pipeline.auth.keys import Algorithm, read_pem
    from pipeline.auth.signers import PemSigner

    pem = read_pem(path)
    algorithm: Algorithm = "RS384"
    try:
        if isinstance(load_pem_private_key(pem, None), ec.EllipticCurvePrivateKey):
            algorithm = "ES384"
    except Exception:  # noqa: BLE001, S110 - what is wrong with it is said by the signer below
        pass
    return jwk_set(PemSigner.from_pem(pem, algorithm).public_jwk())


def set_of_sources(config: Config, missing: Callable[[str, ExportError], None]) -> JwkSet:
    """The keys of every source that signs; a key of several sources is there once.

    `missing` is told of a source whose key cannot be had: it does not keep the others' from being published.
    """
    from pipeline.auth.jwk import jwk_set
    from pipeline.exports.connection import signer_for

    found: dict[str, dict[str, Any]] = {}
    for source in config.sources:
        if source.auth.kind != "smart":
            continue
        try:
            jwk = signer_for(config, source).public_jwk()
        except ExportError as error:
            missing(source.name, error)
            continue
        if found.setdefault(jwk["kid"], jwk) != jwk:
            raise ConfigError(
                f"two different keys have the kid '{jwk['kid']}'", "Leave auth.kid out, or give each its own"
            )
    return jwk_set(*found.values())


def serve(keys: JwkSet, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves the set until it is told to stop; `ready` is given the URL. Raises `ConfigError`."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    body = json.dumps(keys).encode()
    headers = {"Cache-Control": f"public, max-age={CACHE_SECONDS}"}

    async def answer(_: Request) -> Response:
        return Response(body, media_type="application/json", headers=headers)

    listener = _listener(host, port)
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listener.getsockname()[1]}{WELL_KNOWN}")
    application = Starlette(routes=[Route(WELL_KNOWN, answer, methods=["GET"])])
    uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or "no such address"
        raise ConfigError(
            f"{host} port {port} cannot be listened on: {why}", "Choose another --port"
        ) from None
