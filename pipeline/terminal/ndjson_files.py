"""NDJSON files to Delta tables in a folder, without a server and without Dagster.

Each line goes to the table of its `resourceType`, so a file may hold several types. A bad line costs that
line only, and is named in the folder's quarantine. Every type is converted before any table is committed.
"""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from pipeline.errors import ConfigError, VerificationFailed
from pipeline.exports.identity import export_id_at, is_export_id
from pipeline.exports.quarantine import Quarantine
from pipeline.lake.lake import Lake, open_lake

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.tables.convert import Refused
    from pipeline.tables.parts import LocalPart

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_PARTITION = "export_id="

Advance = Callable[[int], None]
"""Takes the bytes of the files as they lie on the disk that were read since the last call."""


@dataclass(frozen=True)
class Converted:
    """What a conversion came to."""

    export_id: str
    tables: dict[str, int]
    """Table -> rows."""
    quarantined: int
    """Lines that became no row."""
    quarantine: str
    """The folder, below the one of the tables, whose files name them."""


class _Head(msgspec.Struct):
    resourceType: str  # noqa: N815 - FHIR's spelling


_HEAD = msgspec.json.Decoder(_Head)


def _type_of(line: bytes) -> str | None:
    """The R4 type that a line claims to be."""
    from pipeline.tables.definitions import is_resource_type

    try:
        resource_type = _HEAD.decode(line).resourceType
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return resource_type if is_resource_type(resource_type) else None


@dataclass(frozen=True)
class _Input:
    """A file and the types that it holds."""

    name: str
    """As given on the command line: what `_source_file` says."""
    path: Path
    types: tuple[str, ...]

    def lines_of(self, resource_type: str, advance: Advance) -> Iterator[bytes]:
        """Its lines of one type; the others come as empty ones, so that line numbers stay.

        Lines of no type are with its first one, whose table refuses them.
        """
        if self.types == (resource_type,):
            yield from _lines(self.path, self.name, advance)
            return
        for line in _lines(self.path, self.name, advance):
            found = _type_of(line) or self.types[0]
            yield line if found == resource_type else b"\n"


@dataclass(frozen=True)
class _Table:
    """One table's share, converted and not yet committed."""

    name: str
    schema: pa.Schema
    parts: tuple[LocalPart, ...]
    rows_by_file: dict[str, int]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


def bytes_to_read(files: Sequence[Path]) -> int:
    """What `advance` comes to in the end, where each file holds one type. Raises `ConfigError`."""
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file", "Name NDJSON files, plain or gzip")
    return 2 * sum(path.stat().st_size for path in files)


def convert_files(files: Sequence[Path], out: Path, advance: Advance = lambda _: None) -> Converted:
    """Converts `files` into the tables below `out`, as one new partition of each.

    Raises `ConfigError` for a file that is not there or named twice, `VerificationFailed` for a file without
    one good line, `LakeError` when `out` cannot be written.
    """
    bytes_to_read(files)
    if len({path.resolve() for path in files}) != len(files):
        raise ConfigError("a file is named twice", "Its resources would come twice")
    inputs = [_Input(str(path), path, _types_in(path, advance)) for path in files]
    types = sorted({each for found in inputs for each in found.types})
    if not types:
        raise ConfigError("the files hold no resources", "Each line must be a FHIR resource in JSON")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", "Name a folder for the tables")
    # As a URI: a `#` or `?` in the folder's name means itself.
    lake = open_lake(out.resolve().as_uri(), Path.cwd())
    export_id = _claimed(lake, out, [each.name for each in inputs])
    try:
        with lake.spool() as spool:
            folder = f"quarantine/{export_id}"
            quarantine = Quarantine(lake, folder, spool)
            tables = [_convert(lake, each, inputs, export_id, spool, quarantine, advance) for each in types]
            _require_good_lines(inputs, tables)
            bad = quarantine.close()
            for table in tables:
                _commit(lake, table, export_id)
    finally:
        with suppress(OSError):
            (out / ".spool").rmdir()
    rows = {table.name: table.rows for table in tables}
    return Converted(export_id, rows, sum(part.lines for part in bad), folder)


