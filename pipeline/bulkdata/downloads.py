"""What a download gave, and whether it is what the manifest promised."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.bulkdata.decoding import Encoding
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.errors import VerificationFailed


@dataclass(frozen=True)
class Downloaded:
    """One file as it lies at `path`: the bytes of the wire, whole, and what was seen while they streamed by.

    Sizes are bytes. `sha256` (hex) and `decoded_bytes` are of the NDJSON after decoding, `wire_bytes` of what
    is stored. `lines` do not count blank ones. `etag` and `last_modified` are headers as sent.
    """

    path: Path
    encoding: Encoding
    wire_bytes: int
    decoded_bytes: int
    sha256: str
    lines: int
    count_matches: bool
    """True also where the manifest gives no count."""
    types_seen: dict[str, int] = field(default_factory=dict)
    blank_lines: int = 0
    malformed: int = 0
    """Lines that are not one complete JSON object."""
    malformed_lines: tuple[int, ...] = ()
    """The numbers of the first 20 of them, from 1."""
    etag: str | None = None
    last_modified: str | None = None
    content_type: str | None = None
    requests: int = 1
    """How many times the file was asked for until it was whole."""


def verify(
    downloaded: Downloaded, file: ManifestFile, on_count_mismatch: Literal["fail", "warn"] = "fail"
) -> list[str]:
    """The warnings about a file; raises VerificationFailed where it is not what the manifest promised.

    Checked: the count (protocol fact 33; bad lines are lines), the declared type of every line, whole lines.
    A bad line of an `output` file costs that line only, and a line of another type finds its own table, so
    both are warnings there; in a `deleted` file nothing may be passed over, and an `error` file may hold any
    type. Messages name the file, types and numbers, never content.
    """
    warnings: list[str] = []
    types = _types_to_tell(downloaded, file)
    if types:
        _report(f"{file.label} holds {types}", file.kind == "deleted", warnings)
    if downloaded.malformed:
        numbers = ", ".join(map(str, downloaded.malformed_lines))
        more = ", ..." if downloaded.malformed > len(downloaded.malformed_lines) else ""
        what = f"{file.label}: {downloaded.malformed} of {downloaded.lines} lines are no JSON object"
        _report(f"{what} (line {numbers}{more})", file.kind != "output", warnings)
    if file.count is not None and file.count != downloaded.lines:
        what = f"{file.label}: the manifest promises {file.count} lines, {downloaded.lines} arrived"
        _report(what, on_count_mismatch == "fail", warnings, "on_count_mismatch: warn accepts such files")
    return warnings


def _types_to_tell(downloaded: Downloaded, file: ManifestFile) -> str:
    """The types of lines that are not what the manifest declares; all types where it declares none."""
    if file.type is None and file.kind != "output":
        return ""
    others = {name: number for name, number in downloaded.types_seen.items() if name != file.type}
    return ", ".join(f"{number} lines of type {name}" for name, number in sorted(others.items()))


def _report(what: str, fatal: bool, warnings: list[str], advice: str = "") -> None:
    if fatal:
        raise VerificationFailed(what, advice or "Nothing of this export is published; it is tried again.")
    warnings.append(what)
