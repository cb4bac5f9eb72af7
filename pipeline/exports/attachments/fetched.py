"""What was fetched and is not linked yet: a run that is killed leaves it behind, and the next goes on there.

Small files below `<lake>/<source>/attachments/_fetched/`, removed when the export's links are committed. They
hold hashes and sizes alone, no id and no URL.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import asdict, dataclass

from pipeline.exports.attachments.blobs import FOLDER
from pipeline.exports.session import Session

FETCHED = "_fetched"

_OPEN = "open.json"
"""Says that the links lack what lies on a server that did not answer: they are due again, however old."""
_EVERY = 50
_SECONDS = 5.0


@dataclass(frozen=True)
class Content:
    """A stored content: `bytes` long, of the type that the server told."""

    sha256: str
    bytes: int
    content_type: str | None


class Fetched:
    """The notes of one export, those of killed runs too; `note` may be called by several threads."""

    def __init__(self, session: Session, export_id: str) -> None:
        self._session = session
        self._export_id = export_id
        self._folder = f"{session.source.name}/{FOLDER}/{FETCHED}/{export_id}"
        self._lock = threading.Lock()
        self._fresh: dict[str, Content] = {}
        self._since = time.monotonic()

    def earlier(self) -> dict[str, Content]:
        """Fetch key -> content, as killed runs have left it. A note that cannot be read is passed over."""
        found: dict[str, Content] = {}
        for name in self._session.lake.names(self._folder):
            try:
                for key, value in json.loads(
                    self._session.lake.read(f"{self._folder}/{name}") or b"{}"
                ).items():
                    found[key] = Content(**value)
            except (ValueError, TypeError, AttributeError):
                continue
        return found

    def note(self, key: str, content: Content) -> None:
        """Remembers a content that is stored; it is written down now and then. Raises `LakeError`."""
        with self._lock:
            self._fresh[key] = content
            due = len(self._fresh) >= _EVERY or time.monotonic() - self._since >= _SECONDS
        if due:
            self.write()

    def write(self) -> None:
        """Writes down what is not written yet. Raises `LakeError`."""
        with self._lock:
            fresh, self._fresh, self._since = self._fresh, {}, time.monotonic()
        if fresh:
            data = json.dumps({key: asdict(content) for key, content in fresh.items()}).encode()
            self._session.lake.put_new(f"{self._folder}/{uuid.uuid4().hex}.json", data)

    def leave_open(self) -> None:
        """The links that are about to be committed lack what could not be asked for. Raises `LakeError`."""
        self._session.lake.put_new(f"{self._folder}/{_OPEN}", b"{}")

    @property
    def is_open(self) -> bool:
        """Whether the links that are committed lack something that was not asked for. Raises `LakeError`."""
        return _OPEN in self._session.lake.names(self._folder)

    def forget(self, *, but_open: bool = False) -> None:
        """The links are committed: they say it from now on. Raises `LakeError`."""
        for name in self._session.lake.names(self._folder):
            if not (but_open and name == _OPEN):
                self._session.lake.remove(f"{self._folder}/{name}")


def open_exports(session: Session) -> set[str]:
    """Exports whose links lack what lies on a server that did not answer. Raises `LakeError`."""
    found = session.lake.names(f"{session.source.name}/{FOLDER}/{FETCHED}")
    return {each for each in found if Fetched(session, each).is_open}
