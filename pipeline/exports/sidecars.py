"""What the small `deleted` and `error` files of a manifest say, read from the landed bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.exports.facts import FileKind, LandedBatch
from pipeline.exports.session import Session

_SPOILING = ("fatal", "error")
_NAMED_CODES = 5


@dataclass(frozen=True)
class Sidecars:
    """Resources that were deleted, and OperationOutcome issues by severity."""

    deleted: int
    error_entries: dict[str, int]
    error_codes: tuple[str, ...] = ()
    """The first few different issue codes: codes only, for texts may hold PHI."""

    @property
    def spoiling(self) -> int:
        """Issues by which the server says that data is missing."""
        return sum(self.error_entries.get(severity, 0) for severity in _SPOILING)


def read_sidecars(session: Session, landed: Sequence[LandedBatch]) -> Sidecars:
    """Reads them all. Raises `VerificationFailed` for one that cannot be understood."""
    from pipeline.bulkdata.sidecar import count_issues, deleted_resources

    errors: dict[str, int] = {}
    codes: dict[str, int] = {}
    for _, content in contents(session, landed, "error"):
        severities, seen = count_issues([content])
        for severity, count in severities.items():
            errors[severity] = errors.get(severity, 0) + count
        codes |= seen
    deleted = sum(len(deleted_resources([each])) for _, each in contents(session, landed, "deleted"))
    return Sidecars(deleted, errors, tuple(codes)[:_NAMED_CODES])


def contents(session: Session, landed: Sequence[LandedBatch], kind: FileKind) -> Iterator[tuple[str, bytes]]:
    """Name and decoded bytes of each landed file of that list; they are small."""
    from pipeline.bulkdata.decoding import decoded_blocks

    for batch in landed:
        if batch.type == kind:
            with session.lake.local_copy(batch.raw) as raw:
                for file in batch.files:
                    decoded = decoded_blocks(raw, file.encoding, file.offset, file.length)
                    yield file.name, b"".join(decoded)
