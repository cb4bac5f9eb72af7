"""What a server says about a file's bytes before they come: digests and a length, where it offers them.

DPC and AB2D give sha256 and length as extensions of the manifest's entry (protocol fact 33), of the plain
NDJSON as far as they tell; other servers send digests as headers of the answer (RFC 9530, RFC 3230,
Content-MD5, Azure's own). What cannot be read is no promise: forms that nobody has described are passed over.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.bulkdata.manifest import ManifestFile

_CHECKSUMS = frozenset({"https://dpc.cms.gov/checksum", "https://ab2d.cms.gov/checksum"})
_LENGTHS = frozenset({"https://dpc.cms.gov/file_length", "https://ab2d.cms.gov/file_length"})
_SHA256 = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LENGTH = re.compile(r"\d{1,18}(\.0*)?", re.ASCII)
_ITEM = re.compile(r"(?<![\w-])(sha-256|sha-512|md5)=:?([A-Za-z0-9+/]{22,88}={0,2}):?", re.IGNORECASE)
_MD5 = re.compile(r"[A-Za-z0-9+/]{22}==")

_OF_STRUCTURED = ("repr-digest", "content-digest", "digest")
_OF_MD5 = ("content-md5", "x-ms-blob-content-md5")
_NAMES = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


@dataclass(frozen=True)
class Promised:
    """What the manifest says of one file's bytes; None where it says nothing."""

    sha256: str | None = None
    """Hex, in lower case."""
    length: int | None = None


@dataclass(frozen=True)
class Digest:
    """What a header says of a body's bytes as they come."""

    header: str
    algorithm: str
    """As hashlib calls it."""
    value: bytes


def promised_by(file: ManifestFile) -> Promised:
    """What the file's entry in the manifest promises."""
    if "extension" not in file.extra:
        return Promised()
    found: dict[str, Any] = dict(_extensions(file.extra["extension"]))
    said = next((found[url] for url in _CHECKSUMS if url in found), None)
    sha256 = _SHA256.fullmatch(said) if isinstance(said, str) else None
    size = next((found[url] for url in _LENGTHS if url in found), None)
    length = _LENGTH.fullmatch(str(size)) if type(size) in (int, float, str) else None
    return Promised(
        sha256[1].lower() if sha256 else None, int(length[0].partition(".")[0]) if length else None
    )


def digests_in(headers: Mapping[str, str]) -> list[Digest]:
    """The digests that an answer 200 without content encoding announces of its whole body."""
    found: list[Digest] = []
    for name in _OF_STRUCTURED:
        for item in _ITEM.finditer(headers.get(name, "")):
            algorithm = _NAMES[item[1].lower()]
            found += _digest(name, algorithm, item[2])
    for name in _OF_MD5:
        said = headers.get(name, "").strip()
        if _MD5.fullmatch(said):
            found += _digest(name, "md5", said)
    return found


def _digest(header: str, algorithm: str, text: str) -> list[Digest]:
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error:
        return []
    whole = len(value) == hashlib.new(algorithm, usedforsecurity=False).digest_size
    return [Digest(header, algorithm, value)] if whole else []


def _extensions(value: object) -> Iterator[tuple[str, Any]]:
    """URL -> value, of FHIR's list and of the plain object that one of DPC's services sends."""
    if isinstance(value, dict):
        yield from value.items()
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict) and isinstance(each.get("url"), str):
            yield each["url"], next((each[name] for name in each if name.startswith("value")), None)
