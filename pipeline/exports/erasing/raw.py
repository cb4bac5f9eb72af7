"""What of the raw bytes belongs to a patient, and the raw files without it.

A line that goes is left blank, so that every other one stays where rows, lineage and quarantine say it is. A
raw file is never changed: a new one is written beside it, a fact says that it counts now
(`landed/erased-<n>/...`), and the old one is removed. So an export can be ingested again afterwards.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from pipeline.errors import LakeError, StillRunning, VerificationFailed
from pipeline.exports.erasing.broken import is_of
from pipeline.exports.erasing.mentions import Needle, resource_in
from pipeline.exports.erasing.tables import Line, Owned
from pipeline.exports.facts import LandedBatch, LandedFile
from pipeline.exports.session import Session
from pipeline.exports.staging import SIDECARS

Lines = dict[int, bytes]
"""Physical line, from 1 -> what stands there instead."""
_BLANK = b""


class _Named(msgspec.Struct):
    resourceType: str = ""  # noqa: N815 - as in FHIR
    id: str = ""


@dataclass
class RawBatch:
    """A landed batch, and which of its lines go."""

    export_id: str
    batch: LandedBatch
    files: dict[str, Lines] = field(default_factory=dict)
    """File -> its lines."""

    @property
    def count(self) -> int:
        return sum(len(lines) for lines in self.files.values())

    def put(self, file: LandedFile, number: int, instead: bytes = _BLANK) -> None:
        self.files.setdefault(file.name, {})[number] = instead

    def lines_that_go(self) -> set[Line]:
        """Export, file and line of each that is left blank."""
        return {
            (self.export_id, name, number)
            for name, lines in self.files.items()
            for number, instead in lines.items()
            if not instead
        }


def raw_batches(session: Session) -> list[RawBatch]:
    """Every landed batch whose raw file is there. Raises `LakeError`."""
    found = []
    for export_id in session.ledger.export_ids():
        folder = f"{session.source.name}/raw/{export_id}/"
        there = session.lake.sizes(folder.rstrip("/"))
        found += [
            RawBatch(export_id, batch)
            for batch in session.ledger.landed(export_id)
            if there.get(batch.raw.removeprefix(folder)) == batch.raw_bytes
        ]
    return found


def find_lines_of(session: Session, owned: Owned, needle: Needle, raw: RawBatch) -> None:
    """The lines that say themselves that they are the patient's; so may bad ones (`broken`)."""
    for file, number, line in _lines(session, raw) if raw.batch.type not in SIDECARS else ():
        if not needle.may_be_in(line):
            continue
        resource = resource_in(line)
        if owned.weigh(resource) or (resource is None and is_of(owned.patient, line)):
            raw.put(file, number)


def find_following_lines(session: Session, owned: Owned, raw: RawBatch) -> None:
    """Those that have the id of one that goes, and name no patient."""
    for file, number, line in _lines(session, raw) if raw.batch.type not in SIDECARS else ():
        try:
            named = msgspec.json.decode(line, type=_Named)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if named.id not in owned.ids.get(named.resourceType, ()) or number in raw.files.get(file.name, {}):
            continue
        if owned.weigh_again(resource_in(line)):
            raw.put(file, number)


def find_sidecar_lines(session: Session, owned: Owned, needle: Needle, raw: RawBatch) -> None:
    """`deleted` Bundles lose the entries that name what goes; what an OperationOutcome tells about the
    patient is lost, its severities and codes stay."""
    if raw.batch.type == "deleted":
        for file, number, line in _lines(session, raw):
            instead = _without_entries(owned, line)
            if instead is not None:
                raw.put(file, number, instead)
    elif raw.batch.type == "error":
        for file, number, line in _lines(session, raw):
            if needle.in_line(line):
                raw.put(file, number, _bare_outcome(line))


