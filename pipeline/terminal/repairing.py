"""The session of `retry` and `withdraw`: it knows which runs are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.exports.owner import Owner, this_process
from pipeline.exports.session import Session
from pipeline.terminal.screen import say

if TYPE_CHECKING:
    from pipeline.config import Config, Source


def session_at_terminal(config: Config, source: Source) -> Session:
    """A session of the person at the terminal; progress goes to the screen."""

    def is_dead(owner: Owner) -> bool:
        if owner.pid is not None:
            return owner.process_is_dead()
        # A step worker's run outlives its process: only Dagster knows.
        from pipeline.orchestration.instance import open_database
        from pipeline.orchestration.runs import is_dead_in

        with open_database(config) as instance:
            return is_dead_in(instance)(owner)

    return Session(config, source, this_process("cli"), is_dead=is_dead, log=say)
