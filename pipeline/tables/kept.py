"""Which Parquet files a Delta table still needs: those that it shows, and those that it showed of late."""

from __future__ import annotations

import json
from urllib.parse import unquote

from pipeline.errors import LakeError

StorageOptions = dict[str, str] | None


def shown_paths(uri: str, storage_options: StorageOptions = None) -> set[str]:
    """The files of the newest version, relative to the table's root.

    Raises `LakeError` when the table cannot be read, or when there is none.
    """
    import pyarrow as pa
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        actions = pa.table(DeltaTable(uri, storage_options=storage_options).get_add_actions(flatten=True))
    except (DeltaError, OSError) as bad:
        raise LakeError(
            f"the log of the table cannot be read ({type(bad).__name__})", "Restore it from a backup"
        ) from None
    return {unquote(path) for path in actions.column("path").to_pylist()} if actions.num_rows else set()


def taken_out_by(commit: bytes) -> set[str]:
    """The files that one JSON commit of the log took out: who reads the version before still needs them.

    Raises `LakeError` for a commit that cannot be understood.
    """
    try:
        actions = [json.loads(line) for line in commit.splitlines() if line.strip()]
        return {unquote(action["remove"]["path"]) for action in actions if "remove" in action}
    except (ValueError, KeyError, TypeError):
        raise LakeError("a commit of the table's log cannot be understood", "Restore it") from None
