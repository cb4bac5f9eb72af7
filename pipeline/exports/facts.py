"""The facts of an export run: small files, each written once and never changed (design, Facts).

Their names say what happened, their content who did it, when and why. State is which of them exist.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.exports.owner import Owner

FileKind = Literal["output", "deleted", "error"]
Cause = Literal["", "gone", "failed", "deadline"]
"""What ended an export without data; only the named ones are asked again by themselves."""
SUPPLEMENT: Literal["supplement"] = "supplement"
"""Why an export run follows one that was published: what that one's `_since` has left out."""


class Fact(BaseModel):
    """What all facts have in common: when it was written, UTC. Members of later versions are kept out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime


class Lacks(BaseModel):
    """What an export with `_since` leaves out on purpose, for a supplement to bring in full."""

    model_config = ConfigDict(frozen=True)

    types: tuple[str, ...] = ()
    """That were added to the configuration since."""
    patients: int = 0
    """How many have joined the group since."""


class Intent(Fact):
    """About to ask (`intent.json`; asked again: `intent-0002.json`): written before the request is sent."""

    number: int
    owner: Owner
    parameters: dict[str, Any]
    """The kick-off parameters, as `KickoffParameters` takes them."""
    fingerprint: str
    """Of level, group, types, filters and elements: exports with the same one share a watermark."""
    since_reason: str
    """In words, why `_since` is what it is."""
    line: str = ""
    """The fingerprint without the types: exports of one line go on from each other, type by type."""
    lacks: Lacks = Lacks()
    patients: int | None = None
    """How many patients are asked for by name (`parameters` does not hold them); None: all."""
    deletes_from: str | None = None
    """The watermark before this full export: it does not name what was deleted from then on, so the next
    `_since` is no later."""


class IntentError(Fact):
    """A request that brought no job that we know of (`intent-0001.error.json`)."""

    reason: str
    advice: str = ""
    retry_at: datetime | None = None
    """When the server wants to be asked again; None: it did not say 'later'."""
    certain: bool = True
    """False when no answer came: a job may run there that nobody knows of."""


class Unprepared(Fact):
    """A request that could not even be prepared (`unprepared-0001.json`): nothing was asked for."""

    intent: int
    """The number that its intent would have had."""
    reason: str
    advice: str = ""


class MembersFact(Fact):
    """Who was in the group when an intent was written (`members-0001.json`); for a supplement, who of them
    it asks for. Digests: the patients themselves are in `_members` once the export is published."""

    digests: str
    """16 characters each, sorted."""
    joined: str = ""
    """Those of them whose history is not in the lake yet."""


class Request(Fact):
    """Accepted (`request.json`): the server works on it."""

    intent: int
    status_url: str
    owner: Owner


class ManifestFact(Fact):
    """The manifest as first seen (`manifest.json`, further pages `manifest-0002.json`), every member kept.

    Query strings of file URLs are replaced by their sha256: they are capabilities.
    """

    transaction_time: str
    pages: int
    page: dict[str, Any]


class ClosingFact(Fact):
    """The end without a receipt: held, gone, rejected, cancelled, withdrawn; and released after one.

    Held again after a retry: `held-0002.json`.
    """

    reason: str
    advice: str = ""
    cause: Cause = ""


class Retry(Fact):
    """An operator lets a held export be tried again (`retries/0001.json`, by the number of the `held` fact).

    For one that is published although part was missing: takes it as it is.
    """

    owner: Owner
    after_attempt: int
    """Failures up to this attempt count no more."""
    accept_partial: bool = False


class Successor(Fact):
    """In an export that ended without data, or left something out (`successor.json`): who asks again,
    or for the rest. Should somebody else have begun one of that id: `successor-0002.json`."""

    export_id: str
    number: int = 1
    cause: Cause | Literal["supplement"] = ""


class Succeeds(Fact):
    """In an export run that asks again (`succeeds.json`): for which one, and how many-th of the chain."""

    export_id: str
    number: int
    reason: str = ""
    supplement_of: str = ""
    """The published export that this one completes; empty: it asks for the same again."""
    lacks: Lacks = Lacks()
    """What that one lacks: the types are asked for here, then the patients by a supplement behind this one;
    without types, the patients here."""


class LookFact(Fact):
    """Trouble with the status request (`looks/0001.json`): once for each reason, a handful per export."""

    reason: str


class Claim(Fact):
    """One attempt to ingest (`attempts/0001.json`): who works on it since when."""

    number: int
    owner: Owner


class AttemptError(Fact):
    """How an attempt ended badly (`attempts/0001.error.json`)."""

    reason: str
    advice: str = ""
    kind: str
    """The class of the error."""
    counts: bool = True
    """False when it was no failure of the export: asked too early, or taken over."""
    transient: bool = False
    retry_at: datetime | None = None
    """When the server wants to be asked again, where it said so."""


class LandedFile(BaseModel):
    """One file of the manifest, byte for byte in the lake."""

    model_config = ConfigDict(frozen=True)

    kind: FileKind
    index: int
    """Position in its list of the manifest, over all pages, from 0."""
    type: str | None
    url: str
    """Without its query string."""
    count: int | None
    """What the manifest says."""
    lines: int
    decoded_bytes: int
    sha256: str
    """Of the decoded bytes."""
    encoding: Literal["identity", "gzip"]
    etag: str | None
    offset: int
    """Where its bytes begin in the raw file, and how many there are."""
    length: int
    warnings: tuple[str, ...] = ()
    erased: int = 0
    """Lines that are blank now, since `erase` took a patient out: `lines` does not count them."""

    @property
    def name(self) -> str:
        """`output-000012`: what rows and lineage call it."""
        return f"{self.kind}-{self.index:06d}"


class LandedBatch(Fact):
    """Files that lie together in one raw file (`landed/<type>-<first index>.json`).

    After an erasure the raw file is another one (`landed/erased-<n>/<type>-<first index>.json`); the last
    counts.
    """

    type: str
    """Table name of the declared type; `untyped` for files that declare none of R4; `deleted` / `error` for
    those lists.
    """
    number: int
    attempt: int
    raw: str
    """Path of the raw file, from the lake's root."""
    files: tuple[LandedFile, ...]

    @property
    def raw_bytes(self) -> int:
        return sum(file.length for file in self.files)


