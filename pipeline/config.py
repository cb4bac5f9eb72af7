"""The configuration file: what to export from where, and where to write it.

One YAML file, named by `EXPORTS_CONFIG`; else `exports.yaml` in `DAGSTER_HOME`; else
`dagster_home/exports.yaml` of the working directory. Relative paths in it start at the file's own folder.
It never holds a secret, only references to secrets (`env:NAME`, `file:PATH`, `keyvault:URL`).
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import ConfigError

PROFILE_NAMES = ("smart", "apim-smart", "aidbox", "smartbox", "azure-fhir", "azure-fhir-export")

_REFERENCE = re.compile(r"^(env|file|keyvault):(.+)$", re.DOTALL)
_FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,128}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def _is_instant(value: str) -> bool:
    try:
        return _INSTANT.fullmatch(value) is not None and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _check_reference(value: str) -> str:
    if not _REFERENCE.match(value):
        raise ValueError(
            "a secret must be a reference (env:NAME, file:PATH or keyvault:URL), never the secret itself"
        )
    if not value.isprintable():
        raise ValueError("a secret's reference has characters in it that cannot be printed")
    return value


SecretReference = Annotated[str, AfterValidator(_check_reference)]


class _Strict(BaseModel):
    # hide_input: a value that is refused may be a secret that somebody pasted in.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _is_written_plainly(value: str) -> bool:
    """No spaces, line ends or others that urlsplit skips and httpx does not; and a port that can be."""
    if any(each.isspace() or not each.isprintable() for each in value):
        return False
    try:
        return urlsplit(value).port != 0
    except ValueError:
        return False


def _https(value: str) -> str:
    if not _is_written_plainly(value):
        raise ValueError("must be a plain https URL without spaces, with a port from 1 to 65535")
    parts = urlsplit(value)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("must be an https URL; plain http is for this machine only")
    if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a plain https URL without credentials, query or fragment")
    return value.rstrip("/")


HttpsUrl = Annotated[str, AfterValidator(_https)]


IdentityKind = Literal["default", "managed-identity", "workload-identity", "service-principal"]
StorageKind = Literal[
    "default",
    "managed-identity",
    "workload-identity",
    "service-principal",
    "sas",
    "connection-string",
    "none",
]


class AzureIdentity(_Strict):
    """Who we are in Entra: the identity of the machine, or a service principal."""

    kind: IdentityKind = "default"
    client_id: str | None = None
    """Of the service principal, or of a user-assigned managed identity; absent: the system-assigned one."""
    tenant_id: str | None = None
    client_secret: SecretReference | None = None
    certificate: SecretReference | None = None
    """PEM with private key and certificate, instead of the client secret."""
    authority: HttpsUrl | None = None
    """Entra's address in another cloud; the public one by default."""

    @model_validator(mode="after")
    def _complete_identity(self) -> AzureIdentity:
        if self.kind == "service-principal":
            missing = [name for name in ("tenant_id", "client_id") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"kind service-principal needs {' and '.join(missing)}")
            if (self.client_secret is None) == (self.certificate is None):
                raise ValueError("kind service-principal needs one of client_secret and certificate")
        return self


class StorageAuth(AzureIdentity):
    """How a storage account is opened: by an identity, or by what the account itself has issued."""

    kind: StorageKind = "default"  # type: ignore[assignment]
    sas: SecretReference | None = None
    connection_string: SecretReference | None = None
    endpoint: HttpsUrl | None = None
    """The account's blob endpoint where it is not https://ACCOUNT.blob.core.windows.net: another cloud, a
    custom domain, the emulator (https://127.0.0.1:10000/devstoreaccount1)."""

    @model_validator(mode="after")
    def _complete_storage(self) -> StorageAuth:
        for kind, name in (("sas", "sas"), ("connection-string", "connection_string")):
            if (self.kind == kind) != (getattr(self, name) is not None):
                raise ValueError(f"kind {kind} and the key {name} go together")
        return self


class LakeAuth(StorageAuth):
    """How the lake's storage account is opened (Azure only; a local lake needs none)."""


class KeyVaultAuth(AzureIdentity):
    """Who we are at Key Vault, for `keyvault:` references."""

    verify_challenge_resource: bool = True
    """False only where the vault's host is not below its cloud's vault domain (private clouds)."""