def _types_in(path: Path, advance: Advance) -> tuple[str, ...]:
    found: dict[str, None] = {}
    bad = 0
    for line in _lines(path, str(path), advance):
        if line.isspace():
            continue
        resource_type = _type_of(line)
        if resource_type is None:
            bad += 1
        else:
            found[resource_type] = None
    if bad and not found:
        raise VerificationFailed(
            f"{path} has {bad} lines, and none is a FHIR R4 resource in JSON", "Nothing was converted"
        )
    return tuple(found)


def _convert(
    lake: Lake,
    resource_type: str,
    inputs: Sequence[_Input],
    export_id: str,
    spool: Path,
    quarantine: Quarantine,
    advance: Advance,
) -> _Table:
    from pipeline.tables.convert import Converter
    from pipeline.tables.definitions import table_name
    from pipeline.tables.delta import table_schema

    name = table_name(resource_type)
    folder = spool / name
    folder.mkdir()
    known = table_schema(lake.table_uri(name), lake.storage_options)

    def refuse(refused: Refused, _line: bytes) -> None:
        quarantine.put(name, refused)

    with Converter(resource_type, known, export_id, folder, refuse=refuse) as converter:
        for each in inputs:
            if resource_type in each.types:
                converter.add(each.lines_of(resource_type, advance), each.name)
        parts = tuple(converter.finish())
        rows = {source_file: counts.rows for source_file, counts in converter.files.items()}
        return _Table(name, converter.schema, parts, rows)


def _commit(lake: Lake, table: _Table, export_id: str) -> None:
    from pipeline.tables.delta import StagedPart, commit_export, part_path

    staged = []
    for part in table.parts:
        path = part_path(export_id, 1)
        lake.put_file(part.path, f"{table.name}/{path}")
        staged.append(StagedPart(path, part.bytes, part.rows))
    commit_export(
        lake.table_uri(table.name),
        export_id=export_id,
        attempt=1,
        replaces_after=0,
        parts=staged,
        schema=table.schema,
        storage_options=lake.storage_options,
        metadata={"made_by": "fhir-export convert"},
    )


def _require_good_lines(inputs: Sequence[_Input], tables: Sequence[_Table]) -> None:
    for each in inputs:
        if each.types and not any(table.rows_by_file.get(each.name) for table in tables):
            raise VerificationFailed(f"{each.name} has no good line", "Nothing was converted")


def _claimed(lake: Lake, out: Path, names: Sequence[str]) -> str:
    """An export id that no other conversion into this folder has, nor will have."""
    taken = _taken(lake, out)
    # The same files converted twice at once must not look like one claim.
    text = json.dumps({"files": names, "claim": uuid.uuid4().hex})
    while True:
        export_id = export_id_at(datetime.now(UTC), taken)
        if lake.put_new(f"_conversions/{export_id}.json", text.encode()):
            return export_id
        taken.add(export_id)


def _taken(lake: Lake, out: Path) -> set[str]:
    """Export ids that some table in `out` has already."""
    if not out.is_dir():
        return set()
    folders = (name for table in out.iterdir() if table.is_dir() for name in lake.names(table.name))
    ids = (name.removeprefix(_PARTITION) for name in folders if name.startswith(_PARTITION))
    return {each for each in ids if is_export_id(each)}


def _lines(path: Path, name: str, advance: Advance) -> Iterator[bytes]:
    """Physical lines with their ends, without a BOM; gzip is told by its magic bytes (protocol fact 29)."""
    problem = ""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            source: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
            done = 0
            for number, line in enumerate(source):
                yield line.removeprefix(_BOM) if number == 0 else line
                if file.tell() - done >= 1 << 20:
                    advance(file.tell() - done)
                    done = file.tell()
            advance(file.tell() - done)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        problem = "is damaged or cut short"
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None
    if problem:
        raise VerificationFailed(f"{name} {problem}", "Get it again; nothing was converted")
