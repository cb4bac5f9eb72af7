"""The doctor at the tables: what their logs, the receipts and the files on the disk say of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.exports.finding import Findings
from pipeline.exports.ledger import Facts
from pipeline.exports.session import Session
from pipeline.exports.state import Busy, Closed, Ingest

if TYPE_CHECKING:
    from pipeline.tables.inventory import Inventory

_AGAIN = (
    "ingest its partition again from the raw bytes (docs/operations.md, Ingesting an old partition again)"
)
_SHOWN = 3


def examine(session: Session, exports: Mapping[str, Facts], found: Findings) -> None:
    """Every table of the source. Raises `LakeError` when they cannot be listed."""
    files = session.lake.sizes(f"{session.source.name}/tables")
    by_table: dict[str, dict[str, int]] = {}
    for path, size in files.items():
        table, _, name = path.partition("/")
        by_table.setdefault(table, {})[name] = size
    logs: dict[str, Inventory] = {}
    for table, names in sorted(by_table.items()):
        where = session.table(table)
        found.look("log-unreadable", where, lambda t=table, n=names: _table(session, t, n, logs, found))  # type: ignore[misc]
    for facts in exports.values():
        found.look("receipt", facts.label, lambda f=facts: _receipt(session, f, logs, found))  # type: ignore[misc]
        found.look("staged", facts.label, lambda f=facts: _staged(session, f, files, found))  # type: ignore[misc]
    _strangers(session, exports, logs, found)


def _table(
    session: Session, table: str, names: Mapping[str, int], logs: dict[str, Inventory], found: Findings
) -> None:
    """The log itself, and the files that it lists."""
    from pipeline.tables.inventory import inventory, missing_versions

    where = session.table(table)
    if not any(name.startswith("_delta_log/") for name in names):
        return  # parts were staged and nothing was published yet
    gone = missing_versions(names)
    if gone:
        what = f"{len(gone)} versions of its log are missing, {gone[0]} for one"
        found.add("error", "log-incomplete", where, what, "restore _delta_log from a backup of the lake")
    logs[table] = inventory(session.table_uri(table), session.lake.storage_options)
    for export_id, parts in logs[table].parts.items():
        bad = [part.path for part in parts if names.get(part.path) != part.bytes]
        if bad:
            what = f"{len(bad)} of its {len(parts)} files are missing or cut: {', '.join(bad[:_SHOWN])}"
            mend = f"restore them from a backup, or {_AGAIN}"
            found.add("error", "parts-missing", f"{where}/export_id={export_id}", what, mend)


def _receipt(session: Session, facts: Facts, logs: Mapping[str, Inventory], found: Findings) -> None:
    receipt = facts.receipt
    if receipt is None or "withdrawn" in facts.closings or "withdrawing" in facts.closings:
        return
    if isinstance(session.next_step(facts), Busy):
        return  # it is being ingested again
    whole = logs.get("_exports")
    if whole is not None and whole.rows(facts.export_id) != 1:
        what = f"published, and _exports has {whole.rows(facts.export_id)} rows of it"
        found.add("error", "exports-row", facts.label, what, _AGAIN)
    elif whole is None:
        found.add("error", "exports-row", facts.label, "published, and there is no table _exports", _AGAIN)
    for table, counts in receipt.tables.items():
        rows = logs[table].rows(facts.export_id) if table in logs else None
        if rows is not None and rows + logs[table].erased(facts.export_id) == counts.rows:
            continue
        has = "cannot be read" if rows is None else f"has {rows} rows of it"
        what = f"the receipt says {counts.rows} rows, and the table {has}"
        where = f"{session.table(table)}/export_id={facts.export_id}"
        mend = f"see who else writes to this table (its history), then {_AGAIN}"
        found.add("error", "rows-differ", where, what, mend)


def _staged(session: Session, facts: Facts, files: Mapping[str, int], found: Findings) -> None:
    """Parts that are still to be published: of the newest conversion of each batch."""
    step = session.next_step(facts)
    if facts.receipt is not None or isinstance(step, Closed):
        return
    newest = {(batch.type, batch.number): batch for batch in session.ledger.staged(facts.export_id)}
    for batch in newest.values():
        for part in batch.parts:
            path = f"{part.table or batch.type}/{part.path}"
            if files.get(path) != part.bytes:
                what = "was converted and is not there" if path not in files else "is cut"
                mend = "`fhir-export withdraw` the export and run a new one, or restore the file"
                found.add("error", "staged-missing", f"{session.source.name}/tables/{path}", what, mend)


def _strangers(
    session: Session, exports: Mapping[str, Facts], logs: Mapping[str, Inventory], found: Findings
) -> None:
    """Rows of exports that have no receipt: a publish that was cut, or another writer."""
    holding: dict[str, list[str]] = {}
    for table, log in logs.items():
        for export_id, parts in log.parts.items():
            if parts:
                holding.setdefault(export_id, []).append(table)
    for export_id, tables in sorted(holding.items()):
        facts = exports.get(export_id)
        names = f"{len(tables)} tables ({', '.join(sorted(tables)[:_SHOWN])})"
        where = f"{session.source.name}/{export_id}"
        if facts is None:
            what = f"{names} have rows of it, and there are no facts"
            mend = "restore its facts from a backup, or find out who else writes to these tables"
            found.add("error", "rows-without-facts", where, what, mend)
            continue
        if "withdrawn" in facts.closings:
            what = f"withdrawn, and {names} have rows of it"
            found.add("error", "rows-withdrawn", where, what, f"`fhir-export withdraw {where}` again")
            continue
        if facts.receipt is not None or facts.damaged:
            continue
        step = session.next_step(facts)
        if isinstance(step, Busy):
            continue
        listed = "_exports" in tables
        what = f"{names} have rows of it, and it has no receipt{'; _exports lists it' if listed else ''}"
        if isinstance(step, Ingest):
            found.add("note", "publish-cut", where, what, f"nothing: attempt {step.attempt} finishes it")
        else:
            mend = f"remove the cause, then `fhir-export retry {where}`: it finishes the publish"
            if step != Closed("held"):
                mend = f"`fhir-export withdraw {where}` takes them back"
            found.add("error", "publish-cut", where, what, mend)