class StagedPartFact(BaseModel):
    """One Parquet file below a table's folder."""

    model_config = ConfigDict(frozen=True)

    table: str = ""
    """Empty in facts of earlier versions: the table of the batch."""
    path: str
    rows: int
    bytes: int
    columns: str
    """The Parquet schema, as `pipeline.tables.schema` writes it to text."""


class QuarantinePart(BaseModel):
    """One NDJSON file of bad lines."""

    model_config = ConfigDict(frozen=True)

    table: str
    """The table that the lines would have gone to; `untyped` where that cannot be told."""
    path: str
    """From the lake's root."""
    lines: int
    bytes: int


class FileRows(BaseModel):
    """What became of one file."""

    model_config = ConfigDict(frozen=True)

    name: str
    lines: int
    rows: int
    """Over all tables."""
    quarantined: int
    tables: dict[str, int] = {}
    """Rows by table; empty in facts of earlier versions: all in the table of the batch."""
    bad: dict[str, int] = {}
    """Lines in quarantine, by the table that they would have gone to."""


class StagedBatch(Fact):
    """A landed batch, converted (`staged/<attempt>/<type>-<first index>.json`); no reader sees it yet.

    One fact names the parts of every table and of the quarantine, so that a batch is converted whole or not
    at all, also where its lines went to several tables.
    """

    type: str
    number: int
    attempt: int
    parts: tuple[StagedPartFact, ...]
    files: tuple[FileRows, ...]
    quarantine: tuple[QuarantinePart, ...] = ()

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def quarantined(self) -> int:
        return sum(file.quarantined for file in self.files)

    @property
    def tables(self) -> set[str]:
        """The tables that its lines went to, or would have gone to."""
        return {table for file in self.files for table in (*self.tables_of(file), *file.bad)}

    def tables_of(self, file: FileRows) -> dict[str, int]:
        """Rows of one of its files, by table."""
        return file.tables or ({self.type: file.rows} if file.rows else {})

    def parts_of(self, table: str) -> tuple[StagedPartFact, ...]:
        """Its share of a table."""
        return tuple(part for part in self.parts if (part.table or self.type) == table)


class TableCounts(BaseModel):
    """One table's share of an export."""

    model_config = ConfigDict(frozen=True)

    resource_type: str
    rows: int
    quarantined: int
    files: int
    """That declare the type, or hold lines of it."""
    bytes: int
    """Of Parquet."""
    parts: int
    version: int
    """Of the Delta table: where this export was committed."""


class Publication(Fact):
    """Every table is committed (`published/<attempt>.json`), and `_exports` says so."""

    attempt: int
    owner: Owner
    tables: dict[str, TableCounts]
    quarantined_untyped: int = 0
    """Lines in quarantine of which no table can be told: no resource type, in a file that declares none."""
    quarantine: tuple[str, ...] = ()
    """The quarantine files that count, from the lake's root."""
    partial: tuple[str, ...] = ()
    """Why part of the data is missing, by comparison with an earlier export."""

    @property
    def quarantined(self) -> int:
        return sum(table.quarantined for table in self.tables.values()) + self.quarantined_untyped


class Receipt(Fact):
    """All of it is published and verified (`receipts/<attempt>.json`); the highest attempt counts."""

    attempt: int
    owner: Owner
    transaction_time: str
    watermark: str | None
    """The instant that a next `_since` may start from; None when this export must not move it."""
    incomplete: tuple[str, ...]
    """Why it must not: empty when the export is complete."""
    fingerprint: str
    tables: dict[str, TableCounts]
    files: int
    raw_bytes: int
    decoded_bytes: int
    deleted: int
    """Resources named in the manifest's `deleted` files."""
    error_entries: dict[str, int]
    """OperationOutcome issues in the manifest's `error` files, by severity."""
    error_codes: tuple[str, ...] = ()
    """The first few different `issue.code`s there; never their texts."""
    partial: tuple[str, ...] = ()
    """Why part of the data is missing: errors of the server, or fewer lines than an earlier export had."""
    quarantined_untyped: int = 0
    quarantine: tuple[str, ...] = ()
    """The quarantine files that count, from the lake's root; others there are of attempts that failed."""

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())

    @property
    def quarantined(self) -> int:
        return sum(table.quarantined for table in self.tables.values()) + self.quarantined_untyped
