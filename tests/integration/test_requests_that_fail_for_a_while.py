"""Passing trouble at each kind of request: the export is published all the same, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nightly_site import Site, open_site

REQUESTS = {
    "discovery": {"path": r"smart-configuration"},
    "token": {"path": r"/token$", "method": "POST"},
    "kick-off": {"path": r"\$export", "method": "GET"},
    "status": {"path": r"^/bulk/status/[^/]*$", "method": "GET"},
    "page": {"path": r"^/bulk/status/.*/pages/", "method": "GET"},
    "file": {"path": r"\.ndjson"},
    "delete": {"path": r"^/bulk/status/", "method": "DELETE"},
}
"""What the access log of the sandbox calls them; the first answers of each are the faults."""

_TRANSIENT = {
    "resourceType": "OperationOutcome",
    "issue": [{"severity": "error", "code": "transient", "diagnostics": "later"}],
}
FAULTS: list[dict[str, Any]] = [
    {"status": 503, "body": "<html>busy</html>", "headers": {"Retry-After": "1"}},
    {"status": 429, "body": "", "headers": {"Retry-After": "1"}},
    {"status": 500, "body": _TRANSIENT, "headers": {"Retry-After": "1"}},
]
NONSENSE = ["-5", "0", "", "soon", "Sun, 06 Nov 1994 08:49:37 GMT", "1e9", "-1e309"]
"""Too small, past, or no time at all. Those that are far ahead: tests/unit/test_retry_after.py, the cap."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    options = {"export_seconds": 0.3, "poll_seconds": 0.0, "patients": 4, "file_lines": 20, "page_size": 1}
    source = {"knobs": {"first_poll": 0.2, "longest_poll": 1, "throttled_wait": 1}}
    with open_site(tmp_path, export={"types": ["Patient", "Encounter"]}, source=source, **options) as opened:
        yield opened


def test_every_request_that_fails_for_a_while_is_made_again(site: Site) -> None:
    """Protocol 18, 21: `transient`, 5xx and 429 are no failures; Retry-After is obeyed."""
    script = [{**request, **fault, "times": 1} for fault in FAULTS for request in REQUESTS.values()]
    script.pop()  # a command asks twice for the release: the sensor goes on with it by the hour
    site.sandbox.control(faults=script)
    night = site.run_night()
    assert night["state"] == "published"
    for table, kind in (("patient", "Patient"), ("encounter", "Encounter")):
        assert site.ids_in(table, night["export_id"]) == site.ids_in_truth(1)[kind]
    happened = site.sandbox.control()["faults"]
    assert [each["path"] for each in happened if not each["used"]] == []


@pytest.mark.parametrize("value", NONSENSE)
def test_nonsense_in_retry_after_neither_stops_an_export_nor_makes_a_hot_loop(site: Site, value: str) -> None:
    """Protocol 18 and section 6: an HTTP-date in it was once a hot loop."""
    script = [
        {**REQUESTS[name], "status": 503, "body": "", "times": 1, "headers": {"Retry-After": value}}
        for name in ("token", "kick-off", "status", "file")
    ]
    site.sandbox.control(faults=script)
    night = site.run_night()
    assert night["state"] == "published"
    assert all(each["used"] == 1 for each in site.sandbox.control()["faults"])
    statuses = [line for line in site.sandbox.access_log() if "/bulk/status/" in line["path"]]
    assert len(statuses) < 30, "the server is not asked over and over"
