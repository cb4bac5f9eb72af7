"""The facts of one export as plain JSON, by their names alone. No code of ours."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

WITHOUT_DATA = ("held", "gone", "rejected", "cancelled")
"""Facts that end an export; a held one may be tried again."""


class Facts:
    """The facts of one export, as JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.receipts = self.below("receipts")
        request = self._read("request.json")
        self.job: str | None = request["status_url"].rsplit("/", 1)[1] if request else None

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def below(self, name: str) -> list[dict[str, Any]]:
        """Every fact in a folder, in the order of names."""
        return [json.loads(path.read_bytes()) for path in sorted((self.folder / name).glob("*.json"))]

    @property
    def uncertain(self) -> int:
        """Requests of which no answer was written down: each may have made a job that nobody knows of."""
        request = self._read("request.json")
        number = 0
        for path in self.folder.glob("intent*.json"):
            if path.name.endswith(".error.json"):
                continue
            intent = json.loads(path.read_bytes())["number"]
            error = self._read(f"intent-{intent:04d}.error.json")
            if request and request["intent"] == intent:
                continue
            number += error is None or not error.get("certain", True)
        return number

    def may_be_deleted(self, when: datetime) -> bool:
        """Only behind a receipt, or behind the decision to end without data."""
        ends = [self._read(f"{state}.json") for state in (*WITHOUT_DATA, "withdrawn")]
        # The clocks are one; a fact's time is taken before it is written.
        moments = [moment(each["at"]) for each in (*self.receipts, *filter(None, ends))]
        if any(each <= when for each in moments):
            return True
        # Cancelling asks the server first and writes down afterwards what came of it.
        cancelled = [each for each in ends if each]
        return not self.receipts and any(
            moment(each["at"]) - when < timedelta(seconds=30) for each in cancelled
        )

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.exists():
            return None
        value: dict[str, Any] = json.loads(path.read_bytes())
        return value


def moment(text: str) -> datetime:
    """An instant as facts and the server's log write it."""
    return datetime.fromisoformat(text)
