"""Who fetches attachments at this moment: a small file for each run, below `attachments/_running/`.

Contents are stored long before anything names them, so whoever erases must know of it. A run that is killed
leaves its file behind; it counts until its owner is known to be dead, or it is older than any run.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from pipeline.errors import ExportError
from pipeline.exports.attachments.blobs import FOLDER
from pipeline.exports.owner import Owner
from pipeline.exports.session import Session
from pipeline.lake.lake import UNFINISHED

RUNNING = "_running"
_LONGEST = timedelta(hours=48)


@contextmanager
def at_work(session: Session) -> Iterator[None]:
    """Others see meanwhile that attachments are fetched. Raises `LakeError`."""
    those_at_work(session)
    path = f"{_folder(session)}/{uuid.uuid4().hex}.json"
    session.lake.put_new(path, session.owner.model_dump_json().encode())
    try:
        yield
    finally:
        with suppress(ExportError):
            session.lake.remove(path)


def those_at_work(session: Session) -> list[Owner]:
    """Their runs; what dead ones have left is removed. Raises `LakeError`."""
    found = []
    for name, stored in session.lake.stored(_folder(session)).items():
        path = f"{_folder(session)}/{name}"
        data = session.lake.read(path)
        if data is None or name.startswith(UNFINISHED):
            continue
        try:
            owner = Owner.model_validate_json(data)
        except ValueError:  # of a later version perhaps
            owner = Owner(run_id="unknown", host="")
        if stored.modified < session.now() - _LONGEST or session.is_dead(owner):
            session.lake.remove(path)
        else:
            found.append(owner)
    return found


def _folder(session: Session) -> str:
    return f"{session.source.name}/{FOLDER}/{RUNNING}"
