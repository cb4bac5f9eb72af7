"""Checks of each table, evaluated where it is published (facts/dagster.md 11: always give a result).

Blocking: `files` and `counts` stand in front of the receipt. What a server sends oddly is no defect of the
table, so these only warn: a line of another type (it is in its own table, fact 34), a bad line (it is in the
quarantine), and a repeated id (its right, protocol fact 32).
"""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from pipeline.exports.evidence import TableEvidence

_CHECKS = {
    "files": (True, "Every file of this type in the manifest has landed and is in the table"),
    "counts": (True, "Lines = rows + quarantined lines, of this table and of the whole export"),
    "declared_type": (False, "Every line of the files of this type is a resource of this type"),
    "quarantine": (False, "No line of this type is in quarantine"),
    "repeated_ids": (False, "No id comes twice within the export"),
}


def specs_for(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of one table."""
    return [
        dg.AssetCheckSpec(name, asset=key, blocking=blocking, description=description)
        for name, (blocking, description) in _CHECKS.items()
    ]


def results(key: dg.AssetKey, found: TableEvidence) -> Iterator[dg.AssetCheckResult]:
    """The verdicts on a published table."""
    missing = found.files_in_manifest - found.files_published
    yield _result(key, "files", missing == 0, {"files": found.files_published, "missing": missing})
    yield _result(key, "counts", found.adds_up, _counts(found))
    others = sum(found.went_elsewhere.values())
    numbers = {"lines of another type": others, "came in other files": found.came_from_elsewhere}
    went = {f"went to {table}": number for table, number in sorted(found.went_elsewhere.items())}
    yield _result(key, "declared_type", others == 0, numbers | went)
    yield _result(key, "quarantine", found.quarantined == 0, {"quarantined": found.quarantined})
    yield _result(key, "repeated_ids", found.repeated_ids == 0, {"repeated": found.repeated_ids})


def _counts(found: TableEvidence) -> dict[str, int]:
    return {
        "lines": found.lines,
        "lines of another type": sum(found.went_elsewhere.values()),
        "came in other files": found.came_from_elsewhere,
        "rows": found.rows,
        "quarantined": found.quarantined,
        "accepted count mismatches": found.count_mismatches,
        "lines of the export": found.export.lines,
        "rows of the export": found.export.rows,
        "quarantined of the export": found.export.quarantined,
    }


def failed(key: dg.AssetKey, reason: str) -> Iterator[dg.AssetCheckResult]:
    """The verdicts when nothing was published: `counts` carries the reason, nothing else is claimed."""
    for name, (blocking, _) in _CHECKS.items():
        if blocking:
            yield dg.AssetCheckResult(
                asset_key=key, check_name=name, passed=False, description=f"nothing was published: {reason}"
            )


def _result(key: dg.AssetKey, name: str, passed: bool, numbers: dict[str, int]) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.ERROR if _CHECKS[name][0] else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        asset_key=key, check_name=name, passed=passed, severity=severity, metadata=dict(numbers)
    )
