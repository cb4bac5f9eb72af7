"""`fhir-export run hosp --wait`, killed with SIGKILL at a write of its own: `... WHEN WHAT PATTERN`.

`WHEN`: before or behind; `WHAT`: put_new, put_file or remove of the lake, or commit (of a table, by its URI);
`PATTERN`: a regular expression for the path. Without a match the command ends as it does.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline import cli
from pipeline.lake.local import LocalLake
from pipeline.tables import delta


def deadly(whole: Callable[..., Any], when: str, place: int, pattern: str) -> Callable[..., Any]:
    def work(*arguments: Any, **named: Any) -> Any:
        hit = re.search(pattern, str(arguments[place]))
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*arguments, **named)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return work


def main(when: str, what: str, pattern: str) -> None:
    if what == "commit":
        delta.commit_export = deadly(delta.commit_export, when, 0, pattern)
    else:
        place = 2 if what == "put_file" else 1
        setattr(LocalLake, what, deadly(getattr(LocalLake, what), when, place, pattern))
    sys.argv = ["fhir-export", "run", "hosp", "--wait", "--json"]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
