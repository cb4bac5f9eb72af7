"""Folders on this machine that a command fills: new or empty ones, looked at before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError


def require_new(folders: Iterable[Path]) -> None:
    """Raises `ConfigError` where one of them holds something, or cannot be a folder."""
    for folder in folders:
        try:
            there = next(each for each in (folder, *folder.parents) if each.exists())
            if not there.is_dir():
                raise ConfigError(f"{there} is a file", "Name a new folder: --out")
            if there == folder and any(folder.iterdir()):
                raise ConfigError(f"{folder} is not empty", "Name a new folder: --out")
        except OSError as error:
            raise _unusable(folder, error) from None


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Makes it. Errors of the disk are a `ConfigError` then: a lake has errors of its own."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{folder} cannot be written ({error.strerror or type(error).__name__})",
        "Name a folder that this process may write, on a disk with room: --out",
    )
