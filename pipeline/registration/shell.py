"""Shell commands that can be pasted: every word quoted, placeholders too, so that none is run by mistake."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any


class Substituted(str):
    """A word that the shell itself is to work out, such as `$(az ... --output tsv)`: in double quotes."""

    __slots__ = ()


def command(*words: str) -> str:
    """One command on one line, words quoted for a POSIX shell."""
    return " ".join(f'"{word}"' if isinstance(word, Substituted) else shlex.quote(word) for word in words)


def output_of(*words: str) -> Substituted:
    """What a command prints, as a word of another; the command must not need double quotes."""
    return Substituted(f"$({command(*words)})")


def into_file(words: tuple[str, ...], path: str) -> str:
    """A command whose output nobody sees: it goes to a file that only this user may read.

    Folder and file are made before the command runs: what it made could not be had again.
    """
    folder, target = shlex.quote(str(PurePosixPath(path).parent)), shlex.quote(path)
    return f"(umask 077 && mkdir -p {folder} && : >> {target} && {command(*words)} | tr -d '\\n' > {target})"


def compact(value: Mapping[str, Any]) -> str:
    """JSON on one line, as short as it can be."""
    return json.dumps(value, separators=(",", ":"))
