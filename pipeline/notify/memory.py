"""Who was told what: a file in the lake for each, written after the notice was taken.

`<source>/notices/<export id>/<event>-<hash>-<addressee>.json`. Not beside the facts: an export run of which
there is nothing but a notice would look like one that is to be asked for.
"""

from __future__ import annotations

import json
from datetime import datetime

from pipeline.errors import ExportError
from pipeline.lake.lake import Lake
from pipeline.notify.kinds import Addressee
from pipeline.notify.notice import Notice

_NO_EXPORT = "none"


class Memory:
    """Of one source. A lake that cannot be used is made up for while the process lives."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._told: set[str] = set()

    def knows(self, lake: Lake, notice: Notice, addressee: Addressee) -> bool:
        """Whether it was told. An unreadable lake does not know: being told twice is better than never."""
        path = self._path(notice, addressee)
        if path not in self._told:
            try:
                if lake.read(path) is not None:
                    self._told.add(path)
            except ExportError:  # also where its credential is refused
                return False
        return path in self._told

    def remember(self, lake: Lake, notice: Notice, addressee: Addressee, now: datetime) -> None:
        """Called when the notice was taken. Raises `ExportError`; this process remembers it then too."""
        path = self._path(notice, addressee)
        self._told.add(path)
        told = {"told_at": now.isoformat(), "to": addressee.notifier.name, **notice.as_json()}
        lake.put_new(path, json.dumps(told, indent=1).encode() + b"\n")

    def _path(self, notice: Notice, addressee: Addressee) -> str:
        folder = notice.export_id or _NO_EXPORT
        return f"{self._source}/notices/{folder}/{notice.key}-{addressee.id}.json"