def _without_entries(owned: Owned, line: bytes) -> bytes | None:
    """The Bundle without them; None where it has none of them."""
    try:
        bundle = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        entries = msgspec.json.decode(bundle["entry"], type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return None
    kept = [entry for entry in entries if not _names_gone(owned, bytes(entry))]
    if len(kept) == len(entries):
        return None
    return msgspec.json.encode(bundle | {"entry": kept})  # one without entries counts as a line, too


def _names_gone(owned: Owned, entry: bytes) -> bool:
    from pipeline.bulkdata.sidecar import deletions

    bundle = b'{"resourceType":"Bundle","type":"transaction","entry":[' + entry + b"]}\n"
    try:
        return any(each.id in owned.gone(each.resource_type) for each in deletions([bundle]))
    except VerificationFailed:
        return False  # it names no resource


def _bare_outcome(line: bytes) -> bytes:
    outcome = resource_in(line) or {}
    issues = [
        {name: issue[name] for name in ("severity", "code") if isinstance(issue.get(name), str)}
        for issue in outcome.get("issue") or ()
        if isinstance(issue, dict)
    ]
    return json.dumps({"resourceType": "OperationOutcome", "issue": issues}).encode()


def _lines(session: Session, raw: RawBatch) -> Iterator[tuple[LandedFile, int, bytes]]:
    from pipeline.bulkdata.decoding import decoded_blocks, numbered_lines

    with session.lake.local_copy(raw.batch.raw) as path:
        for file in raw.batch.files:
            blocks = decoded_blocks(path, file.encoding, file.offset, file.length)
            for number, line in numbered_lines(blocks):
                yield file, number, line


# --- writing -----------------------------------------------------------------------------------------


def rewrite_raw(session: Session, raw: RawBatch) -> None:
    """A new raw file, the fact that it counts, and only then the old one is removed. Raises `LakeError`."""
    batch = raw.batch
    folder, _, name = batch.raw.rpartition("/")
    new = f"{folder}/{batch.number:06d}-{batch.attempt:04d}-{uuid.uuid4().hex[:8]}.{name.partition('.')[2]}"
    with session.lake.spool() as spool, session.lake.local_copy(batch.raw) as path:
        out = spool / "raw"
        with path.open("rb") as source, out.open("wb") as target:
            files = tuple(_file_without(source, path, target, file, raw) for file in batch.files)
        session.lake.put_file(out, new)
    fact = batch.model_copy(update={"at": session.now(), "raw": new, "files": files})
    fact_name = f"{batch.type}-{batch.number:06d}.json"
    there = session.lake.sizes(f"{session.ledger.folder(raw.export_id)}/landed")
    number = sum(name.endswith(f"/{fact_name}") for name in there) + 1
    if not session.ledger.write(raw.export_id, f"landed/erased-{number:04d}/{fact_name}", fact):
        raise StillRunning("somebody else erases at this moment", "Run it again")
    session.lake.remove(batch.raw)


def _file_without(
    source: IO[bytes], path: Path, target: IO[bytes], file: LandedFile, raw: RawBatch
) -> LandedFile:
    begin, lines = target.tell(), raw.files.get(file.name)
    if not lines:
        source.seek(file.offset)
        _copy(source, target, file.length)
        return file.model_copy(update={"offset": begin})
    digest, size = hashlib.sha256(), 0
    with _encoder(target, file.encoding) as encoded:
        for piece in _pieces(path, file, lines):
            digest.update(piece)
            size += len(piece)
            encoded.write(piece)
    blank = sum(not instead for instead in lines.values())
    return file.model_copy(
        update={
            "offset": begin,
            "length": target.tell() - begin,
            "decoded_bytes": size,
            "sha256": digest.hexdigest(),
            "lines": file.lines - blank,
            "erased": file.erased + blank,
        }
    )


def _pieces(path: Path, file: LandedFile, lines: Mapping[int, bytes]) -> Iterator[bytes]:
    """Every line with its end, as it came."""
    from pipeline.bulkdata.decoding import decoded_blocks, physical_lines

    ends = [b""]

    def watched(blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            ends[0] = block[-1:] or ends[0]
            yield block

    before: bytes | None = None
    blocks = watched(decoded_blocks(path, file.encoding, file.offset, file.length))
    for number, line in enumerate(physical_lines(blocks), start=1):
        if before is not None:
            yield before + b"\n"
        before = lines.get(number, line)
    if before is not None:
        yield before + (b"\n" if ends[0] == b"\n" else b"")


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    while length > 0 and (block := source.read(min(length, 1 << 20))):
        target.write(block)
        length -= len(block)
    if length:
        raise LakeError("a raw file is shorter than its facts say", "`fhir-export doctor` tells which")


class _Plain:
    """A file that stays open."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _encoder(target: IO[bytes], encoding: str) -> Any:
    if encoding == "gzip":
        return gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0)
    return _Plain(target)
