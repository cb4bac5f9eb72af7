"""How much of a server's files is stored and unpacked, and how many of them there may be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.bulkdata.inspection import LONGEST_LINE
from pipeline.errors import VerificationFailed

FREE_BYTES = 100_000_000
"""Unpacked bytes before the ratio counts: small files may be all zeros."""


@dataclass(frozen=True)
class Limits:
    """The configuration's `downloads.limits`; bytes are of one file, `files` of a manifest over all pages."""

    file_bytes: int = 200_000_000_000
    ratio: float = 200.0
    line_bytes: int = LONGEST_LINE
    files: int = 1_000_000

    def check_file(self, wire_bytes: int, unpacked_bytes: int) -> None:
        """Raise VerificationFailed when a file has brought, or been unpacked to, more than is allowed."""
        if max(wire_bytes, unpacked_bytes) > self.file_bytes:
            raise VerificationFailed(
                f"the file is larger than {self.file_bytes / 10**9:g} GB",
                "If such files are right, raise downloads.limits.file_gigabytes.",
            )
        if unpacked_bytes > FREE_BYTES and unpacked_bytes > self.ratio * wire_bytes:
            raise VerificationFailed(
                f"the file unpacks to more than {self.ratio:g} times its size (a gzip bomb?)",
                "NDJSON packs 10 to 60 times; if this is right, raise downloads.limits.ratio.",
            )

    def check_announced(self, content_length: str) -> None:
        """Raise VerificationFailed for an announced length that is too much; nothing need arrive for it."""
        if re.fullmatch(r"\d{1,18}", content_length, re.ASCII):
            self.check_file(int(content_length), 0)

    def check_files(self, number: int) -> None:
        """Raise VerificationFailed when a manifest names more files than is allowed."""
        if number > self.files:
            raise VerificationFailed(
                f"the manifest names more than {self.files} files",
                "If that is right, raise downloads.limits.files; better, export fewer types at a time.",
            )
