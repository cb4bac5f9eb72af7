"""A withdrawal that is killed with SIGKILL behind so many emptied tables: `... EXPORT_ID NUMBER`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from pipeline.config import load_config
from pipeline.exports.owner import this_process
from pipeline.exports.repair import withdraw
from pipeline.exports.session import Session
from pipeline.tables import delta


def main(export_id: str, number: str) -> None:
    whole, done = delta.empty_partition, []

    def empty(*arguments: Any, **named: Any) -> bool:
        if len(done) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        emptied = whole(*arguments, **named)
        done.extend([1] * emptied)
        return emptied

    delta.empty_partition = empty  # type: ignore[assignment]
    config = load_config()
    withdraw(Session(config, config.source(None), this_process("killed")), export_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
