"""What an erasure has done, or would do, and what was found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ExportError, StillRunning, VerificationFailed
from pipeline.exports.erasing.proof import Proof


@dataclass(frozen=True)
class Step:
    """One change, and what it adds to the report when it is done."""

    place: str
    count: int
    do: Callable[[], object]
    export_id: str = ""


@dataclass
class Erased:
    """What an erasure came to; in a dry run, what it would come to."""

    source: str
    dry_run: bool
    rows: Counter[str] = field(default_factory=Counter)
    """By place: `tables/observation`, `current/patient_current`, ..."""
    raw_lines: int = 0
    raw_files: int = 0
    raw_exports: int = 0
    quarantine: int = 0
    """Records."""
    attachments: int = 0
    """Contents that no row links which stays."""
    removed: int = 0
    """Files that nothing refers to."""
    mentions: Counter[str] = field(default_factory=Counter)
    """Rows and lines that name the patient and stay, by place."""
    left: Counter[str] = field(default_factory=Counter)
    """Found again afterwards, by place: nothing, if all went well."""
    read: int = 0
    """Files that were read to find out."""
    unread: list[str] = field(default_factory=list)
    in_use: int = 0
    """Runs at work, and files in spools of processes that live: these were not read."""

    def add(self, step: Step, exports: set[str]) -> None:
        """What one step has taken out, or would."""
        if step.place == "raw":
            self.raw_lines += step.count
            self.raw_files += 1
            exports.add(step.export_id)
            self.raw_exports = len(exports)
        elif step.place == "quarantine":
            self.quarantine += step.count
        elif step.place == "attachments":
            self.attachments += step.count
        elif step.place == "stray":
            self.removed += step.count
        else:
            self.rows[step.place] += step.count

    def take(self, proof: Proof) -> None:
        """What was found again."""
        self.mentions, self.left = +proof.mentions, +proof.owned
        self.read, self.unread, self.in_use = proof.files, proof.unread, proof.in_use

    @property
    def proved(self) -> bool:
        """Nothing is left, and nobody is at work who may bring back what was read before."""
        return not self.dry_run and not self.left.total() and not self.unread and not self.in_use

    @property
    def error(self) -> ExportError | None:
        """Why it is not proved, and what to do. None in a dry run, too."""
        if self.dry_run or self.proved:
            return None
        if self.in_use:
            return StillRunning(
                "somebody is at work who may bring back what was read before; nothing is proved",
                "Wait for its end, then erase again",
            )
        return VerificationFailed(
            "it is not proved that nothing is left",
            "Erase again. What is left in attachments without a table of links: `fhir-export attachments` "
            "first. Files that cannot be read: `fhir-export doctor`",
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": self.source,
            "dry_run": self.dry_run,
            "rows": {name: count for name, count in sorted(self.rows.items()) if count},
            "raw": {"lines": self.raw_lines, "files": self.raw_files, "exports": self.raw_exports},
            "quarantine": self.quarantine,
            "attachments": self.attachments,
            "files_removed": self.removed,
            "mentions_left": {name: count for name, count in sorted(self.mentions.items()) if count},
            "found_again": None if self.dry_run else self.left.total(),
            "found_again_in": {name: count for name, count in sorted(self.left.items()) if count},
            "files_read": self.read,
            "unread": self.unread,
            "in_use": self.in_use,
            "proved": self.proved,
        }
