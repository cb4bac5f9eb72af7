"""A server's words, made safe to repeat in messages and logs: one short line without anything secret."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

LONGEST_TEXT = 300
HIDDEN = "[hidden]"

_MOST_READ = 20_000
_SHORTEST_SECRET = 6

_JWT = re.compile(r"eyJ[\w=-]{5,}(\.[\w=-]*)*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_URL_TAIL = re.compile(r"(?i)(https?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")
_QUERY = re.compile(r"\?[^\s\"'<>]*")
_PAIRS = re.compile(r"[\w.%~-]+=[^\s&\"'<>]*(?:&(?:amp;)?[\w.%~-]+=[^\s&\"'<>]*)+")
_SECRET_PAIR = re.compile(
    r"(?i)\b([\w-]*(?:token|secret|password|assertion|signature|sig|key|authorization))"
    r"(\"?\s*[=:]\s*\"?)"
    r"(?!(?<=: )(?-i:[A-Z]?[a-z]+)(?:[\s.,;:)]|$))"  # "signature: verification failed" is prose
    r"[^\s\"',;&<>]{6,}"
)
_USERINFO = re.compile(r"(://)[^/\s@\"'<>]*@")
_LONG_RUN = re.compile(r"[A-Za-z0-9+/_=%~.-]{40,}")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(
    text: object, longest: int = LONGEST_TEXT, *, secrets: Collection[str] = (), token_length: int = 40
) -> str:
    """One line of at most `longest` characters, without control characters, queries of URLs and credentials.

    `secrets` are what was sent, should the server echo them, in pieces too. An unbroken run of `token_length`
    characters is taken for a token; key ids (43 characters) pass where more are allowed.
    """
    said = str(text)
    for secret in secrets:
        for piece in (secret, *secret.split(".")):
            if len(piece) >= _SHORTEST_SECRET:
                said = said.replace(piece, HIDDEN)
    said = "".join(" " if unicodedata.category(each) in _UNPRINTABLE else each for each in said[:_MOST_READ])
    said = _JWT.sub(HIDDEN, _USERINFO.sub(r"\1", said))
    said = _BEARER.sub(rf"\1 {HIDDEN}", said)
    said = _QUERY.sub(_hide_query, _URL_TAIL.sub(rf"\1?{HIDDEN}", said))
    said = _SECRET_PAIR.sub(rf"\1\2{HIDDEN}", _PAIRS.sub(HIDDEN, said))
    said = _LONG_RUN.sub(lambda run: _hide_run(run[0], token_length), said)
    said = " ".join(said.split())
    return said if len(said) <= longest else f"{said[: longest - 3]}..."


def _hide_query(match: re.Match[str]) -> str:
    return f"?{HIDDEN}" if "=" in match[0] or len(match[0]) > 20 else match[0]


def _hide_run(run: str, token_length: int) -> str:
    # Long paths of a URL consist of short words; a token does not.
    return run if all(len(word) < token_length for word in re.split(r"[/.]", run)) else HIDDEN
