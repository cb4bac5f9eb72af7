"""The manifest of a finished export: what it promises, with everything kept that we do not know.

Protocol facts 26-30; STU4 calls `error` `outcome`. File URLs are capabilities: no repr shows their query, and
`redacted_page` replaces each query by its sha256 before a page is stored.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, cast
from urllib.parse import urljoin, urlsplit

from pipeline.auth.origins import printable
from pipeline.errors import VerificationFailed
from pipeline.redaction import clean

Kind = Literal["output", "deleted", "error"]

LISTS: tuple[tuple[str, Kind], ...] = (
    ("output", "output"),
    ("deleted", "deleted"),
    ("error", "error"),
    ("outcome", "error"),
)
_KNOWN_IN_FILE = frozenset({"type", "url", "count", "continuesInFile"})
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_FRACTION = re.compile(r"(\.\d{6})\d+")
_GO_TAIL = re.compile(r"\s+([+-]\d{4})\s+[A-Z]{1,5}$")
_JAVA_OR_JS = re.compile(
    r"(?:[A-Z][a-z]{2},?\s+)?(?P<month>[A-Z][a-z]{2})\s+(?P<day>\d{1,2})\s+(?:(?P<year>\d{4})\s+)?"
    r"(?P<time>\d\d:\d\d:\d\d)\s+(?:GMT|UTC|Z)?(?P<offset>[+-]\d{4})?(?:\s+(?P<late_year>\d{4}))?(?:\s+\(.*\))?"
)
_URL_LIKE = re.compile(r"://|\?[^\s?=]*+=")
# What urljoin would leave as it is: it costs most of the time of a manifest of a million files.
_PLAIN_URL = re.compile(
    r"https://[a-z0-9.-]+(?::\d{1,5})?/[A-Za-z0-9/._~%=+:@-]*(?:\?[A-Za-z0-9/._~%=+:&-]+)?", re.ASCII
)
_MOST_LINES = 10**15  # more is nothing that a table, or a database's integer, could hold
_EPOCH = re.compile(r"\d{10}|\d{13}")
_LONGEST_INSTANT = 100
"""Characters: what is longer is no instant, and the patterns take long to say so."""


@dataclass(frozen=True, repr=False)
class ManifestFile:
    """One file of a manifest.

    `index` counts from 0 within its own list (`kind`), over all pages; `type` is absent with
    `organizeOutputBy`; `count` is the promised number of lines. `extra` are the members we do not know, as
    sent (signed URLs included).
    """

    kind: Kind
    index: int
    type: str | None
    url: str
    count: int | None = None
    continues_in_file: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The URL without query and fragment: what identifies the file when links are signed anew."""
        return re.split(r"[?#]", self.url, maxsplit=1)[0]

    @property
    def label(self) -> str:
        """How messages name the file: `output[3] (Patient)`."""
        return f"{self.kind}[{self.index}]" + (f" ({clean(self.type, 64)})" if self.type else "")

    def __repr__(self) -> str:
        return f"ManifestFile({self.label}, url={printable(self.url)!r}, count={self.count})"


@dataclass(frozen=True, repr=False)
class Manifest:
    """A whole manifest.

    `transaction_time` is the text as sent by the first page; empty where the server answered an empty result
    with a bare 404 (profile knob `empty_result_is_404`). `pages` are the raw pages, unknown members included.
    """

    transaction_time: str
    request: str | None
    requires_access_token: bool | None
    files: tuple[ManifestFile, ...]
    pages: tuple[dict[str, Any], ...]
    links: tuple[tuple[str, str], ...] = ()
    """(relation, absolute URL) of the last page."""
    repeated: int = 0
    """Entries that name a file again; they are not among `files`."""

    @classmethod
    def nothing(cls) -> Manifest:
        """The manifest of an export that found nothing and whose server sends none."""
        return cls("", None, None, (), ())

    def of_kind(self, kind: Kind) -> tuple[ManifestFile, ...]:
        """The files of one list, in order."""
        return tuple(each for each in self.files if each.kind == kind)

    def transaction_instant(self) -> str | None:
        """`transactionTime` as an ISO instant, None where it names no moment (protocol fact 26).

        A FHIR instant comes back as sent. Other forms (HTTP-date, Go's, Java's, JavaScript's, a space for the
        T, epoch numbers) are turned into UTC, fractions cut, never rounded up. A time without zone is no
        moment: read as UTC it could lie hours ahead and the next `_since` would lose data.
        """
        return instant_of(self.transaction_time)

    def __repr__(self) -> str:
        return f"Manifest({self.transaction_time!r}, {len(self.files)} files, {len(self.pages)} pages)"


