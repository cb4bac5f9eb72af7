"""How verdicts and export runs look on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.terminal.screen import age, give, give_table, number

if TYPE_CHECKING:
    from pipeline.config import Config, Source
    from pipeline.exports.check import Verdict
    from pipeline.exports.overview import ExportDetails, ExportSummary


_SHOWN_PATHS = 3


def show_verdicts(source: Source, verdicts: Sequence[Verdict]) -> None:
    """What a check found, with advice below what is bad."""
    give(f"{source.name} ({source.fhir_url})")
    for verdict in verdicts:
        give(f"  {verdict.status:<8}{verdict.name}: {verdict.cause}")
        if verdict.advice:
            give(f"          -> {verdict.advice}")


def show_list(found: Sequence[ExportSummary]) -> None:
    """Export runs, one a line."""
    headers = ("export", "state", "rows", "quarantined", "age", "next", "reason")
    give_table(headers, [_row(each) for each in found], ("rows", "quarantined"))


def _row(summary: ExportSummary) -> tuple[str, ...]:
    return (
        summary.label,
        summary.state,
        number(summary.rows),
        number(None if summary.rows is None else summary.quarantined),
        age(summary.age),
        summary.next_step,
        summary.reason,
    )


def show_details(config: Config, found: ExportDetails) -> None:
    """One export run: what is known, its tables, its history."""
    summary = found.summary
    lines: list[tuple[str, Any]] = [
        ("export", summary.label),
        ("state", f"{summary.state}: {summary.reason}"),
        ("next", summary.next_step),
        ("age", age(summary.age)),
        ("asked for", ", ".join(f"{name} {_plain(value)}" for name, value in found.parameters.items())),
        ("since", found.since_reason),
        ("transactionTime", found.transaction_time),
        ("next _since", found.watermark),
        ("files", found.files),
        ("deleted", found.deleted),
        ("server's errors", ", ".join(f"{n} {severity}" for severity, n in found.error_entries.items())),
        ("their codes", ", ".join(found.error_codes)),
        ("chain", "; ".join(found.chain)),
        ("quarantined", f"{summary.quarantined:,} lines" if summary.quarantined else None),
        ("bad lines", ", ".join(found.quarantine[:_SHOWN_PATHS])),
        ("facts", f"{found.folder} in {config.lake}"),
    ]
    for name, value in lines:
        if value not in (None, ""):
            give(f"{name + ':':<17}{value}")
    if summary.tables:
        give("")
        rows = [
            (name, number(each.rows), number(each.quarantined), number(each.files), number(each.bytes))
            for name, each in sorted(summary.tables.items())
        ]
        give_table(
            ("table", "rows", "quarantined", "files", "bytes"),
            rows,
            ("rows", "quarantined", "files", "bytes"),
        )
    if found.flat:
        give("")
        flat = [
            (name, "missing or stale" if count is None else number(count))
            for name, count in sorted(found.flat.items())
        ]
        give_table(("flat table", "rows"), flat, ("rows",))
    give("")
    for event in found.history:
        give(f"{event.at:%Y-%m-%d %H:%M:%S} UTC  {event.what}")


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
