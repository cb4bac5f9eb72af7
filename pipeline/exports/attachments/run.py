"""Fetches the attachments of published exports, and links them: the whole of one export at a time.

Nothing waits for it, and it changes no other table. Killed in the middle it goes on where it was: contents
are stored under their hash before anything names them, `fetched` remembers, one commit links them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.bulkdata.attachment_fetching import LONGEST_HOLD, AttachmentFetcher
from pipeline.bulkdata.attachment_policy import AttachmentPolicy
from pipeline.config.attachments import Attachments
from pipeline.errors import ConfigError, StillRunning, Unreachable
from pipeline.exports.attachments.at_work import at_work
from pipeline.exports.attachments.blobs import Blobs
from pipeline.exports.attachments.linking import Linked, Linking
from pipeline.exports.attachments.links import due_exports, published_numbers
from pipeline.exports.session import Session
from pipeline.tables.overtaking import Overtaken

_TIMES = 3


def wanted_of(session: Session) -> Attachments:
    """The configuration's `attachments`. Raises `ConfigError` where it has none."""
    if session.source.attachments is None:
        raise ConfigError(
            f"source {session.source.name} has no attachments to fetch",
            "Set attachments: true, or {types: [...], content_types: [...], megabytes: 50}",
        )
    return session.source.attachments


def link_attachments(session: Session, export_id: str | None = None) -> Iterator[Linked]:
    """Brings the links of every export up to date that lacks some; or makes those of one export again.

    What is stored and linked is never fetched again. Raises `ConfigError`, `AuthError`, `Unreachable` when
    the server answers nothing any more, `VerificationFailed`, `StillRunning`, `LakeError`.
    """
    wanted = wanted_of(session)
    numbers = published_numbers(session)
    if export_id is not None and export_id not in numbers:
        raise ConfigError(
            f"{session.source.name}/{export_id} is not published",
            f"`fhir-export exports {session.source.name}` lists those that are",
        )
    due = due_exports(session) if export_id is None else [export_id]
    if not due:
        return
    blobs = Blobs(session)
    with at_work(session), _fetcher(session, wanted) as (policy, fetcher):
        for each in due:
            linked = None
            for _ in range(1 + _TIMES):
                linking = Linking(session, each, wanted, policy, fetcher, blobs)
                try:
                    linked = linking.run(numbers[each])
                except Overtaken:  # somebody was erased meanwhile
                    linking.take_back()
                    blobs = Blobs(session)
                    continue
                blobs = Blobs(session)
                if not blobs.lacks_any(linked.contents):
                    break
                # `clean` has removed what nothing named until now: it is fetched again.
            if linked is None:
                raise StillRunning("resources keep being erased meanwhile", "Run it again when that is over")
            states = ", ".join(f"{count} {state}" for state, count in sorted(linked.states.items()))
            session.log(f"attachments of {each}: {states or 'none'}; {linked.fetched} fetched now")
            yield linked


def require_all(found: list[Linked]) -> None:
    """Raise Unreachable where attachments failed for a reason that may pass."""
    failed = sum(each.failed for each in found)
    if failed:
        raise Unreachable(
            f"{failed} attachments could not be fetched; the others are stored and linked",
            "The next run tries them again. The exports are published all the same",
        )


@contextmanager
def _fetcher(session: Session, wanted: Attachments) -> Iterator[tuple[AttachmentPolicy, AttachmentFetcher]]:
    from pipeline.exports.connection import fhir_base_of, http_client, throttle_of

    policy = AttachmentPolicy(fhir_base_of(session.source), wanted.allow_hosts)
    http = http_client(policy.known_hosts, session.source.timeouts)
    auth = session.connection.auth
    if auth is not None:
        http.auth = auth
    with http:
        yield (
            policy,
            AttachmentFetcher(
                http,
                policy,
                throttle_of(session.source, LONGEST_HOLD),
                most=wanted.bytes_limit,
                slowest=session.source.timeouts.slowest_bytes_per_second,
            ),
        )
