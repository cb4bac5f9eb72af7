"""Gathers the pages of a manifest: bounded in number, time and size, none twice (protocol fact 27)."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.manifest import LISTS, Manifest, assemble, checked_page, token_flag
from pipeline.errors import Unreachable, VerificationFailed

MOST_PAGES = 10_000
MOST_BYTES = 512_000_000
"""Of all pages together, as JSON: a million files with signed URLs."""
LONGEST = 1800.0
"""Seconds for all pages together."""


class Pages:
    """The pages that have come so far. `limits.files` holds for all of them together."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pages: list[dict[str, Any]] = []
        self._urls: list[str] = []
        self._seen: set[bytes] = set()
        self._files = 0
        self._bytes = 0
        self._give_up = time.monotonic() + LONGEST

    def __len__(self) -> int:
        return len(self._pages)

    def add(self, page: dict[str, Any], url: str, size: int) -> None:
        """One more page, which came from `url` with `size` bytes.

        Raises VerificationFailed when it is too much or has come before, Unreachable when it took too long.
        """
        checked_page(page, len(self))
        entries = [each for name, _ in LISTS if isinstance(page.get(name), list) for each in page[name]]
        self._files += len(entries)
        self._bytes += size
        self._limits.check_files(self._files)
        if self._bytes > MOST_BYTES:
            raise VerificationFailed(
                f"the manifest is larger than {MOST_BYTES // 10**6} MB", "Export fewer types at a time."
            )
        if len(self._pages) >= MOST_PAGES:
            raise self.endless()
        if time.monotonic() > self._give_up:
            raise Unreachable(
                f"the manifest had not ended after {LONGEST:.0f} s and {len(self)} pages",
                "Trying again may help.",
            )
        if entries:
            self._remember(entries)
        self._pages.append(page)
        self._urls.append(url)

    @property
    def requires_access_token(self) -> bool | None:
        """What the first page that says anything about it says."""
        return next((flag for flag in map(token_flag, self._pages) if flag is not None), None)

    def manifest(self) -> Manifest:
        """The manifest that they make. Raises VerificationFailed where they make none."""
        return assemble(self._pages, self._urls)

    def endless(self) -> VerificationFailed:
        """The error for pages that go in a circle, or on for ever."""
        return VerificationFailed(
            f"the manifest's pages have no end (after page {len(self)})",
            "Report it to the server's operator.",
        )

    def _remember(self, entries: list[Any]) -> None:
        digest = hashlib.sha256()
        for each in entries:
            url = each.get("url") if isinstance(each, dict) else None
            digest.update(f"{url!r}\n".encode())
        if digest.digest() in self._seen:
            raise self.endless()
        self._seen.add(digest.digest())
