"""Who else on this machine can read private keys, secrets and the lake, by the files' modes: for `check` and
the doctor."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.config import Config, Source
from pipeline.config.model import REFERENCE
from pipeline.config.secrets import secret_path
from pipeline.errors import ExportError
from pipeline.exports.verdict import Doubtful
from pipeline.lake.lake import open_lake


def require_private(config: Config, source: Source) -> str:
    """Words when nobody but this user (and root) can read what this source's work keeps in files.

    Looked at: the `file:` secrets of the source, the lake, Key Vault and notifiers, keys that wait or are
    retired beside a key, and a local lake's folder. What lies below a folder that others cannot enter is
    private. Raises `Doubtful`.
    """
    open_files = [f"{path} by {who}" for path in secret_files(config, source) if (who := readers(path))]
    lake = _local_lake(config)
    who = readers(data_folder(lake, source)) if lake is not None else ""
    if not open_files and not who:
        return "keys, secrets and lake are this user's alone"
    said, advice = [], []
    if open_files:
        said.append(f"secrets can be read by others: {', '.join(open_files)}")
        advice.append("chmod 600 these files, and chmod 700 their folder")
    if who:
        said.append(f"the lake's folder {lake}, patients' data, can be read by {who}")
        advice.append(f"chmod 700 {lake} (or 750 with a group that may see the data), or run with umask 077")
    raise Doubtful("; ".join(said), "; ".join(advice))


def _local_lake(config: Config) -> Path | None:
    if urlsplit(config.lake).scheme not in ("", "file"):
        return None
    try:
        return open_lake(config.lake, config.folder).folder
    except ExportError:  # told by the look at the lake
        return None


def readers(path: Path) -> str:
    """Who can read it by its mode and those of the folders above it: "everybody", "its group", or ""."""
    try:
        found = path.stat()
        above = [folder.stat() for folder in path.resolve().parents]
    except OSError:  # that it is not there is told elsewhere
        return ""
    may_enter = found.st_mode & (stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else stat.S_IROTH)
    if found.st_mode & stat.S_IROTH and may_enter and all(each.st_mode & stat.S_IXOTH for each in above):
        return "everybody"
    enterable = all(each.st_mode & (stat.S_IXOTH | stat.S_IXGRP) for each in above)
    return "its group" if stat.S_ISREG(found.st_mode) and found.st_mode & stat.S_IRGRP and enterable else ""


def data_folder(lake: Path, source: Source) -> Path:
    """Where a source's data lies in a local lake; the lake's folder before there is any."""
    own = lake / source.name
    return own if own.is_dir() else lake


def secret_files(config: Config, source: Source) -> Iterator[Path]:
    """The files of secrets that this source's work is configured with, and rotated keys beside them."""
    parts: list[Any] = [config.lake_auth, config.keyvault_auth, *config.notify, source]
    seen: set[Path] = set()
    for part in parts:
        for reference in _references(part.model_dump(mode="python")):
            path = secret_path(reference, config.folder)
            if path is None:
                continue
            for each in (path, *_rotated(path)):
                if each not in seen:
                    seen.add(each)
                    yield each


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if REFERENCE.match(value):
            yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _references(each)


def _rotated(path: Path) -> list[Path]:
    """The next key and the retired ones, which lie beside today's."""
    return sorted(path.parent.glob(f"{path.stem}.*.pem")) if path.suffix == ".pem" else []
