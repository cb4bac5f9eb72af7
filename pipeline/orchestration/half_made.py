"""A database of Dagster's that nobody finished making."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import dagster as dg


def complete(instance: dg.DagsterInstance) -> None:
    """Makes the tables that Dagster's index of events still lacks.

    Dagster makes them only where there is no such file: a process killed in between left one without tables,
    and every later run then failed at its first partition, for ever (chaos seed 23).
    """
    # Here, since the definitions load in half the time without it.
    from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage

    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage) and not storage.has_table("dynamic_partitions"):
        with redirect_stderr(io.StringIO()):  # it shows bars of progress
            instance.reindex()
