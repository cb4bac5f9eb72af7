"""What a server says about an error, made safe to print: OperationOutcome, OAuth or gateway JSON, HTML, text.

Every text that leaves here has passed through `clean`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core

from pipeline.bulkdata.issue_codes import ERROR_CODES, ISSUE_CODES
from pipeline.redaction import clean

# FHIR R4 issue-type: `transient` and those of its children that do pass (`exception` is what servers say for
# all).
_TRANSIENT = frozenset({"transient", "lock-error", "no-store", "timeout", "incomplete", "throttled"})
_MOST_ISSUES = 200
_UNDECIDED = frozenset({"exception", "unknown", "informational", ""})
_BOM = b"\xef\xbb\xbf"
_MOST_DESCRIBED = 1 << 17  # bytes, of which `clean` reads the first characters

MOST_VALUES = 12_000_000
"""That a JSON body may hold, as `overfull` counts them: a million files of a manifest have 8,000,000."""
_MICROSOFT_TERMINAL = "export operation failed for reason"


@dataclass(frozen=True)
class Issue:
    """One issue of an OperationOutcome; `text` is cleaned."""

    severity: str
    code: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """An OperationOutcome, as far as it decides what to do next."""

    issues: tuple[Issue, ...]

    @property
    def transient(self) -> bool:
        """Whether it says: try again (protocol fact 21). Terminal wins over transient."""
        return not self.terminal and any(issue.code in _TRANSIENT for issue in self.issues)

    @property
    def terminal(self) -> bool:
        """Whether it is Microsoft's report of a failed job, whatever the HTTP status (protocol fact 24)."""
        return any(issue.text.lower().startswith(_MICROSOFT_TERMINAL) for issue in self.issues)

    @property
    def decided(self) -> bool:
        """Whether some issue names a cause that will not pass by itself."""
        return self.terminal or any(
            issue.code not in _TRANSIENT | _UNDECIDED and issue.severity in ("error", "fatal")
            for issue in self.issues
        )

    @property
    def failed(self) -> bool:
        """Whether any issue is an error."""
        return any(issue.severity in ("error", "fatal") for issue in self.issues)

    @property
    def text(self) -> str:
        """All issues in one line of at most 300 characters."""
        parts = [": ".join(part for part in (each.code, each.text) if part) for each in self.issues]
        return clean("; ".join(part for part in parts if part)) or "an OperationOutcome without issues"

    @property
    def codes(self) -> str:
        """What of it may be repeated where it speaks of data: FHIR's own codes, in a line.

        Its texts may name patients.
        """
        if self.terminal:
            return "export operation failed"
        codes = dict.fromkeys(each.code if each.code in ISSUE_CODES else "other" for each in self.issues)
        return ", ".join(codes) or "an OperationOutcome without issues"


def read_outcome(body: bytes) -> Outcome | None:
    """The body's OperationOutcome, None when it holds none. Never raises."""
    value = read_json(body)
    return outcome_of(value) if isinstance(value, dict) else None


def outcome_of(value: dict[str, Any]) -> Outcome | None:
    """The OperationOutcome in an already parsed JSON object, None when it is another resource."""
    if value.get("resourceType") != "OperationOutcome":
        return None
    issues = value.get("issue")
    return Outcome(
        tuple(_issue(each) for each in issues[:_MOST_ISSUES] if isinstance(each, dict))
        if isinstance(issues, list)
        else ()
    )


def describe(body: bytes) -> str:
    """What an error body says, in at most 300 safe characters."""
    if not body.strip():
        return "an empty body"
    value = read_json(body)
    if isinstance(value, dict):
        outcome = outcome_of(value)
        return outcome.text if outcome is not None else _other_json(value)
    if looks_like_markup(body):
        return "an HTML page" if _is_html(body) else "an XML document"
    return clean(body[:_MOST_DESCRIBED].decode("utf-8", "replace")) or "an unreadable body"


def describe_kind(body: bytes) -> str:
    """What kind of answer an error body is, without a word of its texts: for answers about data.

    A server's explanation of what went wrong with its data may name patients (codes that we know cannot).
    """
    value = read_json(body) if body.strip() else None
    if not isinstance(value, dict):
        return describe(body) if not body.strip() or looks_like_markup(body) else "a text"
    outcome = outcome_of(value)
    if outcome is not None:
        return outcome.codes
    source = value["error"] if isinstance(value.get("error"), dict) else value
    codes = (source[name] for name in _CODES if isinstance(source.get(name), str))
    return next((code for code in codes if code in ERROR_CODES), "a JSON body")


_CODES = ("error", "code", "Code", "Id")


def overfull(body: bytes) -> bool:
    """Whether a body would cost more memory as JSON than any manifest: 256 MB of `[],` take five gigabytes.

    Counted by its commas and opening brackets; an object counts for two.
    """
    if len(body) <= MOST_VALUES // 2:
        return False
    return body.count(b",") + body.count(b"[") + 2 * body.count(b"{") > MOST_VALUES


def read_json(body: bytes) -> Any:
    """The JSON value of a body, None when it is not JSON.

    Neither is what is nested more than 200 deep, or holds half a surrogate pair: it could not be stored; nor
    what is `overfull`.
    """
    if overfull(body):
        return None
    try:
        return pydantic_core.from_json(body.removeprefix(_BOM), cache_strings="keys")
    except ValueError:
        return None


def looks_like_markup(body: bytes) -> bool:
    """Whether it begins like HTML or XML."""
    return body.removeprefix(_BOM).lstrip()[:1] == b"<"


def _is_html(body: bytes) -> bool:
    head = body[:2048].lower()
    return b"<html" in head or b"<!doctype html" in head or b"<head" in head or b"<body" in head


def _issue(value: dict[str, Any]) -> Issue:
    details = value.get("details")
    texts = [value.get("diagnostics")]
    if isinstance(details, dict):
        texts.append(details.get("text"))
    text = next((each for each in texts if isinstance(each, str) and each.strip()), "")
    return Issue(_word(value.get("severity")), _word(value.get("code")), clean(text))


def _word(value: object) -> str:
    return clean(value, 40) if isinstance(value, str) else ""


def _other_json(value: dict[str, Any]) -> str:
    # OAuth {"error", "error_description"}, Azure {"error": {"code", "message"}}, API Management {"Name",
    # "Code"}.
    source = value["error"] if isinstance(value.get("error"), dict) else value
    names = ("error", "error_description", "code", "Code", "Name", "message", "statusCode", "title", "detail")
    said = [str(source[name]) for name in names if isinstance(source.get(name), str | int)]
    return clean(": ".join(part for part in said if part)) or "a JSON body without an explanation"
