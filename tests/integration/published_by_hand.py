"""A lake whose exports are published by hand: parts, commits and `_exports` as an ingest makes them, without
server and facts. For what is computed from tables alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import Config, Source
from pipeline.exports.deletions import DELETES, deletes_schema
from pipeline.exports.lineage import exports_schema
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.tables.convert import Converter
from pipeline.tables.definitions import table_name
from pipeline.tables.delta import (
    StagedPart,
    commit_export,
    empty_partition,
    part_path,
    table_schema,
    write_small_partition,
)

BASE = "https://fhir.example.org/r4"
Resource = Mapping[str, Any]


class HandMade:
    """The source `hosp` in a lake of its own."""

    def __init__(self, folder: Path, **source: Any) -> None:
        entry = {"name": "hosp", "fhir_url": BASE, "auth": {"kind": "none"}, "export": {"level": "system"}}
        self.folder = folder
        self.source = Source.model_validate(entry | source)
        config = Config.model_validate({"lake": str(folder / "lake"), "sources": [entry | source]})
        self.session = Session(config, self.source, this_process("test"))
        self._files = 0

    def publish(
        self, export_id: str, *resources: Resource, attempt: int = 1, deleted: Iterable[tuple[str, str]] = ()
    ) -> None:
        """All that one export brings, and last that it is whole. `deleted`: type and id."""
        self.session.lake.put_new(f"hosp/exports/{export_id}/log.ndjson", b"")  # it is known by its folder
        by_type: dict[str, list[Resource]] = {}
        for each in resources:
            by_type.setdefault(each["resourceType"], []).append(each)
        for resource_type, some in by_type.items():
            self.commit(export_id, resource_type, some, attempt)
        if rows := [
            {"resource_type": kind, "id": identifier, "deleted_at": datetime.now(UTC), "exact": True}
            for kind, identifier in deleted
        ]:
            self._small(DELETES, export_id, attempt, rows, deletes_schema())
        self._small("_exports", export_id, attempt, [{"files": len(by_type)}], exports_schema())

    def commit(self, export_id: str, resource_type: str, some: Iterable[Resource], attempt: int = 1) -> None:
        """The partition of one table alone."""
        lake, table = self.session.lake, table_name(resource_type)
        uri = self.session.table_uri(table)
        self._files += 1
        folder = self.folder / f"parts-{self._files}"
        folder.mkdir()
        with Converter(resource_type, table_schema(uri), export_id, folder) as converter:
            for number, each in enumerate(some, 1):
                converter.add_line(json.dumps(each).encode(), f"{table}-{self._files}.ndjson", number)
            parts = converter.finish()
        staged = []
        for part in parts:
            path = part_path(export_id, attempt)
            lake.put_file(part.path, f"{self.session.table(table)}/{path}")
            staged.append(StagedPart(path, part.bytes, part.rows))
        commit_export(
            uri,
            export_id=export_id,
            attempt=attempt,
            replaces_after=attempt - 1,
            parts=staged,
            schema=converter.schema,
        )

    def take_back(self, export_id: str, *tables: str) -> None:
        """As `withdraw` does, table by table."""
        for table in tables:
            empty_partition(self.session.table_uri(table), export_id=export_id, attempt=99)

    def _small(
        self, table: str, export_id: str, attempt: int, rows: list[dict[str, Any]], schema: pa.Schema
    ) -> None:
        lake = self.session.lake
        with lake.spool() as spool:
            write_small_partition(
                self.session.table_uri(table),
                export_id=export_id,
                attempt=attempt,
                replaces_after=attempt - 1,
                tables=[pa.Table.from_pylist(rows, schema=schema)],
                schema=schema,
                put=lambda local, path: lake.put_file(local, f"{self.session.table(table)}/{path}"),
                spool=spool,
            )
