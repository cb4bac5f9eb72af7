"""Which URLs on the FHIR server's own origin can be a document, and no read or search of anything else.

They are asked with the token, and whoever may write into a chart chooses them. FHIR leaves the place open
(`Attachment.url`: "a location where the data can be accessed"): Azure, HAPI, Aidbox and Epic name a
`Binary/<id>`, Medplum signed URLs below `/storage`. So a Binary may be read, and a path that names no type of
resource; what a server could take for a search, an operation or another resource is refused.
"""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import unquote, unquote_plus

import httpx

from pipeline.bulkdata.known_types import known_types

_ID = re.compile(r"(?!_)(?!\.+$)[A-Za-z0-9\-._~]{1,256}")
_TRICK = re.compile(r"[$;%\\\x00-\x1f\x7f]|^\s|\s$|^\.+$")
"""In a decoded segment: operations, matrix parameters, what is encoded twice, what a server may cut off."""
_HARMLESS = frozenset({"_format"})
"""Of a Binary that is read: how it comes."""


def why_no_document(url: str | httpx.URL, fhir_url: str) -> str | None:
    """Why a URL on the server's own origin is not asked for, without the URL; None: it may be."""
    path, _, query = httpx.URL(url).raw_path.decode("ascii").partition("?")
    segments = _segments(path)
    if segments is None:
        return "its path is encoded in a way that servers may read differently"
    base = _segments(httpx.URL(fhir_url).raw_path.decode("ascii")) or []
    below = _lower(segments[: len(base)]) == _lower(base)
    rest = segments[len(base) :] if below else segments
    kind, behind = _first_type(rest, below=below)
    if kind is None and (not rest or any(each.startswith("_") for each in rest)):
        return "it asks the server itself"
    if kind is not None and (kind != "binary" or not _is_read(behind)):
        return "it reads or searches resources of the server, and is no Binary/<id>"
    names = {unquote_plus(unquote_plus(each.partition("=")[0])).strip() for each in re.split("[&;]", query)}
    if any((each.startswith("_") or "%" in each) and not (kind and each in _HARMLESS) for each in names):
        return "it has parameters of a search"
    return None


def _segments(path: str) -> list[str] | None:
    """Decoded, without empty ones; None where one of them holds a trick."""
    found = []
    for each in path.split("/"):
        text = unquote(each)
        if _TRICK.search(text) or "/" in text or "?" in text or "#" in text:
            return None
        found += [text] if text else []
    return found


def _first_type(rest: list[str], *, below: bool) -> tuple[str | None, list[str]]:
    """The first segment that is a resource type, in lower case, and those behind it.

    Directly below the base some servers take it in any case; elsewhere `media/` is a folder like others.
    """
    if below and rest and rest[0].lower() in _lower_types():
        return rest[0].lower(), rest[1:]
    for number, each in enumerate(rest):
        if each in known_types():
            return each.lower(), rest[number + 1 :]
    return None, []


@cache
def _lower_types() -> frozenset[str]:
    return frozenset(each.lower() for each in known_types())


def _is_read(behind: list[str]) -> bool:
    """Whether that is `<id>` or `<id>/_history/<version>`."""
    if len(behind) == 3 and behind[1] == "_history":
        behind = [behind[0], behind[2]]
    elif len(behind) != 1:
        return False
    return all(_ID.fullmatch(each) for each in behind)


def _lower(segments: list[str]) -> list[str]:
    return [each.lower() for each in segments]
