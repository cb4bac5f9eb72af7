"""Who else on this machine may read keys and patients' data."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.config import secret_path
from pipeline.exports.finding import Findings
from pipeline.exports.session import Session


def examine(session: Session, found: Findings) -> None:
    """Files of secrets that others may read; a local lake that everybody may enter."""
    for reference in _references(session):
        path = secret_path(reference, session.config.folder)
        if path is not None and path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            what = f"others may read it (mode {stat.S_IMODE(path.stat().st_mode):04o})"
            found.add("error", "key-readable", str(path), what, f"chmod 600 {path}; then rotate the key")
    folder = session.lake.folder
    if folder is not None and _open_to_others(folder / session.source.name):
        what = "everybody on this machine may read patients' data"
        mend = f"chmod 700 {folder}, and UMask=0077 in the services (docs/operations.md)"
        found.add("warning", "lake-readable", str(folder), what, mend)


def _references(session: Session) -> list[str]:
    auth, storage = session.source.auth, session.source.downloads.storage
    named = [auth.private_key, auth.client_secret, auth.certificate]
    named += [each.url for each in session.config.notify]
    for model in (storage, session.config.lake_auth, session.config.keyvault_auth):
        values = model.model_dump().values() if model is not None else ()
        named += [each for each in values if isinstance(each, str) and each.startswith("file:")]
    return [each for each in named if each is not None]


def _open_to_others(folder: Path) -> bool:
    """Whether anybody may list it, through every folder above it."""
    if not folder.is_dir() or not folder.stat().st_mode & stat.S_IROTH:
        return False
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.absolute().parents))
