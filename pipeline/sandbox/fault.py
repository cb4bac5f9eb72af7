"""One scripted fault: what may be said of it, and reading it from JSON or YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import UNSET, Meta, Struct, UnsetType

Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Status = Annotated[int, Meta(ge=200, le=599)]
ErrorStatus = Annotated[int, Meta(ge=400, le=599)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]
ManifestChange = Literal["vanished", "appeared", "repeated", "reordered", "new_urls"]


class Insertion(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes, with their line ends, behind the first `after` lines of a file; None: at its end.

    Several are in the order of their places; each `after` counts the lines of the file itself.
    """

    base64: bytes
    after: Natural | None = None


class Corruption(Struct, frozen=True, forbid_unknown_fields=True):
    """All bits of the byte at offset `at`, and of each `every`-th behind it, turned over; the length stays.

    One such byte in ASCII text makes it no UTF-8; in gzip it fails the checksum.
    """

    at: Natural = 0
    every: Positive | None = None


class LineType(Struct, frozen=True, forbid_unknown_fields=True):
    """The line number `line` (from 0) of a file says that it is a resource of type `type`."""

    line: Natural
    type: str


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to requests whose path (with query) `path` is found in; docs/faults.md has examples.

    Which requests: `path` (a regular expression), `method`, `answer` (only where the application itself
    would answer with that status; the fault then happens to its answer), `skip` (how many it lets pass
    first), `every` (only each n-th of the others), `times` (how many at most; None: for ever).

    What happens before: `delay` (seconds), `revoke_tokens` (all that were handed out), and to the job that
    the path names, from now on: `gone` (404 or 410), `stuck` (202 for ever), `failed` (with that status).

    The answer: `status` with `headers` and `body` (text, or any JSON value) in the application's place, or
    `redirect` to a URL (`{target}` in it is the path with the query), 307 unless `status` says otherwise;
    `headers` alone are set on the application's answer, null takes one away. `members` of a JSON answer are
    set, null takes one away.

    A manifest: `changes`, `wrong_count` (true for one too many, or a number to add), `count` (any value;
    null: none) and `retype` (another type; empty: none) change one entry of `output`: the first, or the
    first of type `type`.

    A file, sent without compression then: `insert`, `line_types`, `drop_lines` (that many at its end);
    `plain` does no more than that, for the members below.

    Its bytes on the wire: `corrupt`, `truncate_after` (ends as if it were whole, with `cut` by dropping the
    connection), `slow` (bytes a second), `never_ends` (this text follows, again and again).
    """

    path: str
    name: str = ""
    method: str | None = None
    answer: Status | None = None
    skip: Natural = 0
    every: Positive = 1
    times: Positive | None = 1

    delay: Seconds = 0.0
    revoke_tokens: bool = False
    gone: Literal[404, 410] | None = None
    stuck: bool = False
    failed: ErrorStatus | None = None

    status: Status | None = None
    headers: dict[str, str | int | float | None] = {}
    body: Any = None
    redirect: str | None = None
    members: dict[str, Any] = {}

    type: str | None = None
    changes: list[ManifestChange] = []
    wrong_count: bool | int = 0
    count: Any | UnsetType = UNSET
    retype: str | None = None

    insert: list[Insertion] = []
    line_types: list[LineType] = []
    drop_lines: Natural = 0
    plain: bool = False

    corrupt: Corruption | None = None
    truncate_after: Natural | None = None
    cut: bool = False
    slow: Positive | None = None
    never_ends: Annotated[str, Meta(min_length=1)] | None = None

    @property
    def replaces(self) -> bool:
        """Whether it answers in the application's place."""
        return self.status is not None or self.redirect is not None

    @property
    def bends_lines(self) -> bool:
        """Whether it needs a file as it is, without compression."""
        return bool(self.insert or self.line_types or self.drop_lines or self.plain)

    @property
    def bends_json(self) -> bool:
        """Whether it changes a JSON answer."""
        entry = self.changes or self.wrong_count or self.count is not UNSET or self.retype is not None
        return bool(entry or self.members)


def read_script(value: Any) -> list[Fault]:
    """The faults of a decoded script. ValueError names the entry and the member that is wrong."""
    if not isinstance(value, list):
        raise ValueError("A script is a list of faults")  # noqa: TRY004 - what is wrong is what was sent
    return [_read(number, entry) for number, entry in enumerate(value, 1)]


def load_script(path: Path) -> list[Fault]:
    """The faults of a YAML (or JSON) file. OSError, or ValueError as `read_script` with the file's name."""
    try:
        return read_script(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(number: int, entry: Any) -> Fault:
    try:
        fault = msgspec.convert(entry, Fault)
    except msgspec.ValidationError as error:
        raise ValueError(f"fault {number} is malformed: {error}") from None
    try:
        re.compile(fault.path)
    except re.error as error:
        raise ValueError(f"fault {number} is malformed: path is no regular expression: {error}") from None
    problem = _contradiction(fault)
    if problem:
        raise ValueError(f"fault {number} is malformed: {problem}")
    return fault


def _contradiction(fault: Fault) -> str | None:
    if fault.cut and fault.truncate_after is None:
        return "cut needs truncate_after"
    if fault.body is not None and fault.status is None:
        return "body needs status"
    if fault.redirect is not None and fault.status not in (None, 301, 302, 303, 307, 308):
        return "the status of a redirect is 301, 302, 303, 307 or 308"
    if sum((fault.gone is not None, fault.stuck, fault.failed is not None)) > 1:
        return "a job is one of gone, stuck and failed"
    if fault.replaces and (fault.bends_lines or fault.bends_json):
        return "status and redirect answer in the place of what the other members would change"
    for name, value in fault.headers.items():
        if not name.isascii() or any(sign in f"{name}{value}" for sign in "\r\n"):
            return f"headers has a name or a value that no header can have: {name[:40]!r}"
        if not str(value).isascii() and value is not None:
            return f"headers: the value of {name[:40]!r} must be ASCII"
    return None
