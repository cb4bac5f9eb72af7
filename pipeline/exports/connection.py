"""From the configuration of a source to a client that can talk to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.config import AzureIdentity, Config, Source, Timeouts
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import httpx

    from pipeline.auth.rotation import KeyRing
    from pipeline.auth.signers import Signer
    from pipeline.auth.tokens import TokenSource
    from pipeline.bulkdata.client import BulkClient
    from pipeline.bulkdata.limits import Limits
    from pipeline.bulkdata.policy import DownloadPolicy
    from pipeline.bulkdata.profiles import Profile
    from pipeline.bulkdata.storage import StorageAccess
    from pipeline.bulkdata.throttle import Throttle
    from pipeline.network.known_hosts import KnownHosts


def profile_of(source: Source) -> Profile:
    """The source's profile with the knobs that its configuration turns. Raises `ConfigError`."""
    from pipeline.bulkdata import profiles

    return profiles.profile_of(source.profile, source.knobs)


def fhir_base_of(source: Source) -> str:
    """The FHIR base that requests go to. Raises `ConfigError`."""
    from pipeline.bulkdata.profiles import fhir_base

    return fhir_base(profile_of(source), source.fhir_url, source.tenant)


def ring_for(config: Config, source: Source, wait: timedelta | None = None) -> KeyRing:
    """The keys of this source: which signs, which are published. `wait`: default `key_rotation`'s.

    Raises `ConfigError`; nothing is read yet.
    """
    from pipeline.auth.keyring import key_ring

    auth = source.auth
    if auth.private_key is None:
        raise ConfigError(f"source {source.name} has no auth.private_key")
    return key_ring(
        auth.private_key,
        algorithm=auth.algorithm,
        kid=auth.kid,
        wait=timedelta(minutes=config.key_rotation.wait_minutes) if wait is None else wait,
        folder=config.folder,
        vault=config.keyvault_auth,
    )


def signer_for(config: Config, source: Source) -> Signer:
    """The key that signs this source's client assertions, each time the one whose turn it is.

    Raises `ConfigError`, and for a key in a vault `AuthError` and `Unreachable`.
    """
    from pipeline.auth.rotation import RotatingSigner

    return RotatingSigner(ring_for(config, source))


def known_hosts(config: Config, source: Source) -> KnownHosts:
    """What the configuration names for this source may be inside a network: the FHIR server's host on any
    port, sign-in addresses and `allow_hosts` on their own.

    Raises as `download_policy`.
    """
    auth = source.auth
    named = [auth.token_url, auth.authority]
    if auth.kind == "entra-secret" and auth.authority is None:
        from pipeline.auth.entra import PUBLIC_AUTHORITY

        named.append(PUBLIC_AUTHORITY)  # the network's own DNS may give it a private address
    doors = [each for each in named if each]
    return download_policy(config, source).known_hosts(source.fhir_url).with_doors(doors)


def http_client(known: KnownHosts, timeouts: Timeouts | None = None, connections: int = 32) -> httpx.Client:
    """TLS verified, redirects left to the callers, who know what may go where. `timeouts`: a source's own.

    Hosts that are not `known` must be on the open internet.
    """
    import httpx

    from pipeline.network.guarded import guarded_client

    limits = timeouts or Timeouts()
    return guarded_client(
        known,
        # A file's head may take as long as a pause in its body.
        head_seconds=max(limits.answer_seconds, limits.read_seconds),
        timeout=httpx.Timeout(limits.read_seconds, connect=limits.connect_seconds),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        follow_redirects=False,
        headers={"User-Agent": "fhir-export"},
    )


def entra_audience(source: Source) -> str:
    """What Entra's tokens for the source are for: as configured, else by its address (azure-and-aidbox C).

    Raises `ConfigError` where neither tells.
    """
    from pipeline.bulkdata.profiles import default_audience

    audience = source.auth.audience or default_audience(profile_of(source), fhir_base_of(source))
    if audience is None:
        raise ConfigError(
            f"source {source.name} needs auth.audience: profile {source.profile} does not tell it",
            "It is the audience in the FHIR service's authentication settings",
        )
    return audience


def token_source(config: Config, source: Source) -> TokenSource | None:
    """Where this source's tokens come from; None without a sign-in. Raises `ConfigError`."""
    auth = source.auth
    match auth.kind:
        case "none":
            return None
        case "smart":
            return _smart(config, source)
        case "entra-secret":
            return _entra(config, source)
        case "managed-identity" | "workload-identity":
            from pipeline.auth.managed import AzureIdentityTokenSource
            from pipeline.azure.credentials import token_credential

            identity = AzureIdentity(
                kind=auth.kind, client_id=auth.client_id, tenant_id=auth.tenant_id, authority=auth.authority
            )
            return AzureIdentityTokenSource(token_credential(identity, config.secret), entra_audience(source))


