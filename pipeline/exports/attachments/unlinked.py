"""Which contents of attachments links still name: the others may go, as `orphans` has it."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import LakeError
from pipeline.exports.attachments.blobs import FOLDER
from pipeline.exports.attachments.fetched import FETCHED, Fetched
from pipeline.exports.attachments.links import LINKS
from pipeline.exports.session import Session


def links_log(session: Session) -> tuple[str, ...]:
    """The names in the log of the links: another commit changes them. Raises `LakeError`."""
    return tuple(session.lake.names(f"{session.table(LINKS)}/_delta_log"))


def all_linked_blobs(session: Session) -> set[str]:
    """The same of all links as they are now. Raises `LakeError`."""
    from pipeline.tables.delta import published_parts

    parts = published_parts(session.table_uri(LINKS), session.lake.storage_options)
    return linked_blobs(session, (part.path for _, some in parts.values() for part in some))


def linked_blobs(session: Session, parts: Iterable[str]) -> set[str]:
    """sha256 of all contents that these parts of the links name, and that a killed run has noted.

    Raises `LakeError` when one of them cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: set[str] = set()
    for path in parts:
        try:
            with session.lake.open(f"{session.table(LINKS)}/{path}") as file:
                column = pq.read_table(file, columns=["sha256"], partitioning=None).column("sha256")
        except (OSError, pa.ArrowException) as bad:
            raise LakeError(f"a part of {LINKS} cannot be read ({type(bad).__name__})") from None
        found.update(each for each in column.unique().to_pylist() if each is not None)
    for export_id in session.lake.names(f"{session.source.name}/{FOLDER}/{FETCHED}"):
        found.update(content.sha256 for content in Fetched(session, export_id).earlier().values())
    return found
