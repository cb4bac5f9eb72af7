"""Files that are not what the manifest promised: the bytes that arrived are kept, for people to look at.

They lie in the lake and nowhere else: a login page or an error page may hold anything, patients' data too.
Beside them lies what was expected and what came, without content. Nothing here makes a failure worse: what
cannot be kept is said in the log only.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import LakeError, VerificationFailed
from pipeline.exports.manifests import without_query
from pipeline.exports.session import Session
from pipeline.lake.spool import discard

if TYPE_CHECKING:
    from pipeline.bulkdata.downloads import Downloaded
    from pipeline.bulkdata.manifest import ManifestFile

MOST = 3
"""Kept for each export: the newest."""

LARGEST = 10**9
"""Bytes kept of one file: its beginning."""

_OLDEST = datetime.min.replace(tzinfo=UTC).isoformat()


def rejected_folder(source: str, export_id: str) -> str:
    """Where they lie, from the lake's root; it goes with the export's raw files."""
    return f"{source}/raw/{export_id}/rejected"


@dataclass(frozen=True)
class Rejection:
    """One file that was refused, by which attempt, and what was seen of it where it came whole."""

    export_id: str
    attempt: int
    file: ManifestFile
    error: VerificationFailed
    downloaded: Downloaded | None = None


def keep_rejected(session: Session, rejection: Rejection, arrived: Path) -> VerificationFailed:
    """Brings what arrived to the lake, and removes it here; returns the error with its path in the advice.

    `arrived` need not exist: then nothing came.
    """
    error = rejection.error
    if not arrived.exists():
        return error
    try:
        where = _put(session, rejection, arrived)
        _keep_newest(session, rejected_folder(session.source.name, rejection.export_id))
    except (LakeError, OSError) as problem:
        session.log(f"the bytes of a refused file could not be kept: {problem}")
        return error
    finally:
        discard(arrived)
    kept = f"What arrived is kept in the lake (it may hold patients' data): {where}"
    advice = f"{error.advice.removesuffix('.')}. {kept}" if error.advice else kept
    return type(error)(error.cause, advice)


def _put(session: Session, rejection: Rejection, arrived: Path) -> str:
    file, size = rejection.file, arrived.stat().st_size
    with arrived.open("rb") as whole:
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if size > LARGEST:
        os.truncate(arrived, LARGEST)
    folder = rejected_folder(session.source.name, rejection.export_id)
    name = f"{folder}/{file.kind}-{file.index:06d}-{rejection.attempt:04d}-{uuid.uuid4().hex[:8]}"
    session.lake.put_file(arrived, f"{name}.bin")
    seen = rejection.downloaded
    report: dict[str, Any] = {
        "at": session.now().isoformat(),
        "attempt": rejection.attempt,
        "kind": file.kind,
        "index": file.index,
        "type": file.type,
        "url": without_query(file.url),
        "reason": rejection.error.cause,
        "count_promised": file.count,
        "lines_arrived": None if seen is None else seen.lines,
        "bytes_arrived": size,
        "bytes_kept": min(size, LARGEST),
        "sha256": digest,
        "bytes_decoded": None if seen is None else seen.decoded_bytes,
        "sha256_decoded": None if seen is None else seen.sha256,
        "requests": None if seen is None else seen.requests,
    }
    session.lake.put_new(f"{name}.json", json.dumps(report, indent=1).encode())
    return f"{name}.bin"


def _keep_newest(session: Session, folder: str) -> None:
    stems = {name.rpartition(".")[0] for name in session.lake.names(folder)}
    newest_last = sorted(stems, key=lambda stem: (_at(session, f"{folder}/{stem}.json"), stem))
    for stem in newest_last[:-MOST]:
        for suffix in ("bin", "json"):
            session.lake.remove(f"{folder}/{stem}.{suffix}")


def _at(session: Session, report: str) -> str:
    """When it was kept; one whose report is missing or damaged is the oldest."""
    try:
        return str(json.loads(session.lake.read(report) or b"")["at"])
    except (ValueError, KeyError, TypeError):
        return _OLDEST
