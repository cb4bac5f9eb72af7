"""What a server can answer, as types: the layers above never look at an HTTP status."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.auth.origins import printable
from pipeline.bulkdata.manifest import Manifest


@dataclass(frozen=True)
class Accepted:
    """The kick-off started a job; `note` is what the server said with it, cleaned."""

    status_url: str = field(repr=False)
    note: str | None = None

    def __repr__(self) -> str:
        return f"Accepted(status_url={printable(self.status_url)!r}, note={self.note!r})"


@dataclass(frozen=True)
class Throttled:
    """Not now: another export runs, or the client asked too often (429). No job was started."""

    retry_after: float
    """Seconds; from the server, or the profile's default."""
    reason: str


@dataclass(frozen=True)
class InProgress:
    """202: the job runs."""

    retry_after: float | None
    progress: str | None
    """`X-Progress`, at most 100 characters, cleaned (protocol fact 20)."""


@dataclass(frozen=True)
class Complete:
    """200: the job is done and its manifest whole, all pages."""

    manifest: Manifest
    expires: str | None
    """The `Expires` header as sent; not always an HTTP-date (protocol fact 30)."""


@dataclass(frozen=True)
class RetryLater:
    """No news about the job: a passing error. Ask again."""

    retry_after: float | None
    reason: str


@dataclass(frozen=True)
class Gone:
    """The status URL is unknown; only a new kick-off helps (protocol fact 24)."""

    http_status: int


@dataclass(frozen=True)
class Failed:
    """The job ended with an error; asking again gives the same."""

    http_status: int
    reason: str


@dataclass(frozen=True)
class ReadAnswer:
    """What one plain FHIR read or search gave, whatever its HTTP status."""

    http_status: int
    resource: dict[str, object] | None = field(repr=False)
    """The JSON object of the body, None when it is none."""
    reason: str
    """For an error: what the server said, cleaned; else empty."""

    @property
    def ok(self) -> bool:
        return 200 <= self.http_status < 300


KickoffAnswer = Accepted | Throttled
StatusAnswer = InProgress | Complete | RetryLater | Gone | Failed
