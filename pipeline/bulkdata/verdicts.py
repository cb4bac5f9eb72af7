"""What an answer means: pure functions from status, headers and body to the types of `answers`.

The table of protocol facts 17-25; each odd answer of a real server has its line here and its test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.auth.origins import printable
from pipeline.bulkdata.answers import Complete, Failed, Gone, InProgress, RetryLater, StatusAnswer, Throttled
from pipeline.bulkdata.exchange import Reply
from pipeline.bulkdata.manifest import Manifest
from pipeline.bulkdata.outcome import (
    describe,
    describe_kind,
    looks_like_markup,
    outcome_of,
    overfull,
    read_json,
    read_outcome,
)
from pipeline.bulkdata.profiles import Profile
from pipeline.errors import (
    AuthError,
    ExportError,
    KickoffRejected,
    ServerRefused,
    Unreachable,
    VerificationFailed,
)
from pipeline.redaction import clean

_PASSING = frozenset({408, 425, 429, 502, 503, 504})


@dataclass(frozen=True)
class Page:
    """A status answer 200 with a JSON object: the first page of a manifest."""

    content: dict[str, Any] = field(repr=False)
    expires: str | None
    size: int = 0
    """Bytes of its JSON."""


def kickoff_refusal(reply: Reply, profile: Profile) -> Throttled:
    """What a kick-off answer other than 2xx means. Raises AuthError, Unreachable or KickoffRejected.

    An error that may pass is Unreachable; whether the server started a job all the same is not known then.
    """
    said = describe(reply.body)
    outcome = read_outcome(reply.body)
    transient = outcome is not None and outcome.transient
    where = f"the kick-off at {printable(reply.url)}"
    if reply.status == 429:
        wait = reply.retry_after()
        busy = "another export runs there, and it does one at a time: " if profile.one_at_a_time else ""
        return Throttled(profile.throttled_wait if wait is None else wait, f"{busy}HTTP 429: {said}")
    if reply.status in (401, 403):
        raise refused_sign_in(reply)
    final = reply.status < 500 or reply.status == 501 or (outcome is not None and outcome.decided)
    if reply.status in _PASSING or transient or not final:
        raise Unreachable(
            f"{where} was answered with HTTP {reply.status}: {said}",
            (reply.status == 500 and profile.kickoff_500)
            or "Trying again may help; if it stays so, ask the server's operator.",
            reply.retry_after(),
        )
    raise KickoffRejected(
        f"{where} was refused with HTTP {reply.status}: {said}",
        (reply.status == 500 and profile.kickoff_500) or _kickoff_advice(reply.status),
    )


def status_verdict(reply: Reply, profile: Profile) -> StatusAnswer | Page:
    """What the answer of a status URL means. Raises AuthError, and VerificationFailed for a 200 that is no
    manifest.
    """
    outcome = read_outcome(reply.body)
    if outcome is not None and outcome.terminal:
        return Failed(reply.status, outcome.codes)
    if reply.status == 202:
        return InProgress(reply.retry_after(), progress(reply.headers.get("x-progress")))
    if reply.status == 200:
        return _finished(reply)
    if reply.status in (401, 403):
        raise refused_sign_in(reply)
    reason = f"HTTP {reply.status}: {describe_kind(reply.body)}"
    if reply.status in _PASSING or reply.status < 400 or (outcome is not None and outcome.transient):
        return RetryLater(reply.retry_after(), reason)
    if reply.status in (404, 410):
        if reply.status == 404 and profile.empty_result_is_404 and outcome is None:
            return Complete(Manifest.nothing(), reply.headers.get("expires"))
        return Gone(reply.status)
    if reply.status >= 500 and outcome is None:
        return RetryLater(reply.retry_after(), reason)
    return Failed(reply.status, reason)


def delete_verdict(reply: Reply) -> bool:
    """True when the job is released, or was already (404, 410). Raises AuthError, Unreachable,
    ServerRefused.
    """
    if reply.status < 300 or reply.status in (404, 410):
        return True
    if reply.status in (401, 403):
        raise refused_sign_in(reply)
    said = describe_kind(reply.body)
    what = f"the release of {printable(reply.url)} was answered with HTTP {reply.status}: {said}"
    if reply.status in _PASSING or reply.status >= 500:
        raise Unreachable(what, "Trying again may help.", reply.retry_after())
    raise ServerRefused(what, "The job stays on the server until it expires there.")


def refused_sign_in(reply: Reply) -> AuthError:
    """The error for 401 and 403, with advice by number."""
    advice = (
        "The token is not accepted: check auth.audience, the issuer and the server's clock."
        if reply.status == 401
        else "The client may not do this: check its scopes, role or access policy at the server."
    )
    return AuthError(
        f"{printable(reply.url)} answered with HTTP {reply.status}: {describe(reply.body)}", advice
    )


def unexpected(reply: Reply, what: str) -> ExportError:
    """The error for an answer that is no success, where nothing better is known."""
    said = f"{what} at {printable(reply.url)} was answered with HTTP {reply.status}: {describe(reply.body)}"
    if reply.status in (401, 403):
        return refused_sign_in(reply)
    if reply.status in _PASSING or reply.status >= 500:
        return Unreachable(said, "Trying again may help.", reply.retry_after())
    return ServerRefused(said, "Check fhir_url.")


def progress(header: str | None) -> str | None:
    """`X-Progress` as it may be shown: one line, at most 100 characters (protocol fact 20)."""
    return clean(header, 100) or None if header else None


def page_of(reply: Reply) -> Any:
    """A manifest page's JSON, None where it is none. Raises VerificationFailed for too much of it."""
    if overfull(reply.body):
        raise VerificationFailed(
            f"the manifest holds more values than one of a million files ({len(reply.body)} bytes of JSON)",
            "Export fewer types at a time; if the export is a small one, report it to the server's operator.",
        )
    return read_json(reply.body)


def _finished(reply: Reply) -> StatusAnswer | Page:
    value = page_of(reply)
    if not isinstance(value, dict):
        if not reply.body.strip() or looks_like_markup(reply.body):
            return RetryLater(
                reply.retry_after(), f"HTTP 200 with {describe(reply.body)} in place of a manifest"
            )
        raise VerificationFailed(
            "the status answer is not a manifest: it is no JSON object", "Ask the operator."
        )
    outcome = outcome_of(value)
    if outcome is None:
        return Page(value, reply.headers.get("expires"), len(reply.body))
    if outcome.failed and not outcome.transient:
        return Failed(200, outcome.codes)
    return RetryLater(reply.retry_after(), outcome.codes)


def _kickoff_advice(status: int) -> str:
    if status == 404:
        return "Check fhir_url, that the server offers $export at this level, and that the group exists."
    if status in (405, 501):
        return "The server does not offer this export; see its CapabilityStatement."
    return "Correct the export section of the configuration: parameters, types, group."
