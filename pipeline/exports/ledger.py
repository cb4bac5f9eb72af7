"""Facts in the lake: reading what is known of an export run, writing what is new.

Layout: `<source>/exports/<export_id>/...` (design, The lake).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

from pydantic import ValidationError

from pipeline.errors import LakeError
from pipeline.exports.batches import Batches
from pipeline.exports.facts import (
    SUPPLEMENT,
    AttemptError,
    Claim,
    ClosingFact,
    Fact,
    Intent,
    IntentError,
    LandedBatch,
    LookFact,
    ManifestFact,
    MembersFact,
    Publication,
    Receipt,
    Request,
    Retry,
    StagedBatch,
    Succeeds,
    Successor,
    Unprepared,
)
from pipeline.exports.identity import is_export_id
from pipeline.lake.lake import Lake

F = TypeVar("F", bound=Fact)

CLOSINGS = ("withdrawn", "withdrawing", "cancelled", "gone", "rejected", "held")
"""Ends without a receipt; where there are several, the first of these counts."""

_INTENT = re.compile(r"^intent(?:-(\d{4}))?\.json$")
_INTENT_ERROR = re.compile(r"^intent-(\d{4})\.error\.json$")
_UNPREPARED = re.compile(r"^unprepared-(\d{4})\.json$")
_SUCCESSOR = re.compile(r"^successor(?:-(\d{4}))?\.json$")
_HELD = re.compile(r"^held(?:-(\d{4}))?\.json$")
_BATCH = re.compile(r"(?:^|/)(?P<type>[^/]+)-\d{6,}\.json$")
_ATTEMPT_ERROR = re.compile(r"^attempts/(\d{4})\.error\.json$")


@dataclass(frozen=True)
class Facts:
    """What is known of one export run. Batches (`landed/`, `staged/`) are read apart: there can be many."""

    source: str
    export_id: str
    intents: tuple[Intent, ...] = ()
    intent_errors: Mapping[int, IntentError] = field(default_factory=dict)
    unprepared: tuple[Unprepared, ...] = ()
    request: Request | None = None
    manifest: ManifestFact | None = None
    claims: tuple[Claim, ...] = ()
    attempt_errors: Mapping[int, AttemptError] = field(default_factory=dict)
    publications: tuple[Publication, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    released: ClosingFact | None = None
    closings: Mapping[str, ClosingFact] = field(default_factory=dict)
    """Those in force, by state: `held` only where no retry answers it."""
    helds: Mapping[int, ClosingFact] = field(default_factory=dict)
    retries: Mapping[int, Retry] = field(default_factory=dict)
    """A retry answers the `held` of its number."""
    successor: Successor | None = None
    successor_opened: bool = False
    """Whether the export run that asks again knows of it: written last, so all of it is there."""
    succeeds: Succeeds | None = None
    looks: tuple[LookFact, ...] = ()
    raw_dropped: bool = False
    damaged: tuple[str, ...] = ()
    """Names of facts that cannot be read: never the same as absent."""

    @property
    def receipt(self) -> Receipt | None:
        """The one that counts."""
        return self.receipts[-1] if self.receipts else None

    @property
    def asked(self) -> Intent | None:
        """The intent that was accepted."""
        number = self.request.intent if self.request else None
        return next((each for each in self.intents if each.number == number), None)

    @property
    def supplement_of(self) -> str:
        """The published export that this one completes, or empty."""
        return self.succeeds.supplement_of if self.succeeds else ""

    @property
    def last_claim(self) -> Claim | None:
        return self.claims[-1] if self.claims else None

    @property
    def settled_attempt(self) -> int:
        """The attempt of the last receipt; parts staged by it or before are live and never used again."""
        return self.receipt.attempt if self.receipt else 0

    @property
    def last_retry(self) -> Retry | None:
        return self.retries[max(self.retries)] if self.retries else None

    @property
    def forgiven_attempt(self) -> int:
        """Failures up to this attempt count no more: they are behind a receipt, or behind a retry."""
        return max(self.settled_attempt, self.last_retry.after_attempt if self.last_retry else 0)

    @property
    def taken_as_it_is(self) -> bool:
        """Whether an operator accepted that part is missing."""
        return any(retry.accept_partial for retry in self.retries.values())

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
        reader = _Reader(self.lake, self.folder(export_id), sorted(names))
        helds = reader.numbered(_HELD, ClosingFact)
        retries = reader.numbered(_in("retries"), Retry)
        closings = {
            state: reader.named(f"{state}.json", ClosingFact) for state in CLOSINGS if state != "held"
        }
        if helds and max(helds) > max(retries, default=0):
            closings["held"] = helds[max(helds)]
        successors = reader.numbered(_SUCCESSOR, Successor)
        successor = successors[max(successors)] if successors else None
        succeeds = reader.named("succeeds.json", Succeeds)
        alone = successor is not None and bool(
            successor.cause == SUPPLEMENT or (succeeds and succeeds.supplement_of)
        )
        facts = Facts(
            source=self.source,
            export_id=export_id,
            intents=_in_order(reader.numbered(_INTENT, Intent)),
            intent_errors=reader.numbered(_INTENT_ERROR, IntentError),
            unprepared=_in_order(reader.numbered(_UNPREPARED, Unprepared)),
            request=reader.named("request.json", Request),
            manifest=reader.named("manifest.json", ManifestFact),
            claims=_in_order(reader.numbered(_in("attempts"), Claim)),
            attempt_errors=reader.numbered(_ATTEMPT_ERROR, AttemptError),
            publications=_in_order(reader.numbered(_in("published"), Publication)),
            receipts=_in_order(reader.numbered(_in("receipts"), Receipt)),
            released=reader.named("released.json", ClosingFact),
            closings={state: fact for state, fact in closings.items() if fact is not None},
            helds=helds,
            retries=retries,
            successor=successor,
            successor_opened=successor is not None and self._knows_of(successor, export_id, alone),
            succeeds=succeeds,
            looks=_in_order(reader.numbered(_in("looks"), LookFact)),
            raw_dropped="raw-dropped.json" in names,
        )
        return replace(facts, damaged=tuple(sorted(reader.damaged)))

    def _knows_of(self, successor: Successor, export_id: str, alone: bool) -> bool:
        """`alone`: it asks for what no other export asks for, so that one of somebody else is none."""
        if not is_export_id(successor.export_id) or successor.export_id == export_id:
            return True  # not written by us: nothing is opened for it
        reader = _Reader(self.lake, self.folder(successor.export_id))
        succeeds = reader.fact("succeeds.json", Succeeds)
        if succeeds is None:
            return bool(reader.damaged)  # it may be ours: nothing is opened twice
        return succeeds.export_id == export_id or not alone

    def landed(self, export_id: str, batch_type: str | None = None) -> list[LandedBatch]:
        """The batches whose bytes are in the lake, by type and number; all, or those of one type.

        A damaged one raises `LakeError`.
        """
        return list(self._batches(export_id, "landed", batch_type, LandedBatch))

    def replaced_raw(self, export_id: str) -> set[str]:
        """Raw files that an erasure has written anew: they are to be removed. Raises `LakeError`."""
        folder = f"{self.folder(export_id)}/landed"
        named = {
            batch.raw
            for name in self.lake.sizes(folder)
            if (batch := self._one(export_id, f"landed/{name}", LandedBatch))
        }
        return named - {batch.raw for batch in self.landed(export_id)}

    def staged(self, export_id: str, batch_type: str | None = None) -> list[StagedBatch]:
        """The batches that were converted, by attempt, type and number; all, or those of one type.

        A damaged one raises `LakeError`.
        """
        return list(self._batches(export_id, "staged", batch_type, StagedBatch))

    def packed_landed(self, export_id: str, batch_type: str | None = None) -> Batches[LandedBatch]:
        """What `landed` gives, held small: for steps that go through an export's every file."""
        return Batches.of(LandedBatch, self._batches(export_id, "landed", batch_type, LandedBatch))

    def packed_staged(self, export_id: str, batch_type: str | None = None) -> Batches[StagedBatch]:
        """What `staged` gives, held small."""
        return Batches.of(StagedBatch, self._batches(export_id, "staged", batch_type, StagedBatch))

    def members(self, export_id: str, intent: int) -> MembersFact | None:
        """Who was in the group at that intent, where it was looked up. A damaged one raises `LakeError`."""
        return self._one(export_id, f"members-{intent:04d}.json", MembersFact)

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

    def _batches(self, export_id: str, folder: str, batch_type: str | None, model: type[F]) -> Iterator[F]:
        names = sorted(self.lake.sizes(f"{self.folder(export_id)}/{folder}"))
        if folder == "landed":  # what an erasure has written stands in for what it replaces
            newest = {name.rpartition("/")[2]: name for name in sorted(names, key=_erasure)}
            names = [newest[name] for name in sorted(newest)]
        wanted = (
            name for name in names if (match := _BATCH.search(name)) and batch_type in (None, match["type"])
        )
        found = (self._one(export_id, f"{folder}/{name}", model) for name in wanted)
        return (fact for fact in found if fact is not None)


