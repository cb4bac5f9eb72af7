"""Landing: the manifest's files, byte for byte into the lake, small ones packed together.

A batch is durable when its fact exists; nothing that has landed is fetched again (design, The lake).
"""

from __future__ import annotations

import shutil
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DownloadRefused, VerificationFailed
from pipeline.exports.attempt import Attempt, require_claim
from pipeline.exports.facts import LandedBatch, LandedFile
from pipeline.exports.manifests import FileKey, LiveManifest, without_query
from pipeline.exports.rejected import Rejection, keep_rejected
from pipeline.exports.session import Session
from pipeline.lake.spool import discard

if TYPE_CHECKING:
    from pipeline.bulkdata.downloads import Downloaded
    from pipeline.bulkdata.manifest import ManifestFile

PACK_BYTES = 64 << 20
"""Decoded bytes after which a batch is closed: a file as large is a batch of its own."""
PACK_FILES = 5000


@dataclass(frozen=True)
class _Arrived:
    file: ManifestFile
    path: Path
    downloaded: Downloaded
    warnings: tuple[str, ...]


@dataclass
class _Pack:
    """Files on their way into one raw file."""

    arrived: list[_Arrived] = field(default_factory=list)
    decoded_bytes: int = 0

    def add(self, file: _Arrived) -> None:
        self.arrived.append(file)
        self.decoded_bytes += file.downloaded.decoded_bytes

    @property
    def full(self) -> bool:
        return self.decoded_bytes >= PACK_BYTES or len(self.arrived) >= PACK_FILES


def land(
    session: Session,
    attempt: Attempt,
    live: LiveManifest,
    batch_type: str,
    keys: Sequence[FileKey],
    spool: Path,
) -> Iterator[tuple[LandedBatch, Path]]:
    """Downloads, verifies and lands files, in manifest order; yields each batch when it is durable.

    The path is a local copy of the batch's raw file, there until the next batch is asked for. Files ahead are
    downloaded meanwhile: at most `downloads.concurrency` wait in the spool.
    Raises `DownloadRefused`, `VerificationFailed`, `AuthError`, `Unreachable`, `LakeError`; `StillRunning`
    when another run took the export over.
    """
    ahead = session.source.downloads.concurrency
    waiting = deque(keys)
    flying: deque[Future[_Arrived]] = deque()
    pack = _Pack()
    with ThreadPoolExecutor(ahead, thread_name_prefix="download") as pool:
        try:
            while waiting or flying:
                while waiting and len(flying) < ahead:
                    flying.append(pool.submit(_fetch, session, attempt, live, waiting.popleft(), spool))
                pack.add(flying.popleft().result())
                if pack.full or not (waiting or flying):
                    yield from _close(session, attempt, batch_type, pack, spool)
                    pack = _Pack()
        finally:
            for future in flying:
                future.cancel()


def _fetch(session: Session, attempt: Attempt, live: LiveManifest, key: FileKey, spool: Path) -> _Arrived:
    """One file into the spool; a refused URL is replaced once by that of a fresh manifest (fact 30)."""
    path = spool / f"{key[0]}-{key[1]:06d}"
    file, requires_token = live.file(key)
    try:
        return _download(session, attempt, file, requires_token, path)
    except DownloadRefused:
        live.expire(file)
        file, requires_token = live.file(key)
        return _download(session, attempt, file, requires_token, path)


def _download(
    session: Session, attempt: Attempt, file: ManifestFile, requires_token: bool | None, path: Path
) -> _Arrived:
    """One file, verified; what arrived of one that fails is kept for people to look at."""
    from pipeline.bulkdata.downloads import verify

    rejected = path.with_name(f"{path.name}.rejected")
    downloaded: Downloaded | None = None
    try:
        downloaded = session.client.download(file, requires_token, path, rejected=rejected)
        return _Arrived(
            file, path, downloaded, tuple(verify(downloaded, file, session.source.on_count_mismatch))
        )
    except VerificationFailed as error:
        rejection = Rejection(attempt.export_id, attempt.number, file, error, downloaded)
        raise keep_rejected(session, rejection, rejected if downloaded is None else path) from None


def _close(
    session: Session, attempt: Attempt, batch_type: str, pack: _Pack, spool: Path
) -> Iterator[tuple[LandedBatch, Path]]:
    raw, files = _join(pack, spool)
    first = pack.arrived[0].file.index
    encodings = {file.encoding for file in files}
    suffix = {frozenset({"gzip"}): "ndjson.gz", frozenset({"identity"}): "ndjson"}.get(
        frozenset(encodings), "mixed"
    )
    name = f"{first:06d}-{attempt.number:04d}-{uuid.uuid4().hex[:8]}.{suffix}"
    where = f"{session.source.name}/raw/{attempt.export_id}/{batch_type}/{name}"
    session.lake.put_file(raw, where)
    batch = LandedBatch(
        at=session.now(),
        type=batch_type,
        number=first,
        attempt=attempt.number,
        raw=where,
        files=tuple(files),
    )
    if not session.ledger.write(attempt.export_id, f"landed/{batch_type}-{first:06d}.json", batch):
        session.lake.remove(where)
        require_claim(session, attempt)  # the other run's, if one has taken the export over
        raise VerificationFailed(
            f"{batch_type} {first} of {attempt.facts.label} has landed already, with other files",
            "Report this",
        )
    try:
        yield batch, raw
    finally:
        discard(raw)


def _join(pack: _Pack, spool: Path) -> tuple[Path, list[LandedFile]]:
    """One raw file of all: gzip members behind each other are gzip again."""
    raw = spool / f"raw-{uuid.uuid4().hex}"
    files: list[LandedFile] = []
    offset = 0
    only = len(pack.arrived) == 1
    if only:
        pack.arrived[0].path.rename(raw)
    with raw.open("r+b" if only else "xb") as target:
        for each in pack.arrived:
            if not only:
                with each.path.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
                discard(each.path)
            files.append(_landed_file(each, offset))
            offset += each.downloaded.wire_bytes
    return raw, files


def _landed_file(each: _Arrived, offset: int) -> LandedFile:
    file, downloaded = each.file, each.downloaded
    return LandedFile(
        kind=file.kind,
        index=file.index,
        type=file.type,
        url=without_query(file.url),
        count=file.count,
        lines=downloaded.lines,
        decoded_bytes=downloaded.decoded_bytes,
        sha256=downloaded.sha256,
        encoding=downloaded.encoding,
        etag=downloaded.etag,
        offset=offset,
        length=downloaded.wire_bytes,
        warnings=each.warnings,
    )