def _smart(config: Config, source: Source) -> TokenSource:
    from pipeline.auth.tokens import SmartTokenSource
    from pipeline.bulkdata.profiles import token_url

    auth, profile = source.auth, profile_of(source)
    return SmartTokenSource(
        signer=signer_for(config, source).current,
        client_id=auth.client_id or "",
        scope=auth.scope or profile.scope,
        token_url=auth.token_url or token_url(profile, source.fhir_url, source.tenant),
        audience=auth.audience,
        fhir_url=fhir_base_of(source),
        body=auth.token_body or profile.token_body,
        jku=auth.jku,
    )


def _entra(config: Config, source: Source) -> TokenSource:
    from pipeline.auth.entra import EntraTokenSource

    auth = source.auth
    return EntraTokenSource(
        tenant_id=auth.tenant_id or "",
        client_id=auth.client_id or "",
        audience=entra_audience(source),
        client_secret=_text(config, auth.client_secret, "auth.client_secret") if auth.client_secret else None,
        certificate=config.secret(auth.certificate) if auth.certificate else None,
        authority=auth.authority,
        version=auth.entra_version,
    )


def _text(config: Config, reference: str, key: str) -> str:
    try:
        return config.secret(reference).decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"the secret that {key} names is not text", f"Look at {reference}") from None


def authentication(config: Config, source: Source, http: httpx.Client) -> httpx.Auth | None:
    """What signs the requests to this source. Raises `ConfigError`."""
    from pipeline.auth.bearer import BearerAuth
    from pipeline.auth.origins import origin

    tokens = token_source(config, source)
    if tokens is None:
        return None
    allowed = download_policy(config, source).allowed_origins
    return BearerAuth(tokens, http, [origin(fhir_base_of(source)), *allowed])


def storage_access_of(config: Config, source: Source) -> StorageAccess | None:
    """How files in the customer's storage account are read; None where none is configured.

    Raises `ConfigError`.
    """
    if source.downloads.storage is None:
        return None
    from pipeline.azure.storage_access import storage_access

    return storage_access(source.downloads.storage, config.secret)


def download_policy(config: Config, source: Source) -> DownloadPolicy:
    """Which file URLs are asked for, and what goes with the request. Raises `ConfigError`."""
    from pipeline.bulkdata.policy import DownloadPolicy

    downloads = source.downloads
    auth = profile_of(source).download_auth(downloads.auth)
    return DownloadPolicy(auth, downloads.allow_hosts, storage_access_of(config, source))


def bulk_client(config: Config, source: Source, http: httpx.Client) -> BulkClient:
    """The client of this source over `http`, which brings the sign-in. Raises `ConfigError`."""
    from pipeline.bulkdata.client import BulkClient

    return BulkClient(
        fhir_base_of(source),
        http,
        profile_of(source),
        download_policy(config, source),
        limits=limits_of(source),
        throttle=throttle_of(source),
        answer_seconds=source.timeouts.answer_seconds,
        slowest=source.timeouts.slowest_bytes_per_second,
    )


def limits_of(source: Source) -> Limits:
    """What a server may make us store and unpack, in bytes."""
    from pipeline.bulkdata.limits import Limits

    named = source.downloads.limits
    return Limits(
        file_bytes=int(named.file_gigabytes * 10**9),
        ratio=named.ratio,
        line_bytes=int(named.line_megabytes * 10**6),
        files=named.files,
    )


def throttle_of(source: Source, longest_hold: float | None = None) -> Throttle:
    """The pace of this source's downloads, bound together with those of this machine's other processes.

    `longest_hold`: seconds that a `Retry-After` may hold all of them back, if not the usual.
    """
    from pipeline.bulkdata.slots import MachineSlots, runtime_folder
    from pipeline.bulkdata.throttle import LONGEST_PAUSE, Throttle

    most = source.downloads.concurrency
    slots = MachineSlots(runtime_folder(), most, f"{source.name} {source.fhir_url}")
    return Throttle(most, slots=slots, longest_hold=longest_hold or LONGEST_PAUSE)


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
    """A connection to the source; nothing is sent to it yet.

    Raises `ConfigError`, and where a secret or key is in a vault `AuthError` and `Unreachable`.

    One per process and registration, so that steps and sensor ticks share its token and connections; another
    configuration or other secrets make a new one. A rotated key is signed with by the same one.
    """
    identity = hashlib.sha256(source.model_dump_json().encode())
    identity.update(config.keyvault_auth.model_dump_json().encode())
    identity.update(str(config.folder).encode())
    for reference in _secrets_of(source):
        identity.update(config.secret(reference))
    with _connecting:
        connection = _connections.get(identity.hexdigest())
        if connection is None:
            connection = _connect(config, source)
            _connections[identity.hexdigest()] = connection
        return connection


def _secrets_of(source: Source) -> list[str]:
    """Secrets that are read once, when the connection is made; a key ring reads its keys by itself."""
    auth, storage = source.auth, source.downloads.storage
    named = [auth.client_secret, auth.certificate]
    if storage is not None:
        named += [storage.client_secret, storage.certificate, storage.sas, storage.connection_string]
    return [each for each in named if each is not None]


def _connect(config: Config, source: Source) -> Connection:
    http = http_client(known_hosts(config, source), source.timeouts)
    auth = authentication(config, source, http)
    if auth is not None:
        http.auth = auth
    return Connection(bulk_client(config, source, http), auth)
