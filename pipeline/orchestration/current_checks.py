"""Checks of the current tables, in a step of their own behind the one that brings them up to date.

Of their own, so that a table that was brought up to date counts as such whatever is found out about it, that
references are counted when all tables are new, and that anybody may have them made again without a merge.
They also run when nothing was merged: a row may have been put in by hand, another type may have lost one.
Only rows that come from no export make the run fail.
"""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES as OVER,
)

from pipeline.config import Config, Source
from pipeline.errors import VerificationFailed
from pipeline.exports.current import CURRENT, current_types, wants_current
from pipeline.orchestration.known_types import static_types
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.tables.definitions import table_name
from pipeline.unexpected import contained

if TYPE_CHECKING:
    from pipeline.exports.current_checks import Lost, Origins
    from pipeline.exports.current_references import Counted

LOST, ORIGIN, REFERENCES = "lost_rows", "comes_from_an_export", "references"
_CHECKS = {
    LOST: "No more than a set share of the ids went away without a deletion (current_checks: max_drop)",
    ORIGIN: "Every row stands in the export that it names: the same id, source file and line",
    REFERENCES: "What references to types with a current table point to is there",
}
_VERSION, _SINCE = "delta_version", "compared_with_version"
_NO_TABLE = "there is no such table yet"
_POINTING = dg.TableSchema(
    columns=[
        dg.TableColumn("path", "string", "Where in the resource the reference is"),
        dg.TableColumn("target", "string", "The type that it points to"),
        dg.TableColumn("references", "int", "How many there are"),
        dg.TableColumn("dangling", "int", "To what the target's current table does not have"),
        dg.TableColumn("deleted", "int", "Of these, to what was deleted"),
    ]
)


def checks_step(source: Source) -> str:
    """The step's key in runs."""
    return f"{source.name}__current_checks"


def build_current_checks(config: Config, source: Source) -> list[dg.AssetChecksDefinition]:
    """The step that checks the current tables; none where the configuration wants no such tables."""
    names = names_of(source)
    types = {
        names.key(f"{table_name(each)}{CURRENT}"): each
        for each in static_types(source)
        if wants_current(source, each)
    }
    if not types:
        return []

    @dg.multi_asset_check(
        name=checks_step(source),
        specs=[
            dg.AssetCheckSpec(name, asset=key, description=description)
            for key in types
            for name, description in _CHECKS.items()
        ],
        can_subset=True,
        pool=f"{source.name}_current",
        description="Looks at the current tables and changes nothing; the server is not asked.",
    )
    @contained
    def current_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        from pipeline.exports.current_checks import lost_rows, origins
        from pipeline.exports.current_references import counting_references

        session = session_in_step(config, source, context.op_execution_context)
        there = set(current_types(session))
        wrong: list[str] = []
        counted: list[tuple[dg.AssetCheckKey, str]] = []
        for check in sorted(context.selected_asset_check_keys, key=lambda each: (each.asset_key, each.name)):
            resource_type = types[check.asset_key]
            if resource_type not in there:
                yield _result(check, passed=True, description=_NO_TABLE)
            elif check.name == LOST:
                lost = lost_rows(session, resource_type, _last_look(context, check))
                yield _lost_result(check, lost, source.current_checks.max_drop)
            elif check.name == ORIGIN:
                found = origins(session, resource_type)
                yield _origin_result(check, found)
                if not found.sound:
                    wrong.append(f"{check.asset_key.path[-1]}: {found.wrong} of {found.rows}")
            else:
                counted.append((check, resource_type))
        with counting_references(session) as references:  # holds the ids of all types that are pointed to
            for check, resource_type in counted:
                yield _references_result(check, references.of(resource_type))
        if wrong:
            raise VerificationFailed(
                f"current tables hold rows that come from no export ({'; '.join(wrong)})",
                f"Make them again: `fhir-export rebuild {source.name} TYPE`; and see who else writes to them",
            )

    return [current_checks]


def _last_look(
    context: dg.AssetCheckExecutionContext, check: dg.AssetCheckKey
) -> tuple[int, int | None] | None:
    """Which version was looked at last, and with which it was compared; None where nobody has."""
    storage = context.instance.event_log_storage
    for record in storage.get_asset_check_execution_history(check, limit=1, status=OVER):
        event = record.event.dagster_event if record.event else None
        metadata = event.asset_check_evaluation_data.metadata if event else {}
        version, since = (metadata.get(name) for name in (_VERSION, _SINCE))
        if version is not None:
            return int(str(version.value)), None if since is None else int(str(since.value))
    return None


def _lost_result(check: dg.AssetCheckKey, lost: "Lost", most: float) -> dg.AssetCheckResult:
    description = None
    if lost.since is None:
        description = "not compared: there is no earlier version, or its files are gone"
    elif lost.lost:
        description = f"{lost.lost} of {lost.rows_before} ids went away without a deletion"
    metadata = {
        "rows": lost.rows,
        "rows_before": lost.rows_before,
        "lost": lost.lost,
        "share": round(lost.share, 6),
        "max_drop": most,
        **({_VERSION: lost.version} if lost.version is not None else {}),
        **({_SINCE: lost.since} if lost.since is not None else {}),
    }
    return _result(check, passed=lost.share <= most, description=description, metadata=metadata)


def _origin_result(check: dg.AssetCheckKey, found: "Origins") -> dg.AssetCheckResult:
    description = None
    if found.wrong:
        description = f"{found.wrong} of {found.rows} rows come from no export"
    elif found.behind:
        description = (
            f"{found.behind} rows are of exports that have changed since: bring the table up to date"
        )
    return _result(
        check,
        passed=found.sound and not found.behind,
        severity=dg.AssetCheckSeverity.WARN if found.sound else dg.AssetCheckSeverity.ERROR,
        description=description,
        metadata={
            "rows": found.rows,
            "exports": found.exports,
            "of_no_listed_export": found.unlisted,
            "not_in_their_export": found.strangers,
            "of_changed_exports": found.behind,
        },
    )


def _references_result(check: dg.AssetCheckKey, found: "Counted") -> dg.AssetCheckResult:
    dangling = sum(each.dangling for each in found.by_path)
    rows = [dg.TableRecord(asdict(each)) for each in found.by_path]
    return _result(
        check,
        passed=not dangling,
        description=f"{dangling} references lead nowhere" if dangling else None,
        metadata={
            "references": sum(each.references for each in found.by_path),
            "dangling": dangling,
            "to_deleted": sum(each.deleted for each in found.by_path),
            "not_judged": found.elsewhere,
            "by_path": dg.MetadataValue.table(rows, schema=_POINTING),
        },
    )


def _result(
    check: dg.AssetCheckKey,
    *,
    passed: bool,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=passed,
        severity=severity,
        description=description,
        metadata=dict(metadata or {}),
    )
