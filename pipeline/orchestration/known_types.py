"""Which tables a source has: those of the configuration or profile, and those once seen.

A static list, so that the asset graph is known without network or lake. A type that a server sends unasked is
remembered under DAGSTER_HOME and is an asset of its own from the next load on.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from pipeline.config import Source


def static_types(source: Source) -> tuple[str, ...]:
    """Resource types, in the order of the configuration, of the profile, then those once seen."""
    from pipeline.bulkdata.profiles import profile_of

    named = source.export.types or profile_of(source.profile, source.knobs).types
    return tuple(dict.fromkeys((*named, *_remembered(source))))


def remember_types(source: Source, types: Iterable[str]) -> None:
    """Adds types to the list; without a DAGSTER_HOME there is none to keep."""
    path = _cache(source)
    known = _remembered(source)
    wanted = sorted({*known, *types})
    if path is None or wanted == sorted(known):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(wanted), encoding="utf-8")
    temporary.replace(path)


def _remembered(source: Source) -> tuple[str, ...]:
    path = _cache(source)
    if path is None:
        return ()
    try:
        return tuple(str(each) for each in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ()  # a cache: what is lost is seen again


def _cache(source: Source) -> Path | None:
    home = os.environ.get("DAGSTER_HOME")
    return Path(home) / "known_types" / f"{source.name}.json" if home else None
