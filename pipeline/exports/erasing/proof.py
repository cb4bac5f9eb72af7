"""What of a patient is in the lake: every file of the source is read, whatever it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import LakeError
from pipeline.exports.attachments.blobs import FOLDER
from pipeline.exports.erasing.broken import is_of
from pipeline.exports.erasing.compartment import Standing
from pipeline.exports.erasing.contents import unlinked_contents
from pipeline.exports.erasing.flat import flat_type, owned_rows
from pipeline.exports.erasing.mentions import Needle, batches_of, blocks_of_anything, resource_in
from pipeline.exports.erasing.quiet import runs_at_work
from pipeline.exports.erasing.tables import CURRENT, DELETED, NAMING, Owned, open_tables
from pipeline.exports.session import Session
from pipeline.lake.lake import SPOOL
from pipeline.lake.spool import is_in_use
from pipeline.tables.definitions import type_of_table


@dataclass
class Proof:
    """Rows and lines in which the id was found, by place: `raw`, `tables/group`, `exports`, ..."""

    files: int = 0
    """That were read."""
    owned: Counter[str] = field(default_factory=Counter)
    """That are the patient's."""
    mentions: Counter[str] = field(default_factory=Counter)
    """That are not, and name the patient all the same."""
    in_use: int = 0
    """Runs at work on the source, and files in spools of processes that live, for another source perhaps:
    these were not read. What they have read before may come back."""
    unread: list[str] = field(default_factory=list)
    """Files that could not be read, from the lake's root."""


def prove(session: Session, owned: Owned, needle: Needle) -> Proof:
    """Reads everything, files on their way too. Raises `LakeError` when the lake cannot be listed."""
    import pyarrow as pa

    # Before anything is read: whoever ends in between has committed already, and is seen.
    found = Proof(in_use=runs_at_work(session))
    for root in (session.source.name, SPOOL):
        for name in sorted(session.lake.stored(root)):
            if root == SPOOL and _is_in_use(session, name):
                found.in_use += 1
                continue
            place = "spool" if root == SPOOL else place_of(name)
            try:
                with session.lake.local_copy(f"{root}/{name}") as path:
                    found.files += 1
                    if "/_delta_log/" in name and name.endswith(".parquet"):
                        rows = (needle.in_rows(batch).sum() for _, batch in batches_of(path, foreign=True))
                        found.mentions[place] += int(sum(rows))
                    elif name.endswith(".parquet"):
                        _part(path, place, owned, needle, found)
                    else:
                        _text(path, place, owned, needle, found)
            except (LakeError, OSError, pa.ArrowException):
                found.unread.append(f"{root}/{name}")
    if not found.in_use:
        contents = unlinked_contents(session, open_tables(session, "tables"))
        found.owned[FOLDER] += len(contents.unlinked) + contents.doubtful
    return found


def _is_in_use(session: Session, name: str) -> bool:
    return session.lake.folder is not None and is_in_use(session.lake.folder / SPOOL / name.partition("/")[0])


def place_of(name: str) -> str:
    """`raw`, `exports`, `quarantine`; of tables `tables/<name>` and `current/<name>`."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] in ("tables", "current") else parts[0]


def _part(path: Path, place: str, owned: Owned, needle: Needle, found: Proof) -> None:
    import pyarrow as pa

    from pipeline.tables.ndjson import lines_of

    name = place.rpartition("/")[2]
    kind, of_flat = type_of_table(name.removesuffix(CURRENT)), flat_type(name)
    for _, batch in batches_of(path):
        mask = needle.in_rows(batch)
        if of_flat is not None:
            theirs = owned_rows(batch, owned, of_flat, name)
            found.owned[place] += int(theirs.sum())
            found.mentions[place] += int((mask & ~theirs).sum())
            continue
        _identities(batch, name, kind, owned, place, found)
        if not mask.any():
            continue
        if kind is None:
            found.mentions[place] += int(mask.sum())
            continue
        for line in lines_of(batch.filter(pa.array(mask)), kind):
            _weigh(resource_in(line), place, owned, found)


def _identities(batch: Any, name: str, kind: str | None, owned: Owned, place: str, found: Proof) -> None:
    """Rows by the ids that went: of tombstones and deletions nothing else tells whose they were."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name in NAMING:
        typed, named = NAMING[name]
        ids = batch.column(named).to_pylist()
        types = batch.column(typed).to_pylist() if typed else ["Patient"] * len(ids)
        gone_of = {each: owned.gone(each) for each in set(types)}
        found.owned[place] += sum(each in gone_of[of] for of, each in zip(types, ids, strict=True))
        return
    of = kind or (type_of_table(name.removesuffix(DELETED)) if name.endswith(DELETED) else None)
    if of is None or batch.schema.get_field_index("id") < 0:
        return
    gone = pa.array(sorted(owned.gone(of)), pa.string())
    ids = batch.column("id").cast(pa.string())
    found.owned[place] += int(pc.sum(pc.is_in(ids, value_set=gone)).as_py() or 0)


def _text(path: Path, place: str, owned: Owned, needle: Needle, found: Proof) -> None:
    from pipeline.bulkdata.decoding import physical_lines

    for line in physical_lines(blocks_of_anything(path)):
        if needle.in_line(line):
            resource = resource_in(line.strip())
            if place == "raw" and resource is not None:
                _weigh(resource, place, owned, found)
            elif place == "raw" and is_of(owned.patient, line):
                found.owned[place] += 1
            else:
                found.mentions[place] += 1


def _weigh(resource: dict[str, object] | None, place: str, owned: Owned, found: Proof) -> None:
    standing = Standing.OTHERS if resource is None else owned.patient.standing(resource)
    if standing is Standing.OWN and resource is not None:
        known = owned.gone(str(resource.get("resourceType")))
        # Rows with an id that is known to have gone are counted by it.
        if place == "raw" or str(resource.get("id")) not in known:
            found.owned[place] += 1
    else:
        found.mentions[place] += 1


def in_words(found: Iterable[tuple[str, int]]) -> str:
    """`tables/group 3, raw 3`."""
    return ", ".join(f"{place} {count:,}" for place, count in sorted(found) if count)
