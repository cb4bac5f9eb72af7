"""What the doctor found, and how findings are collected although things are broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.errors import ExportError

Severity = Literal["error", "warning", "note"]
"""error: data is missing or wrong, or work stands still; warning: somebody has to look; note: it mends
itself."""

_ORDER = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One contradiction. All of it is safe to paste into a ticket."""

    severity: Severity
    check: str
    """The same word for the same kind, for scripts."""
    where: str
    what: str
    mend: str
    repairable: bool = False
    """`doctor --repair` does it."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class Findings:
    """Collects; a look that fails is a finding itself."""

    found: list[Finding] = field(default_factory=list)

    def add(
        self, severity: Severity, check: str, where: str, what: str, mend: str, *, repairable: bool = False
    ) -> None:
        finding = Finding(severity, check, where, what, mend, repairable)
        if finding not in self.found:
            self.found.append(finding)

    def look(self, check: str, where: str, work: Callable[[], None]) -> None:
        """Does `work`; whatever it raises becomes a finding."""
        try:
            work()
        except ExportError as error:
            self.add("error", check, where, error.cause, error.advice or "mend that, then look again")
        except Exception as error:  # noqa: BLE001 - one broken thing must not hide the others
            self.add("error", check, where, f"unexpected {type(error).__name__}", "report this")

    def in_order(self) -> list[Finding]:
        """The worst first, else as they were found."""
        return sorted(self.found, key=lambda each: _ORDER.index(each.severity))
