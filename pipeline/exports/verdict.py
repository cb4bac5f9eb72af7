"""What a look at one thing came to, and how looks follow each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.errors import ExportError

Status = Literal["ok", "warn", "bad", "skipped"]


@dataclass(frozen=True)
class Verdict:
    """What one look came to. `cause` and `advice` are safe to paste into a ticket."""

    name: str
    status: Status
    cause: str
    advice: str = ""
    exit_code: int = 0
    """What the command line exits with when this is the first bad one."""

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name != "exit_code"}


class NotNeeded(Exception):
    """This look gave no answer, and the export does not depend on it."""


class Doubtful(Exception):
    """It works, but will bring trouble: `cause` and `advice`."""

    def __init__(self, cause: str, advice: str) -> None:
        super().__init__(cause, advice)
        self.cause = cause
        self.advice = advice


@dataclass
class Course:
    """Runs the looks one after the other; what rests on a bad one is skipped."""

    verdicts: list[Verdict] = field(default_factory=list)
    _blocked_by: dict[str, str] = field(default_factory=dict)

    def look(self, name: str, work: Callable[[], str], after: tuple[str, ...] = ()) -> None:
        """`work` gives words when all is in order; it raises `ExportError`, `NotNeeded` or `Doubtful`."""
        root = next((self._blocked_by[each] for each in after if each in self._blocked_by), None)
        if root is not None:
            self._blocked_by[name] = root
            self.verdicts.append(
                Verdict(name, "skipped", f"it comes after '{root}', which is to be mended first")
            )
            return
        try:
            self.verdicts.append(Verdict(name, "ok", work()))
        except NotNeeded as reason:
            self.verdicts.append(Verdict(name, "skipped", str(reason)))
        except Doubtful as doubt:
            self.verdicts.append(Verdict(name, "warn", doubt.cause, doubt.advice))
        except ExportError as error:
            self._blocked_by[name] = name
            self.verdicts.append(Verdict(name, "bad", error.cause, error.advice, error.exit_code))


def first_bad(verdicts: list[Verdict]) -> Verdict | None:
    """The one to mend first, None when all is in order."""
    return next((verdict for verdict in verdicts if verdict.status == "bad"), None)
