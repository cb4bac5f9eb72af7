"""Who makes rows of other rows may not commit them once an erasure has taken some of those out.

A table of such rows counts its erasures in its log (the application transaction `overtaken`). The making
reads that number before it reads anything else, and a commit is refused when the number is another one: an
erasure raises it behind its own last commit. So the making either sees what is left, or begins again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

    from pipeline.tables.delta import StorageOptions

OVERTAKEN = "overtaken"
MAX_TRIES = 20


class Overtaken(Exception):
    """An erasure was in between: what was read must be read again."""


def begin_making(uri: str, schema: pa.Schema, storage_options: StorageOptions = None) -> int:
    """How often erasures have overtaken makings of this table.

    Where there is no table it is made, for an erasure overtakes only what it sees. Raises LakeError.
    """
    from pipeline.tables.delta import Conflict, create_table, open_table
    from pipeline.tables.schema import plain

    table = open_table(uri, storage_options)
    if table is None:
        with suppress(Conflict):  # somebody else was quicker
            create_table(uri, plain(schema), storage_options)
        table = open_table(uri, storage_options)
    return 0 if table is None else _number(table)


def not_overtaken(since: int) -> Callable[[DeltaTable], None]:
    """For `commit_export`: raises `Overtaken` when the table has been overtaken since."""

    def require(table: DeltaTable) -> None:
        if _number(table) != since:
            raise Overtaken

    return require


def overtake(uri: str, storage_options: StorageOptions = None) -> None:
    """Refuses the commits of all makings that are under way. Raises LakeError."""
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import CommitProperties, Transaction

    from pipeline.errors import LakeError
    from pipeline.tables.delta import open_table, unwritable
    from pipeline.tables.schema import PARTITION_COLUMN

    for tries in range(MAX_TRIES):
        table = open_table(uri, storage_options)
        if table is None:
            return
        try:
            table.create_write_transaction(
                [],
                mode="overwrite",
                schema=table.schema(),
                partition_by=[PARTITION_COLUMN],
                # Without a filter an overwrite takes everything out; no export has the empty name.
                partition_filters=[(PARTITION_COLUMN, "=", "")],
                commit_properties=CommitProperties(
                    custom_metadata={"fhir_export": "overtaken"},
                    max_commit_retries=0,
                    app_transactions=[Transaction(OVERTAKEN, _number(table) + 1)],
                ),
            )
        except CommitFailedError:
            time.sleep(random.uniform(0.2, 1.0) * min(2.0, 0.05 * 2**tries))  # noqa: S311
        except (DeltaError, OSError) as bad:
            raise unwritable(table.table_uri, bad) from None
        else:
            return
    raise LakeError("a table keeps changing", "Stop what writes to it, and erase again")


def _number(table: DeltaTable) -> int:
    return table.transaction_version(OVERTAKEN) or 0
