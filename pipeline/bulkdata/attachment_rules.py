"""What an attachment says of itself, held against what is wanted and what arrived. Pure rules, no network.

FHIR R4, Attachment: `data` is base64, `size` counts the bytes before base64, `hash` is the base64 of their
SHA-1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

State = Literal["stored", "too large", "type not wanted", "refused", "gone", "mismatch", "failed"]
"""What became of an attachment. `failed` may pass, and is tried again; the others are final."""

STATES: tuple[State, ...] = (
    "stored",
    "too large",
    "type not wanted",
    "refused",
    "gone",
    "mismatch",
    "failed",
)

_NAME = r"[A-Za-z0-9!#$&^_.+-]{1,127}"
_MEDIA_TYPE = re.compile(rf"\s*({_NAME}/{_NAME})\s*(;.*)?", re.DOTALL)
_ANOTHER_KIND = frozenset(
    {
        "text/html",
        "application/fhir+json",
        "application/json",
        "application/fhir+xml",
        "application/xhtml+xml",
    }
)
"""What servers answer with in place of a document: a login page, an OperationOutcome."""


class NotTaken(Exception):
    """An attachment that is not stored, and why; the reason is safe to print."""

    def __init__(self, state: State, reason: str) -> None:
        super().__init__(f"{state}: {reason}")
        self.state = state
        self.reason = reason


@dataclass(frozen=True)
class Declared:
    """One attachment as its resource has it."""

    resource_type: str
    resource_id: str | None
    version: str | None
    """`meta.versionId`, else `meta.lastUpdated`; None where the server says neither."""
    path: str
    """Where in the resource: `content[0].attachment`."""
    content_type: str | None = None
    url: str | None = field(default=None, repr=False)
    data: str | None = field(default=None, repr=False)
    size: int | None = None
    hash: str | None = None


def media_type(text: str | None) -> str | None:
    """`type/subtype` in lower case without parameters; None for what is no media type."""
    found = _MEDIA_TYPE.fullmatch(text or "")
    return found[1].lower() if found else None


def is_wanted(content_type: str | None, patterns: Sequence[str] | None) -> bool:
    """Whether a media type is among those that are asked for; `patterns` None: all are."""
    if patterns is None or "*/*" in patterns:
        return True
    kind = media_type(content_type)
    return kind is not None and (kind in patterns or f"{kind.partition('/')[0]}/*" in patterns)


def accept(content_type: str | None) -> str:
    """The `Accept` that has a server give a Binary's raw content (FHIR R4, Binary)."""
    kind = media_type(content_type)
    return f"{kind}, */*;q=0.1" if kind else "*/*"


def decoded(data: str, most: int) -> bytes:
    """The bytes of inline base64. Raises NotTaken for too many of them and for what is no base64."""
    plain = "".join(data.split())  # FHIR allows white space in it
    if len(plain) // 4 * 3 - 2 > most:
        raise NotTaken("too large", f"more than {most} bytes are inline")
    try:
        found = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        raise NotTaken("mismatch", "its inline data are no base64") from None
    if len(found) > most:
        raise NotTaken("too large", f"{len(found)} bytes, and {most} are allowed")
    return found


def unwrapped(body: bytes, most: int) -> tuple[bytes, str | None] | None:
    """Content and type of a Binary in JSON; None for any other body. Raises NotTaken as `decoded`."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("resourceType") != "Binary":
        return None
    data, kind = value.get("data"), value.get("contentType")
    if not isinstance(data, str):
        raise NotTaken("mismatch", "the Binary holds no data")
    return decoded(data, most), kind if isinstance(kind, str) else None


def is_json(content_type: str | None) -> bool:
    """Whether an answer may be a resource in JSON."""
    kind = media_type(content_type) or ""
    return kind == "application/json" or kind.endswith("+json")


def require_as_declared(
    declared: Declared, size: int, sha1: bytes, sha256: bytes, answered_type: str | None
) -> None:
    """Raise NotTaken where what arrived is not what the resource promised.

    A hash may be the base64 of SHA-1 (FHIR R4), of its hex digits, or of SHA-256, or plain hex: servers write
    all of these, and each proves the content.
    """
    if declared.size is not None and declared.size != size:
        raise NotTaken("mismatch", f"{declared.size} bytes were promised, {size} arrived")
    if declared.hash:
        if "".join(declared.hash.split()) not in _spellings(sha1, sha256):
            raise NotTaken("mismatch", "its hash is not the one that was promised")
        return
    said, promised = media_type(answered_type), media_type(declared.content_type)
    if promised is not None and said in _ANOTHER_KIND and said != promised and not _both_json(said, promised):
        raise NotTaken("mismatch", f"{promised} was promised, and {said} arrived")


def _both_json(one: str, other: str) -> bool:
    return is_json(one) and is_json(other)


def _spellings(sha1: bytes, sha256: bytes) -> set[str]:
    hexadecimal = [sha1.hex(), sha1.hex().upper(), sha256.hex(), sha256.hex().upper()]
    plain = [sha1, sha256, *(each.encode() for each in hexadecimal)]
    return {*hexadecimal, *(base64.b64encode(each).decode() for each in plain)}


def fetch_key(declared: Declared, url: str) -> str | None:
    """What two attachments share when the content fetched for one is that of the other; None: cannot be told.

    By the hash, where one is promised: it was verified. Else by URL and version of the resource: what is
    behind the URL may be another document when the resource has changed. `url` is without its query: in
    that, the signature is another every night.
    """
    if declared.hash:
        parts = ["hash", "".join(declared.hash.split())]
    elif declared.version and declared.resource_id:
        parts = ["version", url, declared.resource_type, declared.resource_id]
        parts += [declared.version, declared.path]
    else:
        return None
    text = json.dumps([declared.size, *parts])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
