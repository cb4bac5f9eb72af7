"""Checks of each table, evaluated where it is published (facts/dagster.md 11: always give a result).

Blocking: `files`, `counts` and `declared_type` stand in front of the receipt. A repeated id is the server's
right (protocol fact 32), so `repeated_ids` only warns.
"""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from pipeline.exports.publishing import TableEvidence

_CHECKS = {
    "files": (True, "Every file of this type in the manifest has landed and is in the table"),
    "counts": (True, "Lines of the files = rows + quarantined lines = the manifest's counts"),
    "declared_type": (True, "Every line is a resource of the type that the manifest declares"),
    "repeated_ids": (False, "No id comes twice within the export"),
}


def specs_for(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The checks of one table."""
    return [
        dg.AssetCheckSpec(name, asset=key, blocking=blocking, description=description)
        for name, (blocking, description) in _CHECKS.items()
    ]


def results(key: dg.AssetKey, found: TableEvidence) -> Iterator[dg.AssetCheckResult]:
    """The verdicts on a published table. A line of another type would have been refused while landing."""
    missing = found.files_in_manifest - found.files_published
    yield _result(key, "files", missing == 0, {"files": found.files_published, "missing": missing})
    yield _result(
        key,
        "counts",
        found.lines == found.rows + found.quarantined,
        {
            "lines": found.lines,
            "rows": found.rows,
            "quarantined": found.quarantined,
            "accepted count mismatches": found.count_mismatches,
        },
    )
    yield _result(key, "declared_type", found.quarantined == 0, {"other types": found.quarantined})
    yield _result(key, "repeated_ids", found.repeated_ids == 0, {"repeated": found.repeated_ids})


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
