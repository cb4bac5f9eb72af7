"""A landed batch to Parquet parts: each line to the table of what it is, bad lines to the quarantine.

The batch's own table takes its files as they stream; a line that says it is of another type goes, with its
origin, to that type's table. Files that declare no type are split line by line. One fact at the end names
everything: until it is there, none of it counts.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.exports.attempt import Attempt
from pipeline.exports.facts import FileRows, LandedBatch, LandedFile, StagedBatch, StagedPartFact
from pipeline.exports.quarantine import UNTYPED, Quarantine, quarantine_folder
from pipeline.exports.session import Session
from pipeline.exports.strays import StrayLines
from pipeline.lake.spool import discard

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.tables.convert import Converter, Refused
    from pipeline.tables.parts import LocalPart

Refuse = Callable[["Refused", bytes], None]

_HEADERS = "Parameters"
"""Whose converter says what is wrong with a line of no type; they head blocks (protocol fact 27)."""


@dataclass
class Conversion:
    """Converts the batches of one staging step; what one batch shows of a schema, the next one knows."""

    session: Session
    attempt: Attempt
    _known: dict[str, pa.Schema | None] = field(default_factory=dict)

    def convert(self, batch: LandedBatch, raw: Path, spool: Path) -> StagedBatch:
        """The batch's parts and bad lines, in the lake, and the fact that names them.

        `raw`: its bytes as a local file. Raises `VerificationFailed` when these are not what was downloaded,
        or when lines are missing afterwards; `LakeError`.
        """
        session, export_id = self.session, self.attempt.export_id
        folder = f"{quarantine_folder(session.source.name, export_id)}/{self.attempt.number:04d}"
        work = spool / f"batch-{uuid.uuid4().hex}"
        work.mkdir()
        one = _Batch(self, batch, raw, work, Quarantine(session.lake, folder, work))
        parts = tuple(one.parts())
        staged = StagedBatch(
            at=session.now(),
            type=batch.type,
            number=batch.number,
            attempt=self.attempt.number,
            parts=parts,
            files=tuple(one.became(file) for file in batch.files),
            quarantine=one.quarantine.close(),
        )
        name = f"staged/{self.attempt.number:04d}/{batch.type}-{batch.number:06d}.json"
        session.ledger.write(export_id, name, staged)
        bad = f", {staged.quarantined} lines in quarantine" if staged.quarantined else ""
        session.log(f"{batch.type}: {len(batch.files)} files, {staged.rows} rows staged{bad}")
        return staged

    def known(self, resource_type: str) -> pa.Schema | None:
        """The schema of a type's table so far, and what earlier batches of this step have shown."""
        from pipeline.tables.definitions import table_name
        from pipeline.tables.delta import table_schema

        if resource_type not in self._known:
            uri = self.session.table_uri(table_name(resource_type))
            self._known[resource_type] = table_schema(uri, self.session.lake.storage_options)
        return self._known[resource_type]

    def put(self, part: LocalPart, resource_type: str) -> StagedPartFact:
        """Brings a part to the lake, under its table's folder."""
        from pipeline.tables.definitions import table_name
        from pipeline.tables.schema import to_json, union

        table = table_name(resource_type)
        export_id = self.attempt.export_id
        name = f"export_id={export_id}/part-{self.attempt.number:04d}-{uuid.uuid4().hex}.parquet"
        self.session.lake.put_file(part.path, f"{self.session.table(table)}/{name}")
        discard(part.path)
        known = self._known.get(resource_type)
        self._known[resource_type] = union(known, part.schema, resource_type) if known else part.schema
        return StagedPartFact(
            table=table, path=name, rows=part.rows, bytes=part.bytes, columns=to_json(part.schema)
        )


