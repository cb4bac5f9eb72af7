"""What the doctor found, on a screen, and what was mended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config import Config, Source
from pipeline.exports.finding import Finding
from pipeline.terminal.screen import give, give_json, say

FOUND = 4
"""The exit code when somebody has something to do: as for a verification that failed."""


@dataclass
class Examined:
    """One source: what was mended, and what is wrong after that."""

    source: str
    findings: Sequence[Finding]
    done: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        found = [each.as_json() for each in self.findings]
        return {"source": self.source, "repaired": self.done, "findings": found}


def visit(config: Config, sources: Sequence[Source], *, repair: bool, as_json: bool) -> int:
    """Examines, with `repair` mends first, prints, and gives the exit code. Raises `LakeError`."""
    from pipeline.orchestration import examination
    from pipeline.orchestration.instance import open_database

    examined = []
    with open_database(config) as instance:
        for source in sources:
            done = examination.repair(config, source, instance, say) if repair else []
            examined.append(Examined(source.name, examination.examine(config, source, instance), done))
    if as_json:
        give_json([each.as_json() for each in examined])
    else:
        for each in examined:
            _show(each)
    bad = any(one.severity != "note" for each in examined for one in each.findings)
    return FOUND if bad else 0


def _show(examined: Examined) -> None:
    for what in examined.done:
        give(f"{examined.source}: {what}")
    if not examined.findings:
        give(f"{examined.source}: nothing is wrong")
    for each in examined.findings:
        give(f"{each.severity:<8} {each.check}  {each.where}: {each.what}")
        give(f"         -> {each.mend}")
