"""What may not leave this process, and the one place that takes it out of texts.

`hide` is for whatever is written (log records, errors); `clean` for a server's words, which become one short
line besides. Both know the secrets that this process holds (`remember`) and what secrets look like.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from urllib.parse import unquote

LONGEST_TEXT = 300
HIDDEN = "[hidden]"

_MOST_READ = 4_000  # and no pattern below starts in the middle of a run: time stays linear
_SHORTEST_SECRET = 6
_SHORTEST_REMEMBERED = 8
_SHORTEST_PIECE = 16
"""Of a remembered secret: a shorter piece could be a word of anything."""
_MOST_REMEMBERED = 1000

_JWT = re.compile(r"eyJ[\w=-]{5,}(\.[\w=-]*)*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_URL_TAIL = re.compile(r"(?i)(https?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")
_QUERY = re.compile(r"\?[^\s\"'<>]*")
_PAIRS = re.compile(r"(?<![\w.%~-])[\w.%~-]+=[^\s&\"'<>]*(?:&(?:amp;)?[\w.%~-]+=[^\s&\"'<>]*)+")
_SECRET_PAIR = re.compile(
    r"(?i)(?<![\w-])([\w-]*(?:token|secret|password|assertion|signature|sig|key|authorization))"
    r"(\"?\s*[=:]\s*\"?)"
    r"(?!(?<=: )(?-i:[A-Z]?[a-z]+)(?:[\s.,;:)]|$))"  # "signature: verification failed" is prose
    r"[^\s\"',;&<>]{6,}"
)
_LOGGED_PAIR = re.compile(
    r"(?i)(?<![\w-])([\w-]*(?:token|secret|password|assertion|signature|\bsig|authorization"
    r"|(?:account|api|private|shared|access|subscription)[_-]?key))"
    r"(['\"]?\s*[=:]\s*['\"]?)"
    r"(?!(?<=: )(?-i:[A-Z]?[a-z]+)(?:[\s.,;:)]|$))"
    r"[^\s\"',;&<>]{6,}"
)
"""As `_SECRET_PAIR`, but `partition_key=` and its like are our own words."""
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_SIG = re.compile(r"(?:^|[?&])sig=([^&\s]+)")
_USERINFO = re.compile(r"(://)[^/\s@\"'<>]*@")
_LONG_RUN = re.compile(r"[A-Za-z0-9+/_=%~.-]{40,}")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


_remembered: dict[str, None] = {}
"""Pieces of what this process holds, the oldest first; in memory only, as the secrets themselves are."""


def remember(secret: str | bytes) -> None:
    """From now on `hide` and `clean` take this secret out of every text, in its pieces too.

    Tokens, assertions, keys (PEM), client secrets, account keys, SAS, as they are made or read. The newest
    thousand pieces are kept.
    """
    text = secret.decode("utf-8", "replace") if isinstance(secret, bytes) else secret
    for piece in _pieces(text.strip()):
        _remembered.pop(piece, None)
        _remembered[piece] = None
    while len(_remembered) > _MOST_REMEMBERED:
        _remembered.pop(next(iter(_remembered)), None)


def _pieces(secret: str) -> Iterable[str]:
    if "-----BEGIN" in secret:
        key = secret[secret.find("PRIVATE KEY") :] if "PRIVATE KEY" in secret else ""
        key = key.partition("-----END")[0]
        yield from (line for line in key.split() if len(line) >= _SHORTEST_PIECE and "-----" not in line)
        return
    if len(secret) >= _SHORTEST_REMEMBERED:
        yield secret
    signature = _SIG.search(secret)
    parts = [signature[1], unquote(signature[1])] if signature else secret.split(".")
    yield from (part for part in parts if len(part) >= _SHORTEST_PIECE)


def hide(text: str, secrets: Collection[str] = ()) -> str:
    """The text without credentials and queries of URLs; otherwise as it is, with its lines."""
    said = _without_known(text, secrets)
    return _LOGGED_PAIR.sub(rf"\1\2{HIDDEN}", _without_shapes(said))


def _without_known(said: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        for piece in (secret, *secret.split(".")):
            if len(piece) >= _SHORTEST_SECRET:
                said = said.replace(piece, HIDDEN)
    for piece in tuple(_remembered):
        if piece in said:
            said = said.replace(piece, HIDDEN)
    return said


def _without_shapes(said: str) -> str:
    """Without what has the form of a credential, or stands where one does."""
    said = _JWT.sub(HIDDEN, _USERINFO.sub(r"\1", _PRIVATE_KEY.sub(HIDDEN, said)))
    said = _BEARER.sub(rf"\1 {HIDDEN}", said)
    said = _QUERY.sub(_hide_query, _URL_TAIL.sub(rf"\1?{HIDDEN}", said))
    return _PAIRS.sub(HIDDEN, said)


def clean(
    text: object, longest: int = LONGEST_TEXT, *, secrets: Collection[str] = (), token_length: int = 40
) -> str:
    """One line of at most `longest` characters, without control characters, queries of URLs and credentials.

    `secrets` are what was sent, should the server echo them, in pieces too. An unbroken run of `token_length`
    characters is taken for a token; key ids (43 characters) pass where more are allowed.
    """
    said = _without_known(str(text), secrets)
    said = "".join(" " if unicodedata.category(each) in _UNPRINTABLE else each for each in said[:_MOST_READ])
    said = _SECRET_PAIR.sub(rf"\1\2{HIDDEN}", _without_shapes(said))
    said = _LONG_RUN.sub(lambda run: _hide_run(run[0], token_length), said)
    said = " ".join(said.split())
    return said if len(said) <= longest else f"{said[: longest - 3]}..."


def _hide_query(match: re.Match[str]) -> str:
    return f"?{HIDDEN}" if "=" in match[0] or len(match[0]) > 20 else match[0]


def _hide_run(run: str, token_length: int) -> str:
    # Long paths of a URL consist of short words; a token does not.
    return run if all(len(word) < token_length for word in re.split(r"[/.]", run)) else HIDDEN
