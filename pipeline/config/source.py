"""One source: a FHIR server, the client registration there, and what to export."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from pipeline.config.attachments import Attachments
from pipeline.config.identity import StorageAuth
from pipeline.config.model import HttpsUrl, SecretReference, Strict, is_written_plainly
from pipeline.config.upkeep import checked_cron
from pipeline.errors import ConfigError

PROFILE_NAMES = ("smart", "apim-smart", "aidbox", "smartbox", "azure-fhir", "azure-fhir-export")

_FHIR_ID = re.compile(r"[A-Za-z0-9\-.]{1,128}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def _is_instant(value: str) -> bool:
    try:
        return _INSTANT.fullmatch(value) is not None and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


class Auth(Strict):
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


class Export(Strict):
    """What to ask for."""

    level: Literal["group", "patient", "system"] = "group"
    group: str | None = None
    types: tuple[str, ...] | None = None
    type_filters: tuple[str, ...] = ()
    elements: tuple[str, ...] = ()
    since: str = "auto"
    since_overlap: Annotated[float, Field(ge=0, le=7 * 86_400)] | None = None
    """Seconds that `auto` goes back behind the watermark; None: by the profile."""
    infer_deletes: bool = False
    """Whether what a complete full export has no longer counts as deleted in the current tables."""

    @field_validator("group")
    @classmethod
    def _group_id(cls, value: str | None) -> str | None:
        if value is not None and not _FHIR_ID.fullmatch(value):
            raise ValueError("a group is named by its FHIR id (letters, digits, - and .)")
        return value

    @field_validator("types")
    @classmethod
    def _types(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for each in value or ():
            if not re.fullmatch(r"[A-Z][A-Za-z]+", each):
                raise ValueError("must be names of resource types, written like Patient, Observation")
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
        if self.level != "group" and self.group:
            raise ValueError(f"level {self.level} exports no group: leave group out, or set level: group")
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


class DownloadLimits(Strict):
    """What a server may make us store and unpack; more ends the file with an error."""

    file_gigabytes: Annotated[float, Field(gt=0)] = 200
    """Decoded bytes of one file, in 10**9."""
    ratio: Annotated[float, Field(ge=2)] = 200
    """Decoded against compressed bytes, once 100 MB are decoded: NDJSON packs 10 to 60 times."""
    line_megabytes: Annotated[float, Field(gt=0, le=1024)] = 256
    files: Annotated[int, Field(ge=1)] = 1_000_000
    """Entries of a manifest, over all its pages."""


class Timeouts(Strict):
    """How long a server may take."""

    connect_seconds: Annotated[float, Field(gt=0, le=300)] = 8
    read_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    """Between two pieces of an answer."""
    answer_seconds: Annotated[float, Field(gt=0, le=3600)] = 120
    """For a whole answer that is no file: token, kick-off, status, manifest."""
    slowest_bytes_per_second: Annotated[int, Field(ge=0)] = 1024
    """A file that comes slower over a minute is given up and asked for again; 0: never."""


class AskAgain(Strict):
    """How many further export runs are opened by themselves when one ends without data."""

    gone: Annotated[int, Field(ge=0, le=10)] = 1
    """The server does not know the job any more (404, 410)."""
    failed: Annotated[int, Field(ge=0, le=10)] = 1
    """The server ended the job with an error."""
    deadline: Annotated[int, Field(ge=0, le=10)] = 0
    """Not ready before the deadline, and cancelled."""

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        """`ask_again: 2` is two for each of them."""
        if type(value) is int:
            return dict.fromkeys(("gone", "failed", "deadline"), value)
        if isinstance(value, dict | AskAgain):
            return value
        raise ValueError("must be a number of export runs, or {gone: 1, failed: 1, deadline: 0}")


class Downloads(Strict):
    """How the files of a manifest are fetched, and from where."""

    auth: Literal["auto", "bearer", "none", "storage"] = "auto"
    storage: DownloadStorage | None = None
    allow_hosts: tuple[str, ...] = ()
    concurrency: Annotated[int, Field(ge=1, le=32)] = 4
    """At most; fewer while the server is overloaded."""
    limits: DownloadLimits = DownloadLimits()

    @model_validator(mode="after")
    def _storage_named(self) -> Downloads:
        if self.auth == "storage" and self.storage is None:
            raise ValueError("auth storage needs storage: {account, kind, ...}, the account that is read")
        if self.auth in ("bearer", "none") and self.storage is not None:
            raise ValueError(f"auth {self.auth} and storage do not go together; use auto or storage")
        return self


class MaxQuarantined(Strict):
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


class CurrentChecks(Strict):
    """What the checks of the current tables let pass."""

    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a table's ids that may go away at once without a deletion before it is a warning."""


class Source(Strict):
    """One FHIR server + client registration + what to export."""

    name: str
    profile: Literal["smart", "apim-smart", "aidbox", "smartbox", "azure-fhir", "azure-fhir-export"] = "smart"
    fhir_url: str
    auth: Auth
    export: Export
    downloads: Downloads = Downloads()
    timeouts: Timeouts = Timeouts()
    tenant: str | None = None
    schedule: str = "0 2 * * *"
    timezone: str = "UTC"
    full_resync: str | None = None
    """Cron: when the next export is a full one, whatever `since` says; None: never by the clock."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    release: bool = True
    deadline_hours: Annotated[float, Field(gt=0)] = 24
    ask_again: AskAgain = AskAgain()
    on_partial: Literal["publish", "hold"] = "publish"
    """An export of which the server says, or shows, that part is missing."""
    keep_raw: bool = True
    on_count_mismatch: Literal["fail", "warn"] = "fail"
    max_quarantined: MaxQuarantined = MaxQuarantined()
    """Bad lines of a table beyond which the export is held."""
    shards: dict[str, Annotated[int, Field(ge=1, le=64)]] = Field(default_factory=dict)
    """Staging steps per resource type, for types with many files; 1 where not named."""
    flat: bool | tuple[str, ...] = True
    """Which resource types get flat tables: all, none, or those named."""
    current: bool | tuple[str, ...] = True
    """Which resource types get a current table: all, none, or those named."""
    on_leave: Literal["keep", "hide"] = "keep"
    """What the current tables do with the data of patients who have left the group."""
    current_checks: CurrentChecks = CurrentChecks()
    attachments: Attachments | None = None
    """What is fetched of the attachments of published resources; None: nothing."""
    knobs: dict[str, Any] = Field(default_factory=dict)
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
        if not is_written_plainly(value):
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

    @field_validator("attachments", mode="before")
    @classmethod
    def _attachments(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return Attachments() if value else None
        if value is None or isinstance(value, dict | Attachments):
            return value
        raise ValueError("must be true, false, or {types: [...], content_types: [...], megabytes: 50}")

    @field_validator("flat", "current", mode="before")
    @classmethod
    def _some_types(cls, value: Any) -> bool | tuple[str, ...]:
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
        return checked_cron(value)

    @field_validator("full_resync")
    @classmethod
    def _resync_cron(cls, value: str | None) -> str | None:
        return None if value is None else checked_cron(value)

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError("must be a time zone such as UTC or Europe/Berlin") from None
        return value
