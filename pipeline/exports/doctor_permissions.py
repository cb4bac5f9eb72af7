"""Who else on this machine may read keys and patients' data."""

from __future__ import annotations

from pipeline.exports.file_modes import data_folder, readers, secret_files
from pipeline.exports.finding import Findings
from pipeline.exports.session import Session


def examine(session: Session, found: Findings) -> None:
    """Files of secrets that others can read; a local lake that everybody may enter."""
    for path in secret_files(session.config, session.source):
        if who := readers(path):
            mend = f"chmod 600 {path}; then rotate the key"
            found.add("error", "key-readable", str(path), f"{who} on this machine can read it", mend)
    folder = session.lake.folder
    if folder is not None and readers(data_folder(folder, session.source)):
        what = "everybody on this machine may read patients' data"
        mend = f"chmod 700 {folder}, and UMask=0077 in the services (docs/operations.md)"
        found.add("warning", "lake-readable", str(folder), what, mend)