def parse_manifest(page: object, base_url: str | None = None) -> Manifest:
    """The manifest in one parsed JSON page; `base_url` resolves relative file URLs.

    Raises VerificationFailed when it is none: `transactionTime` or `output` missing, a file without URL, ...
    """
    return assemble([page], [base_url])


def assemble(pages: Sequence[object], base_urls: Sequence[str | None] | None = None) -> Manifest:
    """One manifest of all its pages in order (fact 27: `link` with relation `next`).

    What stands beside the files is the first page's; later pages may hold files only. A file that a list
    names twice, by the same URL, is one file.
    """
    bases = base_urls if base_urls is not None else [None] * len(pages)
    checked = [checked_page(page, number) for number, page in enumerate(pages)]
    files: list[ManifestFile] = []
    counts: dict[Kind, int] = {"output": 0, "deleted": 0, "error": 0}
    named: dict[tuple[Kind, str], ManifestFile] = {}
    repeated = 0
    for page, base in zip(checked, bases, strict=True):
        for name, kind in LISTS:
            for entry in page.get(name) or []:
                file = _file(kind, counts[kind], entry, base)
                before = named.setdefault((kind, file.url.partition("#")[0]), file)
                if before is not file:
                    _require_alike(before, file)
                    repeated += 1
                    continue
                files.append(file)
                counts[kind] += 1
    first = checked[0]
    return Manifest(
        transaction_time=_transaction_time(first),
        request=first["request"] if isinstance(first.get("request"), str) else None,
        requires_access_token=next((flag for flag in map(token_flag, checked) if flag is not None), None),
        files=tuple(files),
        pages=tuple(checked),
        links=_links(checked[-1], bases[-1]),
        repeated=repeated,
    )


def _require_alike(first: ManifestFile, again: ManifestFile) -> None:
    if (first.type, first.count) != (again.type, again.count):
        raise VerificationFailed(
            f"the manifest names the file of {first.label} twice, with another type or count",
            "Report it to the server's operator; start a new export run.",
        )


def next_page(page: object, base_url: str | None = None) -> str | None:
    """The absolute URL of the page that follows this one, None on the last."""
    links = _links(page, base_url) if isinstance(page, dict) else ()
    return next((url for relation, url in links if relation == "next"), None)


def redacted_page(page: dict[str, Any]) -> dict[str, Any]:
    """A copy of a raw page that is safe to store: the query of each URL in it becomes `?sha256=<hex>`.

    That holds for every text that looks like a URL, wherever it stands, except `request`, which is our own.
    """
    return {name: value if name == "request" else _redacted(value, name) for name, value in page.items()}


def redacted_url(url: str) -> str:
    """The URL with its query (and fragment) replaced by `?sha256=<hex of the query>`; without userinfo."""
    address, mark, query = url.partition("?")
    address = re.sub(r"(://)[^/@]*@", r"\1", address)
    if not mark:
        return address.partition("#")[0]
    return f"{address}?sha256={hashlib.sha256(query.encode()).hexdigest()}"


def instant_of(text: str) -> str | None:
    """See `Manifest.transaction_instant`."""
    text = text.strip()
    if len(text) > _LONGEST_INSTANT:
        return None
    read = _moment(text)
    moment = _in_utc(read or _from_epoch(text) or _from_words(text) or _from_http_date(text))
    if moment is None:
        return None
    if read is not None and _INSTANT.fullmatch(text):
        return text
    written = moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds")
    return written.replace("+00:00", "Z")


def _in_utc(moment: datetime | None) -> datetime | None:
    """None at the ends of the calendar, where .NET's and Java's placeholders lie (`0001-01-01T00:00:00Z`): to
    reckon from there would leave it, and no export was then."""
    try:
        found = moment.astimezone(UTC) if moment is not None else None
    except OverflowError:
        return None
    return found if found is not None and 1 < found.year < MAXYEAR else None


