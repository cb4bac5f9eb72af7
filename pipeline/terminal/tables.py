"""Tables back to NDJSON: the resources of a table, or of one of its exports, each on a line and exact."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.config import Config
from pipeline.errors import ConfigError, LakeError
from pipeline.exports.identity import require_export_id
from pipeline.lake.lake import Lake, open_lake

_SOURCE_AND_TYPE = re.compile(r"([a-z][a-z0-9_]*)/([A-Za-z]+)")


@dataclass(frozen=True)
class TableAddress:
    """A Delta table of resources."""

    lake: Lake
    folder: str
    """From the lake's root."""
    resource_type: str | None
    """None where the folder's name does not tell: then the rows do."""

    @property
    def uri(self) -> str:
        return self.lake.table_uri(self.folder)


def find_table(text: str, config: Callable[[], Config]) -> TableAddress:
    """The table that TABLE names: the folder of a Delta table, else `SOURCE/type` of the configuration.

    `config` is called only for the latter. Raises `ConfigError`.
    """
    from pipeline.tables.definitions import table_name, type_of_table

    _require_whole_resources(text)
    path = Path(text)
    if (path / "_delta_log").is_dir():
        whole = path.absolute()
        lake = open_lake(whole.parent.as_uri(), whole.parent)
        return TableAddress(lake, whole.name, type_of_table(whole.name))
    named = _SOURCE_AND_TYPE.fullmatch(text)
    if named is None or path.exists():
        raise ConfigError(
            f"{text} is no Delta table", "Name a table's folder, or SOURCE/type, such as hosp_a/patient"
        )
    found = config()
    source, table = found.source(named[1]), table_name(named[2])
    resource_type = type_of_table(table)
    if resource_type is None:
        raise ConfigError(
            f"{named[2]} is not a resource type of FHIR R4", "A type is written patient or Patient"
        )
    lake = open_lake(found.lake, found.folder, found.lake_auth, found.secret)
    folder = f"{source.name}/tables/{table}"
    if not lake.names(f"{folder}/_delta_log"):
        raise ConfigError(
            f"{source.name} has no table {table} yet", "`fhir-export show` tells what an export holds"
        )
    return TableAddress(lake, folder, resource_type)


def _require_whole_resources(text: str) -> None:
    from pipeline.tables.flat import FLAT_SUFFIX

    name = text.rstrip("/").rpartition("/")[2]
    if name.startswith("_"):
        raise ConfigError(f"{name} holds no resources", "Name the table of a type, such as hosp_a/patient")
    if name.endswith(FLAT_SUFFIX):
        raise ConfigError(
            f"{name} is a flat table: it has columns for people, not whole resources",
            "Name the table that it was made from, such as patient for patient_flat",
        )


def resources(table: TableAddress, export_id: str | None = None) -> Iterator[bytes]:
    """The resources as JSON lines without line ends, export by export, oldest first.

    Raises `ConfigError` for an export that the table has not, `LakeError`.
    """
    from pipeline.tables.delta import live_parts
    from pipeline.tables.ndjson import to_ndjson

    having = _exports_in(table)
    if export_id is not None and require_export_id(export_id) not in having:
        raise ConfigError(f"the table has no export {export_id}", f"It has: {', '.join(having) or 'none'}")
    for each in having if export_id is None else [export_id]:
        for part in live_parts(table.uri, each, table.lake.storage_options):
            with table.lake.open(f"{table.folder}/{part.path}") as file:
                yield from to_ndjson([file], table.resource_type)


def _exports_in(table: TableAddress) -> list[str]:
    """Export ids with live rows, oldest first."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        partitions = DeltaTable(table.uri, storage_options=table.lake.storage_options).partitions()
    except (DeltaError, OSError) as error:
        raise LakeError(
            f"the table {table.folder} cannot be opened ({type(error).__name__})",
            "See that it is a Delta table, and that this user may read it",
        ) from None
    if any("export_id" not in each for each in partitions):
        raise ConfigError(
            f"{table.folder} has no partitions by export_id",
            "Of a current table `fhir-export as-of` gives the rows as Parquet; to-ndjson is for tables/",
        )
    return sorted({each["export_id"] for each in partitions})


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole at the end, or not at all, and never in the place of another one.

    Raises `ConfigError`.
    """
    if os.path.lexists(path):
        raise _exists(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        file = draft.open("xb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", "Choose another place") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        raise _exists(path) from None
    finally:
        draft.unlink(missing_ok=True)


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists", "Nothing is overwritten: choose another name, or move it away first")
