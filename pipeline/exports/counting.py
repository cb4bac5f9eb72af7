"""What the current tables ask of the exports, read once for all types and all questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from pipeline.config import Source
from pipeline.errors import LakeError
from pipeline.exports.deletions import DELETES, read_deletes
from pipeline.exports.identity import moment_of
from pipeline.exports.ledger import Facts
from pipeline.exports.members import JOINED, LEFT, MEMBERS, STAYED, Member, read_members
from pipeline.exports.partial import is_full
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name

if TYPE_CHECKING:
    from pipeline.tables.delta import StagedPart

Published = dict[str, tuple[int, tuple["StagedPart", ...]]]
"""Export id -> number of its commit, and its parts."""


_RULES = 2
"""Another one whenever this code makes other current tables of the same exports: they are made again then."""


def rules_number(source: Source) -> int:
    """A number for what of the configuration decides what counts, for the tables that are made by it."""
    rules = {"infer_deletes": source.export.infer_deletes, "on_leave": source.on_leave, "as of": _RULES}
    return int(hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:7], 16)


class Exports:
    """What is known of the exports, read once for all types and questions of a call.

    To be made before the partitions of a type are looked up: an export comes into `_exports` last, so that
    one that is published in between does not count yet. Each question raises `LakeError` where the answer
    cannot be read.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.facts = cache(self._facts)
        self.members = cache(self._members)
        self.whole = self._parts_of("_exports")
        """Those that are whole: id -> number of the commit, parts."""
        self.deleting = self._parts_of(DELETES)
        self.grouped = self._parts_of(MEMBERS)

    def _facts(self, export_id: str) -> Facts:
        """Damaged ones are never the same as absent: what an export is would be guessed."""
        facts = self.session.ledger.read(export_id)
        if facts.damaged:
            raise LakeError(
                f"facts of {facts.label} cannot be read: {', '.join(facts.damaged)}",
                f"Restore them in {self.session.ledger.folder(export_id)} from a backup of the lake; never "
                "delete them. Until then the current tables stay as they are",
            )
        return facts

    def _parts_of(self, table: str) -> Published:
        from pipeline.tables.delta import published_parts

        return published_parts(self.session.table_uri(table), self.session.lake.storage_options)

    def _members(self, export_id: str) -> list[tuple[Member, str]]:
        return read_members(self.session, export_id) or [] if export_id in self.grouped else []

    def deletes(self, export_id: str, resource_type: str) -> list[tuple[str, datetime | None, bool]]:
        """What it named as deleted, as `read_deletes`."""
        return read_deletes(self.session, self.deleting.get(export_id, (0, ()))[1], resource_type)

    def infers(self, export_id: str) -> bool:
        """Whether what the export lacks counts as gone, so that it counts although it has no rows."""
        return self.session.source.export.infer_deletes and self._is_all(export_id)

    def _is_all(self, export_id: str) -> bool:
        """Full, and complete."""
        facts = self.facts(export_id)
        return facts.receipt is not None and not facts.receipt.incomplete and is_full(facts)

    def asked_alike(self, one: str, other: str) -> bool:
        """Whether two exports were asked for the same but for the types: what one of them lacks says
        something of what the other brought. Not known of one whose facts are gone."""
        intents = [self.facts(each).asked for each in (one, other)]
        here, there = intents
        if here is None or there is None:
            return one == other
        if here.line and there.line:
            return here.line == there.line
        return here.fingerprint == there.fingerprint

    def alike_before(self, export_id: str, resource_type: str) -> list[str]:
        """The exports before this one that were asked for the same, newest first, as far as the last full one
        with that type: what that one lacked was judged then."""
        found = []
        for each in sorted(self.whole, reverse=True):
            earlier = (self.moment(each), each) < (self.moment(export_id), export_id)
            if earlier and self.asked_alike(export_id, each):
                found.append(each)
                if self._is_all(each) and self.asked_for(each, resource_type):
                    break
        return found

    def asked_for(self, export_id: str, resource_type: str) -> bool:
        """Whether an export without any resource of the type says that there is none."""
        facts = self.facts(export_id)
        types = facts.asked.parameters.get("types") if facts.asked else None
        listed = facts.receipt is not None and table_name(resource_type) in facts.receipt.tables
        return resource_type in types if types else listed

    def renewed(self, export_id: str, resource_type: str) -> frozenset[str]:
        """New members of the group of whom the export has everything of that type: what was deleted while
        they were away, nobody names."""
        facts = self.facts(export_id)
        intent, receipt = facts.asked, facts.receipt
        if intent is None or receipt is None or receipt.watermark is None or intent.parameters.get("since"):
            return frozenset()
        if not self.asked_for(export_id, resource_type):
            return frozenset()
        those = {JOINED} if intent.patients is None else {JOINED, STAYED}
        return frozenset(member.patient for member, state in self.members(export_id) if state in those)

    def left(self, export_id: str) -> frozenset[str]:
        """Patients who had left the group, where their data is to be hidden then: by what was written down,
        and by who was there the last time that counts, as exports are withdrawn."""
        if self.session.source.on_leave == "keep" or self.facts(export_id).supplement_of:
            return frozenset()
        states = self.members(export_id)
        told = frozenset(member.patient for member, state in states if state == LEFT)
        here = frozenset(member.patient for member, state in states if state != LEFT)
        return (told | self._there_before(export_id)) - here if states else frozenset()

    def members_only(self, export_id: str) -> frozenset[str]:
        """Of whom an export that lacks something says that it is gone: of those who left, their data is kept.
        Empty where nobody knows, and where it is not to be kept."""
        if self.session.source.on_leave == "hide":
            return frozenset()
        return frozenset(member.patient for member, state in self.members(export_id) if state != LEFT)

    def until(self, export_id: str) -> datetime | None:
        """The `_until` that was sent: what was written later is not in it."""
        intent = self.facts(export_id).asked
        text = intent.parameters.get("until") if intent else None
        return datetime.fromisoformat(text) if isinstance(text, str) else None

    def _there_before(self, export_id: str) -> frozenset[str]:
        for earlier in sorted(self.whole.keys() & self.grouped.keys(), reverse=True):
            if earlier < export_id and not self.facts(earlier).supplement_of:
                return frozenset(member.patient for member, state in self.members(earlier) if state != LEFT)
        return frozenset()

    def moment(self, export_id: str) -> datetime:
        """The `transactionTime`; of a server that sends none that is a moment, when the run began."""
        from pipeline.bulkdata.manifest import instant_of

        manifest = self.facts(export_id).manifest
        instant = instant_of(manifest.transaction_time) if manifest else None
        return datetime.fromisoformat(instant) if instant else moment_of(export_id)

    def require_rows(self, resource_type: str, parts: Published, among: Iterable[str]) -> None:
        """Raises `LakeError` where the table of a type has nothing of one of those exports that brought rows
        of it: its log is gone, or was begun anew since. What is ingested again meanwhile, or was erased, is
        not missing."""
        from pipeline.tables.delta import committed_attempts, erased_rows, open_table

        table = table_name(resource_type)
        brought = {each: self._brought(each, table) for each in sorted(among) if each not in parts}
        brought = {each: rows for each, rows in brought.items() if rows}
        if not brought:
            return
        uri, options = self.session.table_uri(table), self.session.lake.storage_options
        log, attempts = open_table(uri, options), committed_attempts(uri, brought, options)
        lost = [
            each
            for each, rows in brought.items()
            if attempts.get(each, 0) <= self.whole[each][0] and (log is None or erased_rows(log, each) < rows)
        ]
        if lost:
            raise rows_lost(self.session, table, f"{len(lost)} exports brought rows, {lost[0]} for one")

    def _brought(self, export_id: str, table: str) -> int:
        """How many rows of a table its receipt says; 0 where that is of an earlier ingest."""
        receipt = self.facts(export_id).receipt
        if receipt is None or receipt.attempt < self.whole[export_id][0] or table not in receipt.tables:
            return 0
        return receipt.tables[table].rows


def rows_lost(session: Session, table: str, why: str) -> LakeError:
    """The table of a type has lost its log: what is made of it now would lack them silently."""
    folder = session.table(table)
    return LakeError(
        f"{folder} has none of the rows that it must have: {why}",
        f"Restore {folder}/_delta_log from a backup of the lake, or ingest those exports again from their "
        "raw bytes (docs/operations.md); until then the current table stays as it is",
    )