class KeyRotation(_Strict):
    """How long a new public key is published before it signs: servers cache JWK Sets."""

    wait_minutes: Annotated[float, Field(ge=0, le=7 * 24 * 60)] = 15


class Auth(_Strict):
    """Who we are at the source: a SMART backend client, or an Entra identity."""

    kind: Literal["smart", "entra-secret", "managed-identity", "workload-identity", "none"] = "smart"
    client_id: str | None = None
    private_key: SecretReference | None = None
    algorithm: Literal["RS384", "ES384"] = "RS384"
    kid: str | None = None
    jku: HttpsUrl | None = None
    """Sent in the assertion's header, for servers that want it: where our JWK Set is served."""
    token_url: str | None = None
    audience: str | None = None
    scope: str | None = None
    """Default: by the profile."""
    token_body: Literal["form", "json"] | None = None
    """Default: by the profile."""
    tenant_id: str | None = None
    client_secret: SecretReference | None = None
    certificate: SecretReference | None = None
    authority: HttpsUrl | None = None
    entra_version: Literal["v1", "v2"] = "v2"
    """Which of Entra's token endpoints (azure-and-aidbox C)."""

    @model_validator(mode="after")
    def _complete(self) -> Auth:
        needed = {"smart": ("client_id", "private_key"), "entra-secret": ("tenant_id", "client_id")}
        missing = [name for name in needed.get(self.kind, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"kind {self.kind} needs {' and '.join(missing)}")
        if self.kind == "entra-secret" and (self.client_secret is None) == (self.certificate is None):
            raise ValueError("kind entra-secret needs one of client_secret and certificate")
        return self


class Export(_Strict):
    """What to ask for."""

    level: Literal["group", "patient", "system"] = "group"
    group: str | None = None
    types: tuple[str, ...] | None = None
    type_filters: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()
    since: str = "auto"

    @field_validator("group")
    @classmethod
    def _group_id(cls, value: str | None) -> str | None:
        if value is not None and not _FHIR_ID.fullmatch(value):
            raise ValueError("a group is named by its FHIR id (letters, digits, - and .)")
        return value

    @field_validator("since")
    @classmethod
    def _since(cls, value: str) -> str:
        if value not in ("auto", "never") and not _is_instant(value):
            raise ValueError("must be auto, never or an instant such as 2026-01-31T00:00:00Z")
        return value

    @model_validator(mode="after")
    def _group_level(self) -> Export:
        if self.level == "group" and not self.group:
            raise ValueError("level group needs group: the FHIR id of the Group to export")
        return self


class DownloadStorage(StorageAuth):
    """The storage account that the FHIR server writes its exports to (azure-and-aidbox D)."""

    account: str
    container: str | None = None
    """Where `check` looks, for a credential that is for one container only."""

    @field_validator("container")
    @classmethod
    def _container(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-z0-9](-?[a-z0-9]){2,62}", value):
            raise ValueError("must be a container's name: lower case letters, digits and -, 3 to 63")
        return value

    @field_validator("account")
    @classmethod
    def _account(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9]{3,24}", value):
            raise ValueError("must be the storage account's name alone, such as contosoexports")
        return value


class Downloads(_Strict):
    """How the files of a manifest are fetched, and from where."""

    auth: Literal["auto", "bearer", "none", "storage"] = "auto"
    storage: DownloadStorage | None = None
    allow_hosts: tuple[str, ...] = ()
    concurrency: Annotated[int, Field(ge=1, le=32)] = 4

    @model_validator(mode="after")
    def _storage_named(self) -> Downloads:
        if self.auth == "storage" and self.storage is None:
            raise ValueError("auth storage needs storage: {account, kind, ...}, the account that is read")
        if self.auth in ("bearer", "none") and self.storage is not None:
            raise ValueError(f"auth {self.auth} and storage do not go together; use auto or storage")
        return self


class MaxQuarantined(_Strict):
    """How many bad lines of a table an export may have and still be published: the larger of both."""

    lines: Annotated[int, Field(ge=0)] = 10
    share: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Of the table's lines in the export."""

    @model_validator(mode="before")
    @classmethod
    def _lines_alone(cls, value: Any) -> Any:
        """`max_quarantined: 5` is five lines, whatever the table's size."""
        if type(value) is int:
            return {"lines": value, "share": 0.0}
        if isinstance(value, dict | MaxQuarantined):
            return value
        raise ValueError("must be a number of lines, or {lines: 10, share: 0.001}")

    def limit(self, lines: int) -> int:
        """Bad lines allowed in a table of so many lines, bad ones included."""
        # Decimal: 0.07 * 100 is more than 7 in binary, and 0.29 * 100 less than 29.
        return max(self.lines, int(Decimal(str(self.share)) * lines))


class Source(_Strict):
    """One FHIR server + client registration + what to export."""

    name: str
    profile: Literal["smart", "apim-smart", "aidbox", "smartbox", "azure-fhir", "azure-fhir-export"] = "smart"
    fhir_url: str
    auth: Auth
    export: Export
    downloads: Downloads = Downloads()
    tenant: str | None = None
    schedule: str = "0 2 * * *"
    timezone: str = "UTC"
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    release: bool = True
    deadline_hours: Annotated[float, Field(gt=0)] = 24
    keep_raw: bool = True
    on_count_mismatch: Literal["fail", "warn"] = "fail"
    max_quarantined: MaxQuarantined = MaxQuarantined()
    """Bad lines of a table beyond which the export is held."""
    shards: dict[str, Annotated[int, Field(ge=1, le=64)]] = {}
    """Staging steps per resource type, for types with many files; 1 where not named."""
    flat: bool | tuple[str, ...] = True
    """Which resource types get flat tables: all, none, or those named."""
    knobs: dict[str, Any] = {}
    """Settings of the profile to be other than its own (docs/systems, the table of profiles)."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", value):
            raise ValueError("must be lower case letters, digits and _, starting with a letter")
        return value

    @field_validator("fhir_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not _is_written_plainly(value):
            raise ValueError("must be a URL without spaces, with a port from 1 to 65535")
        parts = urlsplit(value)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
            or parts.password
        ):
            raise ValueError("must be the server's FHIR base URL, such as https://fhir.example.org/r4")
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError("must be https; plain http is for this machine only")
        return value.rstrip("/")

    @field_validator("flat", mode="before")
    @classmethod
    def _flat_types(cls, value: Any) -> bool | tuple[str, ...]:
        if isinstance(value, bool):
            return value
        if not isinstance(value, list | tuple) or not value or not all(isinstance(t, str) for t in value):
            raise ValueError(
                "must be true, false, or a list of resource types such as [Patient, Observation]"
            )
        from pipeline.tables.definitions import is_resource_type

        unknown = [each for each in value if not is_resource_type(each)]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a resource type of FHIR R4, such as Observation")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _knobs(self) -> Source:
        if self.knobs:
            from pipeline.bulkdata.profiles import profile_of

            try:
                profile_of(self.profile, self.knobs)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        try:
            if len(value.split()) != 5:
                raise CronSimError("not five fields")
            CronSim(value, datetime(2026, 1, 1))
        except CronSimError:
            raise ValueError('must be a cron expression of five fields, such as "0 2 * * *"') from None
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError("must be a time zone such as UTC or Europe/Berlin") from None
        return value


def _usable_cores() -> int:
    # sched_getaffinity knows of taskset and cpuset limits, which cpu_count does not; macOS lacks it.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Conversion(_Strict):
    """How NDJSON is turned into tables."""

    lanes: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: min(4, _usable_cores()))
    """Threads that convert blocks of one file at the same time, in each staging step."""


class Config(_Strict):
    """The whole file."""

    lake: str
    lake_auth: LakeAuth = LakeAuth()
    keyvault_auth: KeyVaultAuth = KeyVaultAuth()
    key_rotation: KeyRotation = KeyRotation()
    executor: Literal["in_process", "multiprocess"] = "in_process"
    """How the steps of a run are executed: one after the other in the run's process, or in processes."""
    conversion: Conversion = Field(default_factory=Conversion)
    sources: tuple[Source, ...] = ()
    folder: Path = Field(default=Path(), exclude=True)
    """Where the file lies: relative paths start here. Set by `load_config`, not in the file."""

    @field_validator("sources")
    @classmethod
    def _unique(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        names = [source.name for source in value]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"two sources are named {', '.join(doubles)}")
        return value

    @field_validator("lake")
    @classmethod
    def _lake_url(cls, value: str) -> str:
        scheme = urlsplit(value).scheme
        if scheme not in ("", "file", "abfs", "abfss"):
            raise ValueError(
                "must be a folder, file:///path or abfs://container@account.dfs.core.windows.net/path"
            )
        return value

    def secret(self, reference: str) -> bytes:
        """The secret that `reference` names; `keyvault:` ones with `keyvault_auth`. Raises as
        `resolve_secret` does, and `AuthError`, `Unreachable` for the vault.
        """
        return resolve_secret(reference, self.folder, self.keyvault_auth)

    def source(self, name: str | None) -> Source:
        """The source of that name; without a name, the only one there is."""
        names = ", ".join(source.name for source in self.sources)
        if name is None:
            if len(self.sources) == 1:
                return self.sources[0]
            raise ConfigError("name a source", f"There are: {names or 'none'}")
        for source in self.sources:
            if source.name == name:
                return source
        raise ConfigError(f"there is no source {name!r}", f"There are: {names or 'none'}")


def default_config_path() -> Path:
    """Where the configuration is looked for; see the module's docstring."""
    named = os.environ.get("EXPORTS_CONFIG")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("DAGSTER_HOME")
    if home and (Path(home) / "exports.yaml").is_file():
        return Path(home) / "exports.yaml"
    return Path("dagster_home") / "exports.yaml"


def load_config(path: Path | None = None) -> Config:
    """Reads and checks the configuration. Raises `ConfigError` naming each wrong key and what it takes."""
    path = (path or default_config_path()).absolute()
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration at {path}", "Set EXPORTS_CONFIG to the path of your exports.yaml"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # The parser's own words may repeat a value that is a secret.
        problem = f": {error.problem}" if isinstance(error, _DuplicateKey) else ""
        advice = "Leave one of the two out" if problem else "Check indentation and quotes at that place"
        raise ConfigError(f"{path} is not valid YAML{where}{problem}", advice) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys (lake, sources), not {type(data).__name__}")
    if "folder" in data:
        raise ConfigError(f"{path} is wrong:\n  folder: there is no such key")
    try:
        return Config.model_validate({**data, "folder": path.parent})
    except ValidationError as error:
        raise ConfigError(f"{path} is wrong:\n{_explain(error, data)}") from None


class _DuplicateKey(yaml.constructor.ConstructorError):
    """A key that is written twice: one of the two would be lost."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                raise _DuplicateKey(problem=f"the key {key.value} comes twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such key"
        lines.append(f"  {_key_path(problem['loc'], data)}: {message}")
    return "\n".join(lines)


def _key_path(location: tuple[int | str, ...], data: Any) -> str:
    """`sources[hosp_a].auth.client_id`: an entry of a list is named by its `name` where it has one."""
    path = ""
    for key in location:
        if isinstance(key, int):
            entry = data[key] if isinstance(data, list) and key < len(data) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            path += f"[{name if isinstance(name, str) else key}]"
            data = entry
        else:
            path += f".{key}" if path else key
            data = data.get(key) if isinstance(data, dict) else None
    return path or "the file"


def resolve_secret(reference: str, folder: Path, vault: KeyVaultAuth | None = None) -> bytes:
    """The secret that `reference` names, read when it is used: one missing secret harms one source only.

    `vault`: who we are at Key Vault; None where a reference to it would need itself (its own credential).
    Raises `ConfigError` naming the reference, never the secret.
    """
    match = _REFERENCE.match(reference)
    if not match:
        raise ConfigError("a secret must be a reference: env:NAME, file:PATH or keyvault:URL")
    kind, rest = match.groups()
    if kind == "env":
        value = os.environ.get(rest)
        if not value:
            raise ConfigError(f"the environment variable {rest} is not set", f"It is named by {reference}")
        return value.encode()
    if kind == "file":
        path = _file_at(rest, folder)
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}",
                f"It is named by {reference}. Put the secret there, or correct the path; for a private key "
                f"`fhir-export keys new --out {rest}` makes one",
            ) from None
    if vault is None:
        raise ConfigError(f"{reference} cannot be read here", "Use file: or env: for this secret")
    from pipeline.azure.keyvault import read_secret

    return read_secret(rest, vault, folder)


def secret_path(reference: str, folder: Path) -> Path | None:
    """The path behind a `file:` reference; None for the other kinds."""
    match = _REFERENCE.match(reference)
    return _file_at(match.group(2), folder) if match and match.group(1) == "file" else None


def _file_at(named: str, folder: Path) -> Path:
    try:
        found = folder / Path(named).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"file:{named} names the home of a user who is not here", "Write the whole path"
        ) from None
    return found
