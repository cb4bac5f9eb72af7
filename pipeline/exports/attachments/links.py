"""`_attachments`: one row for each attachment of each export, with what became of it.

A Delta table with export partitions like `_deletes`, so that what an export brought is taken back with it. A
partition's Delta transaction tells from which commit of the export it was made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import VerificationFailed
from pipeline.exports.attachments.fetched import Content, open_exports
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from pipeline.tables.delta import Commit

LINKS = "_attachments"

_MAKINGS = 1_000_000
"""A partition's transaction is `number of the export's commit * _MAKINGS + making`."""

_TRIED_AGAIN = 31
"""The newest exports, whose failures are tried again by themselves."""


def links_schema() -> pa.Schema:
    """Columns of `_attachments`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("resource_type", pa.string()),
            ("resource_id", pa.string()),
            ("version_id", pa.string()),
            ("path", pa.string()),
            ("content_type", pa.string()),
            ("inline", pa.bool_()),
            ("url", pa.string()),
            ("url_sha256", pa.string()),
            ("declared_size", pa.int64()),
            ("declared_hash", pa.string()),
            ("state", pa.string()),
            ("reason", pa.string()),
            ("sha256", pa.string()),
            ("bytes", pa.int64()),
            ("stored_content_type", pa.string()),
            ("fetch_key", pa.string()),
        ]
    )


def published_numbers(session: Session) -> dict[str, int]:
    """Export that `_exports` lists -> number of the commit that published it."""
    from pipeline.tables.delta import published_parts

    listed = published_parts(session.table_uri("_exports"), session.lake.storage_options)
    return {export_id: number for export_id, (number, _) in listed.items()}


@dataclass(frozen=True)
class Due:
    """An export whose links are to be made; `old`: they are there, and lack what could not be asked for."""

    export_id: str
    old: bool = False


def due_exports(session: Session) -> list[Due]:
    """Published exports without links, with links of an earlier publish, or with some that failed; the newest
    first. Of old exports failures are left as they are, but for those that were not asked for. Raises
    `LakeError`."""
    from pipeline.tables.delta import committed_attempts

    published = sorted(published_numbers(session).items(), reverse=True)
    failed = _with_failures(session, {export_id for export_id, _ in published[:_TRIED_AGAIN]})
    names = [export_id for export_id, _ in published]
    made = committed_attempts(session.table_uri(LINKS), names, session.lake.storage_options)
    lacking = open_exports(session)
    due = []
    for export_id, number in published:
        if export_id in failed or made.get(export_id, 0) // _MAKINGS < number:
            due.append(Due(export_id))
        elif export_id in lacking:
            due.append(Due(export_id, old=True))
    return due


def committed(session: Session, export_id: str) -> int | None:
    """Number of the transaction that committed this export's links last; None when there is none."""
    from pipeline.tables.delta import committed_attempt

    return committed_attempt(session.table_uri(LINKS), export_id, session.lake.storage_options)


def _with_failures(session: Session, among: AbstractSet[str]) -> set[str]:
    from pipeline.tables.delta import published_parts
    from pipeline.tables.parts import open_part

    found = set()
    parts = published_parts(session.table_uri(LINKS), session.lake.storage_options)
    for export_id in among & parts.keys():
        for part in parts[export_id][1]:
            with session.lake.open(f"{session.table(LINKS)}/{part.path}") as file, open_part(file) as opened:
                states = opened.read(columns=["state"]).column("state")
            if "failed" in states.unique().to_pylist():
                found.add(export_id)
    return found


def linked_contents(session: Session, keys: Collection[str]) -> dict[str, Content]:
    """Fetch key -> content, of those among `keys` that any export's links say to be stored."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.tables.delta import published_parts
    from pipeline.tables.parts import open_part

    found: dict[str, Content] = {}
    if not keys:
        return found
    wanted = pa.array(sorted(keys), pa.string())
    columns = ["fetch_key", "state", "sha256", "bytes", "stored_content_type"]
    parts = published_parts(session.table_uri(LINKS), session.lake.storage_options)
    for _, files in parts.values():
        for part in files:
            with session.lake.open(f"{session.table(LINKS)}/{part.path}") as file, open_part(file) as opened:
                for batch in opened.iter_batches(columns=columns):
                    there = pc.and_(
                        pc.is_in(batch.column("fetch_key"), value_set=wanted),
                        pc.equal(batch.column("state"), "stored"),
                    )
                    for row in batch.filter(there).to_pylist():
                        content = Content(row["sha256"], row["bytes"], row["stored_content_type"])
                        found[row["fetch_key"]] = content
    return found


def write_links(session: Session, export_id: str, number: int, tables: Iterable[pa.Table]) -> Commit:
    """Replaces the export's rows; `number` is that of the commit that they were read from.

    Raises `StillRunning` when somebody else was quicker, `VerificationFailed` when the export is withdrawn,
    `Overtaken` when an erasure was in between, `LakeError`, and what the making of `tables` raises.
    """
    from pipeline.tables.delta import write_small_partition
    from pipeline.tables.overtaking import Overtaken, begin_making, not_overtaken

    # Before `tables` read anything: see `overtaking`.
    since = begin_making(session.table_uri(LINKS), links_schema(), session.lake.storage_options)
    placed: list[str] = []
    older = max(committed(session, export_id) or 0, number * _MAKINGS)

    def put(local: Path, path: str) -> None:
        _require_standing(session, export_id)
        placed.append(f"{session.table(LINKS)}/{path}")
        session.lake.put_file(local, placed[-1])

    with session.lake.spool() as spool:
        try:
            return write_small_partition(
                session.table_uri(LINKS),
                export_id=export_id,
                attempt=older + 1,
                replaces_after=older,
                tables=tables,
                schema=links_schema(),
                put=put,
                spool=spool,
                storage_options=session.lake.storage_options,
                metadata={"dagster_run_id": session.owner.run_id},
                require=not_overtaken(since),
            )
        except Overtaken:
            for each in placed:  # it names what was erased
                session.lake.remove(each)
            raise


def _require_standing(session: Session, export_id: str) -> None:
    if session.ledger.read(export_id).closings.keys() & {"withdrawing", "withdrawn"}:
        raise VerificationFailed(f"export {export_id} is withdrawn", "Its attachments are not linked")
