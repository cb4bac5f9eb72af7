"""The small files beside the data: `error` (OperationOutcomes) and `deleted` (Bundles), read with `ndjson`.

Protocol facts 12, 22 and 31. Both take the decoded blocks of `decoding.decoded_blocks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ndjson

from pipeline.bulkdata.decoding import lines
from pipeline.bulkdata.issue_codes import ISSUE_CODES
from pipeline.errors import VerificationFailed

SEVERITIES = ("fatal", "error", "warning", "information")

_TARGET = re.compile(
    r"(?:^|/)(?P<type>[A-Z][A-Za-z]{1,63})/(?P<id>[A-Za-z0-9\-._~]{1,256})(?:/_history/[^/?#]+)?$"
)


def outcome_counts(blocks: Iterable[bytes]) -> dict[str, int]:
    """How many issues of each severity an `error` file holds; all four severities are keys.

    An issue of unknown severity, an outcome without issues and another resource in its place count as
    `error`: what is not understood must not move the watermark. Raises VerificationFailed for a line that is
    no JSON object.
    """
    return count_issues(blocks)[0]


def count_issues(blocks: Iterable[bytes]) -> tuple[dict[str, int], dict[str, int]]:
    """How many issues of each severity, as `outcome_counts` tells them, and of each `issue.code` (R4's codes,
    and `other`), in the order of their first sight. Raises as `outcome_counts` does.
    """
    severities, codes = dict.fromkeys(SEVERITIES, 0), dict[str, int]()
    for resource in _resources(blocks, "error"):
        issues = resource.get("issue") if resource.get("resourceType") == "OperationOutcome" else None
        for issue in issues if isinstance(issues, list) and issues else [None]:
            said = issue if isinstance(issue, dict) else {}
            severity, code = said.get("severity"), said.get("code")
            severities[severity if severity in SEVERITIES else "error"] += 1
            name = code if isinstance(code, str) and code in ISSUE_CODES else "other"
            codes[name] = codes.get(name, 0) + 1
    return severities, codes


@dataclass(frozen=True)
class Deletion:
    """One resource that the server names as deleted."""

    resource_type: str
    id: str
    at: datetime | None
    """When, where the server says so."""
    exact: bool
    """False: it was then or before, for that is the time of the whole Bundle."""
    line: int
    """Of the file, from 1."""


def deleted_resources(blocks: Iterable[bytes]) -> list[tuple[str, str]]:
    """(type, id) of each deletion in a `deleted` file, in order. Raises as `deletions` does."""
    return [(each.resource_type, each.id) for each in deletions(blocks)]


def deletions(blocks: Iterable[bytes]) -> Iterator[Deletion]:
    """Each deletion in a `deleted` file, in order; other entries of the Bundles are passed over.

    `entry.response.lastModified` is its own time, as in a history; else `meta.lastUpdated` or `timestamp` of
    the Bundle is one before which it was. Raises VerificationFailed for a deletion that names no single
    resource: leaving it out would keep what is gone.
    """
    for number, bundle in enumerate(_resources(blocks, "deleted"), start=1):
        entries = bundle.get("entry", [])
        if bundle.get("resourceType") != "Bundle" or not isinstance(entries, list):
            raise VerificationFailed(
                f"line {number} of a deleted file is no Bundle", "Ask the server's operator."
            )
        meta = bundle.get("meta")
        of_bundle = _instant(meta.get("lastUpdated") if isinstance(meta, dict) else None)
        of_bundle = of_bundle or _instant(bundle.get("timestamp"))
        for entry in entries:
            request = entry.get("request") if isinstance(entry, dict) else None
            if not isinstance(request, dict) or request.get("method") != "DELETE":
                continue
            match = _TARGET.search(str(request.get("url", "")))
            if match is None:
                raise VerificationFailed(
                    f"line {number} of a deleted file deletes something that is not Type/id",
                    "Ask the server's operator.",
                )
            response = entry.get("response")
            own = _instant(response.get("lastModified") if isinstance(response, dict) else None)
            yield Deletion(match["type"], match["id"], own or of_bundle, own is not None, number)


def _instant(text: object) -> datetime | None:
    """A FHIR instant; None for anything else: a time without a zone is no moment, nor is one that is beyond
    the calendar in UTC."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _resources(blocks: Iterable[bytes], kind: str) -> Iterator[dict[str, Any]]:
    reader = ndjson.reader(line.decode("utf-8") for line in lines(blocks))
    number = 0
    while True:
        number += 1
        try:
            resource = next(reader)
        except StopIteration:
            return
        except (ValueError, RecursionError):
            resource = None
        if not isinstance(resource, dict):
            raise VerificationFailed(
                f"line {number} of a {kind} file is no JSON object", "It is fetched anew later."
            )
        yield resource
