"""From the configuration of a source to a client that can talk to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.config import Config, Source
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import httpx

    from pipeline.auth.signers import Signer
    from pipeline.bulkdata.client import BulkClient
    from pipeline.bulkdata.policy import DownloadPolicy

CONNECT_SECONDS = 8.0
READ_SECONDS = 60.0


def signer_for(config: Config, source: Source) -> Signer:
    """The key that signs this source's client assertions. Raises `ConfigError`."""
    from pipeline.auth.signers import PemSigner

    auth = source.auth
    if auth.private_key is None:
        raise ConfigError(f"source {source.name} has no auth.private_key")
    pem = config.secret(auth.private_key)
    return PemSigner.from_pem(pem, auth.algorithm, auth.kid)


def http_client() -> httpx.Client:
    """TLS verified, redirects left to the callers, who know what may go where."""
    import httpx

    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    return httpx.Client(timeout=timeout, follow_redirects=False, headers={"User-Agent": "fhir-export"})


def authentication(config: Config, source: Source, http: httpx.Client) -> httpx.Auth | None:
    """What signs the requests to this source. Raises `ConfigError`."""
    from pipeline.auth.bearer import BearerAuth
    from pipeline.auth.origins import origin
    from pipeline.auth.tokens import SmartTokenSource

    auth = source.auth
    if auth.kind == "none":
        return None
    if auth.kind != "smart":
        raise ConfigError(
            f"source {source.name}: auth.kind {auth.kind} is not supported by this version", "Use smart"
        )
    tokens = SmartTokenSource(
        signer=signer_for(config, source),
        client_id=auth.client_id or "",
        scope=auth.scope or "system/*.rs",
        token_url=auth.token_url,
        audience=auth.audience,
        fhir_url=source.fhir_url,
        body=auth.token_body or "form",
    )
    allowed = download_policy(source).allowed_origins
    return BearerAuth(tokens, http, [origin(source.fhir_url), *allowed])


def download_policy(source: Source) -> DownloadPolicy:
    """Which file URLs are asked for, and which see the bearer. Raises `ConfigError`."""
    from pipeline.bulkdata.policy import DownloadPolicy

    downloads = source.downloads
    if downloads.auth == "storage":
        raise ConfigError(
            f"source {source.name}: downloads.auth storage is not supported by this version", "Use auto"
        )
    return DownloadPolicy(downloads.auth, downloads.allow_hosts)


@dataclass(frozen=True)
class Connection:
    """A client, and the sign-in behind it."""

    client: BulkClient
    auth: httpx.Auth | None

    def sign_in(self) -> None:
        """Gets a token now, if one is needed and none is held. Raises `AuthError`, `Unreachable`."""
        from pipeline.auth.bearer import BearerAuth

        if isinstance(self.auth, BearerAuth):
            self.auth.token()


_connections: dict[str, Connection] = {}
_connecting = Lock()


def connect(config: Config, source: Source) -> Connection:
    """A connection to the source; nothing is sent yet. Raises `ConfigError`.

    One per process and registration, so that steps and sensor ticks share its token and connections; a new
    key or another configuration makes a new one.
    """
    identity = hashlib.sha256(source.model_dump_json().encode())
    if source.auth.private_key is not None:
        identity.update(config.secret(source.auth.private_key))
    with _connecting:
        connection = _connections.get(identity.hexdigest())
        if connection is None:
            connection = _connect(config, source)
            _connections[identity.hexdigest()] = connection
        return connection


def _connect(config: Config, source: Source) -> Connection:
    from pipeline.bulkdata.client import BulkClient
    from pipeline.bulkdata.profiles import PROFILES

    http = http_client()
    auth = authentication(config, source, http)
    if auth is not None:
        http.auth = auth
    client = BulkClient(source.fhir_url, http, PROFILES[source.profile], download_policy(source))
    return Connection(client, auth)