class _Reader:
    """Reads facts of one export run; `names` are those that are there. What is damaged is remembered."""

    def __init__(self, lake: Lake, folder: str, names: Sequence[str] = ()) -> None:
        self.lake = lake
        self.folder = folder
        self.names = names
        self.damaged: list[str] = []

    def numbered(self, pattern: re.Pattern[str], model: type[F]) -> dict[int, F]:
        """Facts by the number in their names; the first one may have none."""
        matches = [(match, name) for name in self.names if (match := pattern.fullmatch(name))]
        found = {int(match[1] or 1): self.fact(name, model) for match, name in matches}
        return {number: fact for number, fact in found.items() if fact is not None}

    def named(self, name: str, model: type[F]) -> F | None:
        return self.fact(name, model) if name in self.names else None

    def fact(self, name: str, model: type[F]) -> F | None:
        data = self.lake.read(f"{self.folder}/{name}")
        if data is None:
            return None
        try:
            return model.model_validate_json(data)
        except ValidationError:
            self.damaged.append(name)
            return None


def _erasure(name: str) -> str:
    """`erased-0002` for `erased-0002/patient-000000.json`; empty for what was landed so."""
    return name.rpartition("/")[0]


@cache
def _in(folder: str) -> re.Pattern[str]:
    return re.compile(rf"{folder}/(\d{{4}})\.json")


def _in_order(numbered: Mapping[int, F]) -> tuple[F, ...]:
    return tuple(numbered[number] for number in sorted(numbered))
