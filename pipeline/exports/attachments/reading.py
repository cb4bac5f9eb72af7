"""The attachments that the resources of an export have, read from its published partitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.bulkdata.attachment_rules import Declared
from pipeline.exports.session import Session
from pipeline.tables.definitions import table_name

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_COLUMNS = {"DocumentReference": "content", "DiagnosticReport": "presentedForm"}
_MEMBERS = ("contentType", "url", "size", "hash")
_AT_A_TIME = 32 << 20
"""Bytes of resources in memory, roughly: inline data are long."""
_MOST_ROWS = 2048


def attachments_of(
    session: Session, export_id: str, resource_type: str, *, with_data: bool = True
) -> Iterator[Declared]:
    """Each attachment with a URL or inline data; without `with_data` those with a URL, which is cheaper.

    Raises `LakeError`.
    """
    from pipeline.tables.delta import live_parts
    from pipeline.tables.parts import open_part

    table = table_name(resource_type)
    for part in live_parts(session.table_uri(table), export_id, session.lake.storage_options):
        with session.lake.open(f"{session.table(table)}/{part.path}") as file, open_part(file) as opened:
            for row in _rows(opened, _COLUMNS[resource_type], with_data):
                yield from _declared(resource_type, row)


def _rows(file: pq.ParquetFile, column: str, with_data: bool) -> Iterator[Mapping[str, Any]]:
    wanted = (*_MEMBERS, "data") if with_data else _MEMBERS
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    read = [
        leaf
        for leaf in leaves
        if leaf in ("id", "meta.versionId", "meta.lastUpdated")
        or (leaf.startswith(f"{column}.") and _is_member(leaf, wanted))
    ]
    if not any(leaf.startswith(f"{column}.") for leaf in read):
        return
    for group in range(file.num_row_groups):
        meta = file.metadata.row_group(group)
        size = sum(
            meta.column(number).total_uncompressed_size for number, leaf in enumerate(leaves) if leaf in read
        )
        most = max(1, min(_MOST_ROWS, meta.num_rows * _AT_A_TIME // max(size, 1)))
        for batch in file.iter_batches(most, row_groups=[group], columns=read):
            yield from batch.to_pylist()


def _is_member(leaf: str, wanted: tuple[str, ...]) -> bool:
    """Whether a leaf is that member of the attachment itself, and not of an extension below it."""
    path = leaf.split(".")
    above = path[-2] if path[-2:] else ""
    return path[-1] in wanted and (above == "attachment" or (above == "element" and len(path) == 4))


def _declared(resource_type: str, row: Mapping[str, Any]) -> Iterator[Declared]:
    column = _COLUMNS[resource_type]
    meta = row.get("meta") or {}
    for number, item in enumerate(row.get(column) or ()):
        path = f"{column}[{number}]"
        if resource_type == "DocumentReference":
            item, path = (item or {}).get("attachment"), f"{path}.attachment"  # noqa: PLW2901
        if item and (item.get("url") or item.get("data")):
            yield Declared(
                resource_type=resource_type,
                resource_id=row.get("id"),
                version=meta.get("versionId") or meta.get("lastUpdated"),
                path=path,
                content_type=item.get("contentType"),
                url=item.get("url"),
                data=item.get("data"),
                size=item.get("size"),
                hash=item.get("hash"),
            )
