"""What lies beside the data: the quarantine, and raw files that do not count."""

from __future__ import annotations

from collections.abc import Iterable, Set
from datetime import timedelta

from pipeline.errors import StillRunning
from pipeline.exports.erasing.mentions import Needle, blocks_of_anything, resource_in
from pipeline.exports.erasing.tables import Line
from pipeline.exports.orphans import REJECTED
from pipeline.exports.session import Session

ON_THEIR_WAY = timedelta(hours=1)
"""Files that nothing refers to and that are younger may be about to be named, or committed."""


def stray_raw(session: Session, needle: Needle) -> list[str]:
    """Raw files that do not count, and in which the id stands: of refused files, those that an erasure has
    written anew, and others that no fact names and that are not on their way."""
    from pipeline.bulkdata.decoding import physical_lines

    found = []
    root = f"{session.source.name}/raw"
    export_ids = session.lake.names(root)
    named = {batch.raw for each in export_ids for batch in session.ledger.landed(each)}
    replaced = {path for each in export_ids for path in session.ledger.replaced_raw(each)}
    before = session.now() - ON_THEIR_WAY
    for name, stored in sorted(session.lake.stored(root).items()):
        path = f"{root}/{name}"
        certain = path in replaced or name.split("/")[1] == REJECTED
        if path in named or not (certain or stored.modified < before):
            continue
        with session.lake.local_copy(path) as local:
            if any(needle.in_line(line) for line in physical_lines(blocks_of_anything(local))):
                found.append(path)
    return found


def quarantined(session: Session, lines: Set[Line]) -> dict[str, int]:
    """Quarantine files, and how many of their records are about those lines.

    Nothing else in a record tells whose it is: its path and reason hold numbers and words of anybody.
    """
    found = {}
    root = f"{session.source.name}/quarantine"
    for name in sorted(session.lake.sizes(root)):
        data = session.lake.read(f"{root}/{name}") or b""
        goes = _records(name.partition("/")[0], data, lines)
        if len(goes):
            found[f"{root}/{name}"] = len(goes)
    return found


def rewrite_quarantine(session: Session, path: str, lines: Set[Line]) -> None:
    """The file without those records. Raises `LakeError`."""
    version = session.lake.read_version(path)
    if version is None:
        return
    goes = _records(path.split("/")[2], version.data, lines)
    kept = [line for number, line in enumerate(version.data.splitlines(keepends=True)) if number not in goes]
    if not session.lake.replace_if(path, b"".join(kept), version.etag):
        raise StillRunning("somebody else changes the quarantine", "Run it again")


def _records(export_id: str, data: bytes, lines: Set[Line]) -> set[int]:
    found = set()
    for number, line in enumerate(data.splitlines()):
        record = resource_in(line) or {}
        origin = (export_id, str(record.get("file")), record.get("line"))
        if origin in lines:
            found.add(number)
    return found


def remove_all(session: Session, paths: Iterable[str]) -> None:
    """Files of the lake, whose bytes nobody needs."""
    for path in paths:
        session.lake.remove(path)
