"""What a fault makes of a whole manifest, another JSON answer or a file: bytes in, bytes out."""

from __future__ import annotations

import itertools
import re
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET

from pipeline.sandbox.fault import Fault

_RESOURCE_TYPE = re.compile(rb'"resourceType"\s*:\s*"[^"]*"')
_AGAIN = itertools.count(1)


def bent_json(body: bytes, fault: Fault) -> bytes:
    """The answer with other members and, where it is a manifest, with its changes; else as it is."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body
    if not isinstance(content, dict):
        return body
    before = msgspec.json.encode(content)
    if isinstance(content.get("output"), list):
        _bend_manifest(content, fault)
    for name, value in fault.members.items():
        content[name] = value
        if value is None:
            del content[name]
    bent = msgspec.json.encode(content)
    return body if bent == before else bent


def bent_lines(body: bytes, fault: Fault) -> bytes:
    """The file with lines of other types, without its last ones, and with what is put in."""
    lines = body.splitlines(keepends=True)
    for change in fault.line_types:
        if change.line < len(lines):
            member = b'"resourceType":' + msgspec.json.encode(change.type)
            found = _RESOURCE_TYPE.search(lines[change.line])
            if found:
                start, end = found.span()
                lines[change.line] = lines[change.line][:start] + member + lines[change.line][end:]
    if fault.drop_lines:
        del lines[-fault.drop_lines :]
    for insertion in reversed(fault.insert):
        lines.insert(len(lines) if insertion.after is None else insertion.after, insertion.base64)
    return b"".join(lines)


def corrupted(body: bytes, fault: Fault, offset: int) -> bytes:
    """A piece that begins at `offset` of the whole, with the bits of the chosen bytes turned over."""
    if fault.corrupt is None:
        return body
    at, every = fault.corrupt.at, fault.corrupt.every
    first = at - offset
    if first < 0:
        first = first % every if every else len(body)
    piece = bytearray(body)
    for place in range(first, len(piece), every or len(piece) + 1):
        piece[place] ^= 0xFF
    return bytes(piece)


def _bend_manifest(manifest: dict[str, Any], fault: Fault) -> None:
    entries = manifest["output"]
    chosen = next((entry for entry in entries if fault.type in (None, entry.get("type"))), None)
    if chosen is None:
        return
    if fault.wrong_count and isinstance(chosen.get("count"), int):
        chosen["count"] += int(fault.wrong_count)
    if fault.count is None:
        chosen.pop("count", None)
    elif fault.count is not UNSET:
        chosen["count"] = fault.count
    if fault.retype is not None:
        chosen["type"] = fault.retype or None
    for change in fault.changes:
        if change == "vanished":
            entries.remove(chosen)
        elif change == "appeared":
            entries.append({**chosen, "url": _beside(chosen["url"])})
        elif change == "repeated":
            entries.append(dict(chosen))
        elif change == "reordered":
            entries.reverse()
        else:
            for entry in entries:
                entry["url"] += f"{'&' if '?' in entry['url'] else '?'}again={next(_AGAIN)}"


def _beside(url: str) -> str:
    parts = urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    return parts._replace(path=f"{folder}/appeared-{name}").geturl()
