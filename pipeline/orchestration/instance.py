"""The Dagster instance of a command: where its database lies, and what it means when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config import Config
from pipeline.errors import LakeError
from pipeline.orchestration.half_made import complete

DATABASE_ERRORS = (SQLAlchemyError, sqlite3.Error)


@contextmanager
def open_database(config: Config) -> Iterator[dg.DagsterInstance]:
    """The instance. Raises `LakeError` when its database cannot be used, then or later: a full disk, say."""
    try:
        yield open_instance(config)
    except ConnectionError:
        raise  # whoever read our output has gone, say: no database file is behind it
    except (*DATABASE_ERRORS, OSError) as error:
        raise unusable(error) from None


def open_instance(config: Config) -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME; without one, that of the configuration's folder."""
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(config.folder)
    home = Path(os.environ["DAGSTER_HOME"]).absolute()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(_QUIET, encoding="utf-8")
    os.environ["DAGSTER_HOME"] = str(home)
    instance = dg.DagsterInstance.get()
    complete(instance)
    return instance


_QUIET = """# Made by fhir-export. What belongs here: docs/operations.md of fhir-export-pipeline.
telemetry:
  enabled: false
nux:
  enabled: false
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 60
concurrency:
  pools:
    default_limit: 1
"""


def unusable(error: Exception) -> LakeError:
    """What a command says of a database that cannot be used."""
    home = os.environ.get("DAGSTER_HOME", "DAGSTER_HOME")
    if "database is locked" in str(error):
        return LakeError(
            f"Dagster's database in {home} is locked: another process has been writing to it for too long",
            "Run the command again; if it stays so, see which process of this instance hangs, and end that",
        )
    return LakeError(
        f"Dagster's database, which dagster.yaml in {home} names, cannot be used ({type(error).__name__})",
        "See that its disk has space and that it answers, then run the command again: the facts are kept",
    )