def _moment(text: str) -> datetime | None:
    plain = _FRACTION.sub(r"\1", _GO_TAIL.sub(r"\1", text))
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _from_epoch(text: str) -> datetime | None:
    if not _EPOCH.fullmatch(text):
        return None
    seconds, thousandths = (int(text), 0) if len(text) == 10 else divmod(int(text), 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=thousandths * 1000)


def _from_words(text: str) -> datetime | None:
    match = _JAVA_OR_JS.fullmatch(text)
    if match is None or not (match["year"] or match["late_year"]):
        return None
    if match["offset"] is None and not re.search(r"\b(GMT|UTC|Z)\b", text):
        return None
    year = match["year"] or match["late_year"]
    line = f"{match['day']} {match['month']} {year} {match['time']} {match['offset'] or '+0000'}"
    try:
        return datetime.strptime(line, "%d %b %Y %H:%M:%S %z")
    except ValueError:
        return None


def _from_http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else None


def _not_a_manifest(why: str) -> VerificationFailed:
    return VerificationFailed(
        f"the status answer is not a manifest: {why}",
        "Look at the status URL's answer at the server; the export is not touched.",
    )


def checked_page(page: object, number: int) -> dict[str, Any]:
    """The page itself, `number` counting from 0. Raises VerificationFailed where it is none of a manifest."""
    if not isinstance(page, dict):
        raise _not_a_manifest("it is no JSON object")
    if number == 0 and not isinstance(page.get("output"), list):
        raise _not_a_manifest("output is not a list")
    lists = 0
    for name, _ in LISTS:
        value = page.get(name)
        if value is not None and not isinstance(value, list):
            raise _not_a_manifest(f"{name} is not a list")
        lists += value is not None
    if number > 0 and not lists:
        raise _not_a_manifest(f"page {number + 1} holds no list of files")
    return cast("dict[str, Any]", page)


def _transaction_time(page: dict[str, Any]) -> str:
    value = page.get("transactionTime")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _not_a_manifest("transactionTime is missing")
    return value


def token_flag(page: dict[str, Any]) -> bool | None:
    """`requiresAccessToken` as the page says it, None where it does not."""
    value = page.get("requiresAccessToken")
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _file(kind: Kind, index: int, entry: object, base: str | None) -> ManifestFile:
    where = f"{kind}[{index}]"
    if not isinstance(entry, dict):
        raise _not_a_manifest(f"{where} is no JSON object")
    url = entry.get("url")
    if not isinstance(url, str) or not url.strip():
        raise _not_a_manifest(f"{where} has no url")
    declared = entry.get("type")
    if declared is not None and not isinstance(declared, str):
        raise _not_a_manifest(f"{where} has a type that is no text")
    further = entry.get("continuesInFile")
    return ManifestFile(
        kind=kind,
        index=index,
        type=declared or None,
        url=_absolute(url.strip(), base, where),
        count=_count(entry.get("count"), where),
        continues_in_file=_absolute(further, base, where) if isinstance(further, str) and further else None,
        extra={name: value for name, value in entry.items() if name not in _KNOWN_IN_FILE},
    )


def _absolute(url: str, base: str | None, where: str) -> str:
    if _PLAIN_URL.fullmatch(url):
        return url
    try:
        whole = url if base is None else urljoin(base, url)
        urlsplit(whole)
    except ValueError:
        raise _not_a_manifest(f"{where} has an unreadable url") from None
    return whole


def _count(value: object, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value.strip(), re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_LINES:
        raise _not_a_manifest(f"{where} has a count that is no number")
    return value


def _links(page: dict[str, Any], base: str | None) -> tuple[tuple[str, str], ...]:
    links = page.get("link")
    if not isinstance(links, list):
        return ()
    found: list[tuple[str, str]] = []
    for each in links:
        if (
            isinstance(each, dict)
            and isinstance(each.get("relation"), str)
            and isinstance(each.get("url"), str)
        ):
            found.append((each["relation"], _absolute(each["url"], base, "link")))
    return tuple(found)


def _redacted(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _redacted(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each, name) for each in value]
    if isinstance(value, str) and (name in ("url", "continuesInFile") or _URL_LIKE.search(value)):
        return redacted_url(value)
    return copy.deepcopy(value)
