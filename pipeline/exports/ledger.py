"""Facts in the lake: reading what is known of an export run, writing what is new.

Layout: `<source>/exports/<export_id>/...` (design, The lake).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from pipeline.errors import LakeError
from pipeline.exports.facts import (
    AttemptError,
    Claim,
    ClosingFact,
    Fact,
    Intent,
    IntentError,
    LandedBatch,
    ManifestFact,
    Publication,
    Receipt,
    Request,
    StagedBatch,
)
from pipeline.exports.identity import is_export_id
from pipeline.lake.lake import Lake

F = TypeVar("F", bound=Fact)

CLOSINGS = ("held", "gone", "rejected", "cancelled", "withdrawn")

_INTENT = re.compile(r"^intent(?:-(\d{4}))?\.json$")
_INTENT_ERROR = re.compile(r"^intent-(\d{4})\.error\.json$")
_NUMBERED = re.compile(r"^(attempts|receipts|published)/(\d{4})\.json$")
_BATCH = re.compile(r"(?:^|/)(?P<type>[^/]+)-\d{6,}\.json$")
_ATTEMPT_ERROR = re.compile(r"^attempts/(\d{4})\.error\.json$")


@dataclass(frozen=True)
class Facts:
    """What is known of one export run. Batches (`landed/`, `staged/`) are read apart: there can be many."""

    source: str
    export_id: str
    intents: tuple[Intent, ...] = ()
    intent_errors: Mapping[int, IntentError] = field(default_factory=dict)
    request: Request | None = None
    manifest: ManifestFact | None = None
    claims: tuple[Claim, ...] = ()
    attempt_errors: Mapping[int, AttemptError] = field(default_factory=dict)
    publications: tuple[Publication, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    released: ClosingFact | None = None
    closings: Mapping[str, ClosingFact] = field(default_factory=dict)
    raw_dropped: bool = False
    damaged: tuple[str, ...] = ()
    """Names of facts that cannot be read: never the same as absent."""

    @property
    def receipt(self) -> Receipt | None:
        """The one that counts."""
        return self.receipts[-1] if self.receipts else None

    @property
    def last_claim(self) -> Claim | None:
        return self.claims[-1] if self.claims else None

    @property
    def settled_attempt(self) -> int:
        """The attempt of the last receipt; parts staged by it or before are live and never used again."""
        return self.receipt.attempt if self.receipt else 0

    @property
    def label(self) -> str:
        return f"{self.source}/{self.export_id}"


@dataclass(frozen=True)
class Ledger:
    """The facts of one source."""

    lake: Lake
    source: str

    def folder(self, export_id: str) -> str:
        return f"{self.source}/exports/{export_id}"

    def export_ids(self) -> list[str]:
        """Every export run that has left a fact, oldest first."""
        return [name for name in self.lake.names(f"{self.source}/exports") if is_export_id(name)]

    def read(self, export_id: str) -> Facts:
        """All that is known; an export without any fact gives empty `Facts`. Raises `LakeError`."""
        names = self.lake.sizes(self.folder(export_id))
        reader = _Reader(self.lake, self.folder(export_id))
        intents: dict[int, Intent] = {}
        intent_errors: dict[int, IntentError] = {}
        claims: dict[int, Claim] = {}
        attempt_errors: dict[int, AttemptError] = {}
        publications: dict[int, Publication] = {}
        receipts: dict[int, Receipt] = {}
        closings: dict[str, ClosingFact] = {}
        for name in sorted(names):
            if match := _INTENT.match(name):
                _keep(intents, int(match[1] or 1), reader.fact(name, Intent))
            elif match := _INTENT_ERROR.match(name):
                _keep(intent_errors, int(match[1]), reader.fact(name, IntentError))
            elif match := _ATTEMPT_ERROR.match(name):
                _keep(attempt_errors, int(match[1]), reader.fact(name, AttemptError))
            elif match := _NUMBERED.match(name):
                number = int(match[2])
                if match[1] == "attempts":
                    _keep(claims, number, reader.fact(name, Claim))
                elif match[1] == "published":
                    _keep(publications, number, reader.fact(name, Publication))
                else:
                    _keep(receipts, number, reader.fact(name, Receipt))
            elif name.removesuffix(".json") in CLOSINGS:
                _keep(closings, name.removesuffix(".json"), reader.fact(name, ClosingFact))
        return Facts(
            source=self.source,
            export_id=export_id,
            intents=_in_order(intents),
            intent_errors=intent_errors,
            request=reader.fact("request.json", Request) if "request.json" in names else None,
            manifest=reader.fact("manifest.json", ManifestFact) if "manifest.json" in names else None,
            claims=_in_order(claims),
            attempt_errors=attempt_errors,
            publications=_in_order(publications),
            receipts=_in_order(receipts),
            released=reader.fact("released.json", ClosingFact) if "released.json" in names else None,
            closings=closings,
            raw_dropped="raw-dropped.json" in names,
            damaged=tuple(reader.damaged),
        )

    def landed(self, export_id: str, batch_type: str | None = None) -> list[LandedBatch]:
        """The batches whose bytes are in the lake, by type and number; all, or those of one type.

        A damaged one raises `LakeError`.
        """
        return self._batches(export_id, "landed", batch_type, LandedBatch)

    def staged(self, export_id: str, batch_type: str | None = None) -> list[StagedBatch]:
        """The batches that were converted, by attempt, type and number; all, or those of one type.

        A damaged one raises `LakeError`.
        """
        return self._batches(export_id, "staged", batch_type, StagedBatch)

    def manifest_pages(self, export_id: str) -> list[ManifestFact]:
        """The stored manifest, page by page; empty when there is none yet."""
        first = self._one(export_id, "manifest.json", ManifestFact)
        if first is None:
            return []
        pages = [first]
        for number in range(2, first.pages + 1):
            page = self._one(export_id, f"manifest-{number:04d}.json", ManifestFact)
            if page is None:
                raise LakeError(f"page {number} of the manifest of {self.source}/{export_id} is missing")
            pages.append(page)
        return pages

    def write(self, export_id: str, name: str, fact: Fact) -> bool:
        """Writes a fact; False when another one of that name was there first. Raises `LakeError`."""
        data = fact.model_dump_json(indent=1).encode() + b"\n"
        return self.lake.put_new(f"{self.folder(export_id)}/{name}", data)

    def write_text(self, export_id: str, name: str, data: bytes) -> bool:
        """Writes a file that is not a fact of its own (the log) beside the facts."""
        return self.lake.put_new(f"{self.folder(export_id)}/{name}", data)

    def _one(self, export_id: str, name: str, model: type[F]) -> F | None:
        reader = _Reader(self.lake, self.folder(export_id))
        fact = reader.fact(name, model)
        if reader.damaged:
            raise LakeError(f"{self.folder(export_id)}/{name} is damaged", "Restore it from a backup")
        return fact

    def _batches(self, export_id: str, folder: str, batch_type: str | None, model: type[F]) -> list[F]:
        names = sorted(self.lake.sizes(f"{self.folder(export_id)}/{folder}"))
        wanted = (
            name for name in names if (match := _BATCH.search(name)) and batch_type in (None, match["type"])
        )
        found = (self._one(export_id, f"{folder}/{name}", model) for name in wanted)
        return [fact for fact in found if fact is not None]


class _Reader:
    def __init__(self, lake: Lake, folder: str) -> None:
        self.lake = lake
        self.folder = folder
        self.damaged: list[str] = []

    def fact(self, name: str, model: type[F]) -> F | None:
        data = self.lake.read(f"{self.folder}/{name}")
        if data is None:
            return None
        try:
            return model.model_validate_json(data)
        except ValidationError:
            self.damaged.append(name)
            return None


def _keep(into: dict[int, F] | dict[str, F], key: int | str, fact: F | None) -> None:
    if fact is not None:
        into[key] = fact  # type: ignore[index]


def _in_order(numbered: Mapping[int, F]) -> tuple[F, ...]:
    return tuple(numbered[number] for number in sorted(numbered))
