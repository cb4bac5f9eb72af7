"""The small files beside the data: protocol facts 22 and 31."""

from __future__ import annotations

import json

import pytest

from pipeline.bulkdata.sidecar import deleted_resources, outcome_counts
from pipeline.errors import VerificationFailed


def blocks(*values: object) -> list[bytes]:
    data = "\r\n".join(json.dumps(each, ensure_ascii=False) for each in values).encode()
    return [data[i : i + 5] for i in range(0, len(data), 5)]


def bundle(*entries: object) -> dict[str, object]:
    return {"resourceType": "Bundle", "type": "transaction", "entry": list(entries)}


def delete(url: object) -> dict[str, object]:
    return {"request": {"method": "DELETE", "url": url}}


def test_issues_are_counted_by_severity() -> None:
    """Protocol fact 31: OperationOutcomes of any severity."""
    counted = outcome_counts(
        blocks(
            {
                "resourceType": "OperationOutcome",
                "issue": [{"severity": "warning"}, {"severity": "information"}],
            },
            {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "diagnostics": "ü"}]},
            {"resourceType": "OperationOutcome", "issue": [{"severity": "fatal"}]},
        )
    )
    assert counted == {"fatal": 1, "error": 1, "warning": 1, "information": 1}
    assert outcome_counts([]) == {"fatal": 0, "error": 0, "warning": 0, "information": 0}


def test_what_is_not_understood_counts_as_an_error() -> None:
    """An incomplete export must not move the watermark."""
    odd = [
        {"resourceType": "Patient"},
        {"resourceType": "OperationOutcome"},
        {"resourceType": "OperationOutcome", "issue": [{"severity": "bad"}, 7]},
    ]
    assert outcome_counts(blocks(*odd))["error"] == 4


def test_deletions_are_listed_by_type_and_id() -> None:
    """Protocol fact 31."""
    found = deleted_resources(
        blocks(
            bundle(delete("Patient/1"), delete("https://s/fhir/Observation/a-b.c")),
            bundle({"request": {"method": "PUT", "url": "Patient/9"}}, delete("/Device/2/_history/3"), {}),
            {"resourceType": "Bundle", "type": "transaction"},
        )
    )
    assert found == [("Patient", "1"), ("Observation", "a-b.c"), ("Device", "2")]


@pytest.mark.parametrize("url", ["Patient?identifier=x", "Patient", "", None, "patient/1", "Patient/1/extra"])
def test_a_deletion_that_names_no_resource_is_an_error(url: object) -> None:
    with pytest.raises(VerificationFailed, match="line 1"):
        deleted_resources(blocks(bundle(delete(url))))


@pytest.mark.parametrize("line", [b"{", b"7", b"<html>", b"[" * 100_000])
def test_a_line_that_is_no_object_is_an_error(line: bytes) -> None:
    for read in (outcome_counts, deleted_resources):
        with pytest.raises(VerificationFailed, match="line 1"):
            read([line])


def test_a_deleted_file_without_bundles_is_an_error() -> None:
    with pytest.raises(VerificationFailed, match="no Bundle"):
        deleted_resources(blocks({"resourceType": "Patient"}))
