"""Dagster's partitions and materializations, rebuilt from the lake after the loss of its database.

Only what Dagster knows is written, never data. Each event says that it was rebuilt, and from what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from pipeline.errors import ExportError
from pipeline.exports.attempt import Attempt
from pipeline.exports.facts import Receipt
from pipeline.exports.flattening import current_partitions, flat_names, wanted_names, wants_flat
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.orchestration.asset_metadata import (
    manifest_metadata,
    published_metadata,
    receipt_metadata,
    request_metadata,
)
from pipeline.orchestration.flat_assets import FlatMetadata
from pipeline.orchestration.known_types import remember_types, static_types
from pipeline.orchestration.names import Names
from pipeline.tables.definitions import table_name

REBUILT = "rebuilt"
"""The metadata that tells a rebuilt materialization from one of a run."""


def published_exports(session: Session) -> list[tuple[Facts, Receipt]]:
    """Every export that has a receipt and was not withdrawn, in the order of the receipts."""
    found = []
    for export_id in session.ledger.export_ids():
        facts = session.ledger.read(export_id)
        if facts.receipt and not facts.damaged and not facts.closings.keys() & {"withdrawn", "withdrawing"}:
            found.append((facts, facts.receipt))
    return sorted(found, key=lambda each: each[1].at)


def promised(names: Names, receipt: Receipt) -> list[dg.AssetKey]:
    """The assets that must have a materialization of a published export; flat tables come on top."""
    return [
        names.key("export_request"),
        names.key("export_manifest"),
        *(names.key(table) for table in receipt.tables),
        names.key("export_receipt"),
    ]


def missing_partitions(session: Session, instance: dg.DagsterInstance, names: Names) -> list[str]:
    """Export runs of the lake that are no partitions."""
    known = set(instance.get_dynamic_partitions(names.partitions.name or ""))
    return [each for each in session.ledger.export_ids() if each not in known]


def missing_materializations(
    session: Session, instance: dg.DagsterInstance, names: Names
) -> dict[str, list[dg.AssetKey]]:
    """Published export -> assets without a materialization of it, in the order of the receipts."""
    done = _Materialized(instance)
    found = {}
    for facts, receipt in published_exports(session):
        missing = [key for key in promised(names, receipt) if not done.has(key, facts.export_id)]
        if missing:
            found[facts.export_id] = missing
    return found


def rebuild(
    session: Session, instance: dg.DagsterInstance, names: Names, say: Callable[[str], None]
) -> list[str]:
    """Adds what is missing, in the order of the receipts, and nothing twice. What was done, in words.

    What of an export cannot be rebuilt goes to `say`; the others are. Raises `LakeError` when the source's
    exports cannot be read at all.
    """
    did = []
    partitions = missing_partitions(session, instance, names)
    if partitions:
        instance.add_dynamic_partitions(names.partitions.name or "", partitions)
        did.append(f"{len(partitions)} partitions added")
    exports = published_exports(session)
    seen = {counts.resource_type for _, receipt in exports for counts in receipt.tables.values()}
    remember_types(session.source, seen - set(static_types(session.source)))
    done = _Materialized(instance)
    added = 0
    for facts, receipt in exports:
        try:
            for key, metadata in _events(session, names, facts, receipt, done):
                marked = {**metadata, REBUILT: "from the lake, by `fhir-export doctor --repair`"}
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(key, partition=facts.export_id, metadata=marked)
                )
                added += 1
        except ExportError as error:
            say(f"{facts.label}: its materializations are not rebuilt: {error}")
    if added:
        did.append(f"{added} materializations rebuilt, of {len(exports)} published exports")
    return did


class _Materialized:
    """Which partitions of an asset the instance knows as materialized; read once for each asset."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._known: dict[dg.AssetKey, set[str]] = {}

    def has(self, key: dg.AssetKey, export_id: str) -> bool:
        if key not in self._known:
            self._known[key] = set(self._instance.get_materialized_partitions(key))
        return export_id in self._known[key]


def _events(
    session: Session, names: Names, facts: Facts, receipt: Receipt, done: _Materialized
) -> Iterator[tuple[dg.AssetKey, dict[str, Any]]]:
    from pipeline.exports.manifests import stored_manifest

    def lacks(name: str) -> bool:
        return not done.has(names.key(name), facts.export_id)

    if lacks("export_request"):
        yield names.key("export_request"), request_metadata(facts)
    attempt = Attempt(_published_by(facts, receipt), facts)
    tables = [*receipt.tables, *_tables_without_files(session, receipt)]
    wanted = [name for name in tables if lacks(name)]
    if wanted or lacks("export_manifest"):
        manifest = stored_manifest(session, facts.export_id)
        if lacks("export_manifest"):
            yield names.key("export_manifest"), manifest_metadata(attempt, manifest)
        for name in wanted:
            yield (
                names.key(name),
                published_metadata(session, names, attempt, manifest, name, receipt.tables),
            )
    if lacks("export_receipt"):
        released = facts.released is not None
        yield names.key("export_receipt"), receipt_metadata(facts.export_id, receipt, released)
    yield from _flat_events(session, names, facts, receipt, done)


def _published_by(facts: Facts, receipt: Receipt) -> int:
    """The attempt that committed the tables: not always that of the receipt."""
    earlier = [each.attempt for each in facts.publications if each.attempt <= receipt.attempt]
    return earlier[-1] if earlier else receipt.attempt


def _tables_without_files(session: Session, receipt: Receipt) -> list[str]:
    """Where the server is asked for whatever it has: types that it has nothing of have zero rows."""
    if session.source.export.types is not None:
        return []
    names = [table_name(each) for each in static_types(session.source)]
    return [name for name in names if name not in receipt.tables]


def _flat_events(
    session: Session, names: Names, facts: Facts, receipt: Receipt, done: _Materialized
) -> Iterator[tuple[dg.AssetKey, dict[str, Any]]]:
    """Of those that stand; a flat table that is missing is the flat sensor's."""
    told = FlatMetadata(session, names, facts.export_id)
    for resource_type, tables in wanted_names(session.source, receipt.tables).items():
        missing = tuple(name for name in tables if not done.has(names.key(name), facts.export_id))
        current = current_partitions(session, facts.export_id, {resource_type: missing})
        standing = [each for each in current.values() if each is not None]
        if standing:
            for made, metadata in told.metadata(standing):
                yield names.key(made.table), metadata
    if session.source.export.types is not None:
        return
    asked = [each for each in static_types(session.source) if wants_flat(session.source, each)]
    for resource_type in asked:
        if table_name(resource_type) in receipt.tables:
            continue
        for name in flat_names(resource_type):
            if not done.has(names.key(name), facts.export_id):
                yield names.key(name), {"dagster/partition_row_count": 0, "export_id": facts.export_id}
