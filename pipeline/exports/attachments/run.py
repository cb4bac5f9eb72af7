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
from pipeline.errors import AuthError, ConfigError, StillRunning, Unreachable
from pipeline.exports.attachments.at_work import at_work
from pipeline.exports.attachments.blobs import Blobs
from pipeline.exports.attachments.linking import Linked, Linking
from pipeline.exports.attachments.links import Due, due_exports, published_numbers
from pipeline.exports.attachments.origins import Origins
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

    What is stored and linked is never fetched again; a server that does not answer keeps nothing from being
    linked that lies elsewhere. Raises `ConfigError`, `AuthError` when nobody can sign in,
    `VerificationFailed`, `StillRunning`, `LakeError`.
    """
    wanted = wanted_of(session)
    numbers = published_numbers(session)
    if export_id is not None and export_id not in numbers:
        raise ConfigError(
            f"{session.source.name}/{export_id} is not published",
            f"`fhir-export exports {session.source.name}` lists those that are",
        )
    due = due_exports(session) if export_id is None else [Due(export_id)]
    if not due:
        return
    blobs, origins = Blobs(session), Origins()
    with at_work(session), _fetcher(session, wanted) as (policy, fetcher):
        for number, each in ((numbers[found.export_id], found) for found in due):
            if each.old and origins.given_up:
                continue  # a server is still away: that would be all of them, each time
            linked = None
            for _ in range(1 + _TIMES):
                linking = Linking(session, each.export_id, wanted, policy, fetcher, blobs, origins)
                try:
                    linked = linking.run(number)
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
            session.log(f"attachments of {each.export_id}: {states or 'none'}; {linked.fetched} fetched now")
            yield linked


def require_all(found: list[Linked]) -> None:
    """Raise Unreachable where attachments failed for a reason that may pass; AuthError where that is the
    sign-in."""
    failed = sum(each.failed for each in found)
    silent = {each.origin: each for linked in found for each in linked.given_up}
    if not failed:
        return
    kind = AuthError if any(each.kind is AuthError for each in silent.values()) else Unreachable
    told = "".join(f"; {each.reason}" for each in silent.values())
    raise kind(
        f"{failed} attachments could not be fetched; the others are stored and linked{told}",
        "The next run tries them again. The exports are published all the same"
        + (", see the client's scopes" if kind is AuthError else "")
        + (". A host that is gone for good: take it out of attachments.allow_hosts" if silent else ""),
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
