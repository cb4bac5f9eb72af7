"""What may not leave this process, and the one place that takes it out of texts.

`hide` is for whatever is written (log records, errors); `clean` for a server's words, which become one short
line besides. Both know the secrets that this process holds (`remember`) and what secrets look like.
"""

from __future__ import annotations

import os
import re
import string
import threading
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import unquote

LONGEST_TEXT = 300
HIDDEN = "[hidden]"

_MOST_SEARCHED = 16_000
"""Characters of a server's words in which known secrets are looked for; of the rest nothing is shown."""
_MOST_READ = 4_000
_SHORTEST_SECRET = 6
_SHORTEST_REMEMBERED = 8
_SHORTEST_PIECE = 16
"""Of a remembered secret: a shorter piece could be a word of anything."""
_MOST_PASSING = 1000
_MOST_LASTING = 4000
"""A private key has some fifty pieces, its lines: this holds eighty keys."""
_RUN = string.ascii_letters + string.digits + "+/_=%~.-"

# Hostile texts are met with time in proportion to their length: no pattern starts in the middle of a run that
# it has looked at before, and where one may end in vain, its end is optional and a function tells.
_JWT = re.compile(r"eyJ[\w=-]{5,}(\.[\w=-]*)*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_URL = re.compile(r"(?i)(https?://[^\s?#\"'<>]*+)([?#][^\s\"'<>]*+)?+")
_QUERY = re.compile(r"\?[^\s\"'<>]*")
_PAIRS = re.compile(r"(?<![\w.%~-])[\w.%~-]++=[^\s&\"'<>]*+((?:&(?:amp;)?[\w.%~-]++=[^\s&\"'<>]*+)*+)")
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


class _Memory:
    """Pieces of what this process holds; in memory only, as the secrets themselves are.

    `known` is replaced and never changed: whoever reads it needs no lock, whatever other threads remember.
    """

    def __init__(self) -> None:
        self.known: tuple[str, ...] = ()
        """The longest first, so that no piece takes the middle out of a longer one."""
        self._passing: dict[str, None] = {}
        self._lasting: dict[str, None] = {}
        self.renew_lock()

    def renew_lock(self) -> None:
        self._lock = threading.RLock()  # a finalizer may remember something in the midst of it

    def add(self, pieces: Collection[str], lasting: bool) -> None:
        with self._lock:
            held, most = (self._lasting, _MOST_LASTING) if lasting else (self._passing, _MOST_PASSING)
            new = not held.keys() >= set(pieces)
            for piece in pieces:
                held.pop(piece, None)
                held[piece] = None
            while len(held) > most:
                held.pop(next(iter(held)))
            if new:
                self.known = tuple(sorted({**self._lasting, **self._passing}, key=len, reverse=True))


_memory = _Memory()
os.register_at_fork(after_in_child=_memory.renew_lock)  # another thread may have held it


def remember(secret: str | bytes, *, lasting: bool = False) -> None:
    """From now on `hide` and `clean` take this secret out of every text, in its pieces too.

    As they are made or read: tokens, assertions; and `lasting` what is good for months: private keys (PEM),
    client secrets, account keys, SAS of the configuration. Of either sort the newest are kept: a thousand
    pieces, and four thousand lasting ones, which no number of tokens drives out. Threads may call it.
    """
    text = secret.decode("utf-8", "replace") if isinstance(secret, bytes) else secret
    _memory.add(tuple(_pieces(text.strip())), lasting)


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
    said = _without_known(text, _known(secrets))
    return _LOGGED_PAIR.sub(rf"\1\2{HIDDEN}", _without_shapes(said))


def beginning(text: str, longest: int) -> str:
    """At most the first `longest` characters: fewer where a secret, or what may be one, would be cut."""
    return _cut(text, longest, _known(()))


def _known(secrets: Collection[str]) -> Sequence[str]:
    given = (piece for secret in secrets for piece in (secret, *secret.split(".")))
    return [*(piece for piece in given if len(piece) >= _SHORTEST_SECRET), *_memory.known]


def _cut(text: str, longest: int, known: Sequence[str]) -> str:
    """Without the parts of secrets that nobody would know again: of known ones, and of an unbroken run."""
    if len(text) <= longest:
        return text
    end, before = longest, -1
    while end != before:
        before = end
        for piece in known:
            at = text.find(piece, max(0, end - len(piece) + 1), end + len(piece) - 1)
            end = end if at < 0 else at
    return text[:end].rstrip(_RUN)


def _without_known(said: str, known: Sequence[str]) -> str:
    for piece in known:
        if piece in said:
            said = said.replace(piece, HIDDEN)
    return said


def _without_shapes(said: str) -> str:
    """Without what has the form of a credential, or stands where one does."""
    said = _JWT.sub(HIDDEN, _USERINFO.sub(r"\1", _PRIVATE_KEY.sub(HIDDEN, said)))
    said = _BEARER.sub(rf"\1 {HIDDEN}", said)
    said = _QUERY.sub(_hide_query, _URL.sub(_hide_tail, said))
    return _PAIRS.sub(_hide_pairs, said)


def clean(
    text: object, longest: int = LONGEST_TEXT, *, secrets: Collection[str] = (), token_length: int = 40
) -> str:
    """One line of at most `longest` characters, without control characters, queries of URLs and credentials.

    `secrets` are what was sent, should the server echo them, in pieces too. An unbroken run of `token_length`
    characters is taken for a token; key ids (43 characters) pass where more are allowed. Of a long text only
    the first 16,000 characters are looked at.
    """
    known = _known(secrets)
    said = _without_known(_cut(str(text), _MOST_SEARCHED, known), known)
    said = _cut(said, _MOST_READ, ())
    said = "".join(" " if unicodedata.category(each) in _UNPRINTABLE else each for each in said)
    said = _SECRET_PAIR.sub(rf"\1\2{HIDDEN}", _without_shapes(said))
    said = _LONG_RUN.sub(lambda run: _hide_run(run[0], token_length), said)
    said = " ".join(said.split())
    return said if len(said) <= longest else f"{said[: longest - 3]}..."


def _hide_tail(url: re.Match[str]) -> str:
    return f"{url[1]}?{HIDDEN}" if url[2] else url[0]


def _hide_pairs(pairs: re.Match[str]) -> str:
    return HIDDEN if pairs[1] else pairs[0]


def _hide_query(match: re.Match[str]) -> str:
    return f"?{HIDDEN}" if "=" in match[0] or len(match[0]) > 20 else match[0]


def _hide_run(run: str, token_length: int) -> str:
    # Long paths of a URL consist of short words; a token does not.
    return run if all(len(word) < token_length for word in re.split(r"[/.]", run)) else HIDDEN
