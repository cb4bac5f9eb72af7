"""Contents of attachments: they have no owner but the links, so what no link names goes, whoever's it was.

What is fetched later is fetched again then. Without a table of links nobody can tell what it would name: then
only what a killed run has noted goes, and the rest is told as still there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.exports.attachments.blobs import FOLDER
from pipeline.exports.attachments.fetched import FETCHED, Fetched
from pipeline.exports.attachments.links import LINKS
from pipeline.exports.erasing.mentions import batches_of
from pipeline.exports.erasing.tables import TableRows, readable
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Contents:
    """Paths from the lake's root."""

    unlinked: list[str]
    """Contents that go."""
    notes: list[str]
    """What killed runs have noted of theirs."""
    doubtful: int = 0
    """Contents of which nobody can tell."""


def unlinked_contents(session: Session, tables: Iterable[TableRows]) -> Contents:
    """What no row names that stays. Raises `LakeError`."""
    folder = f"{session.source.name}/{FOLDER}"
    names = session.lake.sizes(folder)
    there = {name for name in names if _SHA256.fullmatch(name)}
    notes = [f"{folder}/{name}" for name in sorted(names) if name.startswith(f"{FETCHED}/")]
    links = next((each for each in tables if each.name == LINKS), None)
    goes = there - _linked(session, links) if links else there & _noted(session)
    doubtful = 0 if links else len(there - goes)
    return Contents([f"{folder}/{each}" for each in sorted(goes)], notes, doubtful)


def _linked(session: Session, links: TableRows) -> set[str]:
    found: set[str] = set()
    nothing: NDArray[np.int64] = np.array([], np.int64)
    for part in links.parts:
        goes = set(links.rows.get(part, nothing).tolist())
        with readable(session, links.path(part)) as path:
            for begin, batch in batches_of(path, ["sha256"]):
                rows = enumerate(batch.column(0).to_pylist(), start=begin)
                found |= {each for row, each in rows if row not in goes and each is not None}
    return found


def _noted(session: Session) -> set[str]:
    exports = session.lake.names(f"{session.source.name}/{FOLDER}/{FETCHED}")
    noted = (Fetched(session, each).earlier().values() for each in exports)
    return {content.sha256 for some in noted for content in some}