@dataclass
class _Batch:
    """One batch under conversion, and the counts of where its lines went."""

    conversion: Conversion
    batch: LandedBatch
    raw: Path
    work: Path
    quarantine: Quarantine
    rows: dict[str, Counter[str]] = field(default_factory=dict)
    """File -> table -> rows."""
    bad: dict[str, Counter[str]] = field(default_factory=dict)
    """File -> table -> lines in quarantine."""

    def parts(self) -> Iterator[StagedPartFact]:
        """Converts everything; one table after the other, so that one converter at a time holds memory."""
        from pipeline.tables.definitions import table_name, type_of_table

        strays = StrayLines(self.work)
        own = type_of_table(self.batch.type)
        try:
            if own is not None:
                yield from self._table(own, self._add_files, self._split_from(own, strays))
            else:
                self._split(strays)
            for resource_type in strays.types():
                table = table_name(resource_type) if resource_type else UNTYPED
                add = _adding(strays, resource_type)
                yield from self._table(resource_type or _HEADERS, add, self._into_quarantine(table))
        finally:
            strays.close()

    def became(self, file: LandedFile) -> FileRows:
        """What became of a file. Raises `VerificationFailed` when lines are missing, or too many."""
        tables, bad = self.rows.get(file.name, Counter()), self.bad.get(file.name, Counter())
        rows, quarantined = tables.total(), bad.total()
        if rows + quarantined != file.lines:
            raise VerificationFailed(
                f"{self.batch.type}: {file.name} has {file.lines} lines and gave {rows} rows and "
                f"{quarantined} lines in quarantine",
                "Nothing is published; report this, the raw file is kept",
            )
        return FileRows(
            name=file.name,
            lines=file.lines,
            rows=rows,
            quarantined=quarantined,
            tables=dict(sorted(tables.items())),
            bad=dict(sorted(bad.items())),
        )

    def _table(
        self, resource_type: str, add: Callable[[Converter], None], refuse: Refuse
    ) -> Iterator[StagedPartFact]:
        from pipeline.tables.convert import Converter
        from pipeline.tables.definitions import table_name

        conversion = self.conversion
        folder = self.work / f"parts-{uuid.uuid4().hex}"
        folder.mkdir()
        with Converter(
            resource_type,
            conversion.known(resource_type),
            conversion.attempt.export_id,
            folder,
            refuse=refuse,
            lanes=conversion.session.config.conversion.lanes,
        ) as converter:
            add(converter)
            parts = converter.finish()
        for name, counts in converter.files.items():
            if counts.rows:
                self.rows.setdefault(name, Counter())[table_name(resource_type)] += counts.rows
        for part in parts:
            yield conversion.put(part, resource_type)

    def _add_files(self, converter: Converter) -> None:
        for file in self.batch.files:
            with self._blocks(file) as blocks:
                converter.add(blocks, file.name)

    def _split(self, strays: StrayLines) -> None:
        """Files that declare no type: each line to where its type says."""
        from pipeline.bulkdata.decoding import numbered_lines
        from pipeline.bulkdata.inspection import type_of_line
        from pipeline.tables.definitions import is_resource_type

        for file in self.batch.files:
            with self._blocks(file) as blocks:
                for number, line in numbered_lines(blocks):
                    name = type_of_line(line)
                    strays.put(name if is_resource_type(name) else "", line, file.name, number)

    @contextmanager
    def _blocks(self, file: LandedFile) -> Iterator[Iterator[bytes]]:
        """The decoded bytes of a file; at the end they must have been those that were downloaded."""
        from pipeline.bulkdata.decoding import decoded_blocks

        digest = hashlib.sha256()
        yield _hashed(decoded_blocks(self.raw, file.encoding, file.offset, file.length), digest)
        if digest.hexdigest() != file.sha256:
            raise VerificationFailed(
                f"{self.batch.type}: the raw bytes of {file.name} are not those that were downloaded",
                "Nothing is published; restore the raw file, or start a new export run",
            )

    def _split_from(self, resource_type: str, strays: StrayLines) -> Refuse:
        """Lines that the batch's own table refuses: to their own table where they have one."""
        from pipeline.tables.definitions import is_resource_type

        into_quarantine = self._into_quarantine(self.batch.type)

        def refuse(refused: Refused, line: bytes) -> None:
            other = refused.stray
            if other is not None and other != resource_type and is_resource_type(other):
                strays.put(other, line, refused.source_file, refused.line)
            else:
                into_quarantine(refused, line)

        return refuse

    def _into_quarantine(self, table: str) -> Refuse:
        def refuse(refused: Refused, _line: bytes) -> None:
            self.bad.setdefault(refused.source_file, Counter())[table] += 1
            self.quarantine.put(table, _without_guess(refused) if table == UNTYPED else refused)

        return refuse


def _adding(strays: StrayLines, resource_type: str) -> Callable[[Converter], None]:
    def add(converter: Converter) -> None:
        for line, source_file, number in strays.take(resource_type):
            converter.add_line(line, source_file, number)

    return add


def _without_guess(refused: Refused) -> Refused:
    """No type was declared, so a line without one is not measured by the type that we tried."""
    if refused.path != "resourceType":
        return refused
    return replace(refused, reason="resourceType is missing or unknown")


def _hashed(blocks: Iterable[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block
