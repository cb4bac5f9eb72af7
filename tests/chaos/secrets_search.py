"""Looks through all that a seed left behind, its data apart, for secrets and what names patients."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable

_FORMS = {
    "an assertion": re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ"),
    "a key": re.compile(rb"PRIVATE KEY|AccountKey="),
    "a signature": re.compile(rb"[?&]sig=[A-Za-z0-9%]"),
    "a bearer": re.compile(rb"[Bb]earer [A-Za-z0-9._~+/-]{16,}"),
}

_TOKEN = 43
"""Characters of the server's tokens."""

_RUN = re.compile(rb"[A-Za-z0-9_-]{43,}")


def search(places: Iterable[tuple[str, bytes]], needles: Needles) -> list[str]:
    """Where something was found: the place and what kind of thing, never the thing itself."""
    return [f"{what} in {name}" for name, data in places for what in needles.found_in(data)]


class Needles:
    """What must not be found."""

    def __init__(
        self, token_hashes: set[str], signatures: set[str], keys: Iterable[Path], phi: set[str]
    ) -> None:
        """`token_hashes`: the first 16 hex digits of the sha256 of each token that was used."""
        self._hashes = token_hashes
        self._texts = {
            "a file's signature": {each.encode() for each in signatures},
            "key material": {
                line for key in keys for line in key.read_bytes().split(b"\n") if len(line) == 64
            },
            "a patient's data": {text.encode() for text in phi},
        }
        self._any = {
            what: re.compile(b"|".join(re.escape(each) for each in sorted(texts))) if texts else None
            for what, texts in self._texts.items()
        }

    def __len__(self) -> int:
        return len(self._hashes) + sum(len(texts) for texts in self._texts.values())

    def found_in(self, data: bytes) -> Iterator[str]:
        """The kinds of things that these bytes hold."""
        for what, form in _FORMS.items():
            if form.search(data):
                yield what
        for what, pattern in self._any.items():
            if pattern is not None and pattern.search(data):
                yield what
        if self._has_token(data):
            yield "a token"

    def _has_token(self, data: bytes) -> bool:
        for run in set(_RUN.findall(data)):
            for start in range(min(len(run), 400) - _TOKEN + 1):
                if hashlib.sha256(run[start : start + _TOKEN]).hexdigest()[:16] in self._hashes:
                    return True
        return False


def needles_of(log: list[dict[str, Any]], keys: Path, patients: Iterable[bytes]) -> Needles:
    """From the server's log, the folder of keys and the server's own Patient resources."""
    hashes = {entry["bearer"] for entry in log if entry.get("bearer")}
    signatures = {
        each for entry in log for each in re.findall(r"sig=([0-9a-f]{16,})", entry.get("query") or "")
    }
    return Needles(hashes, signatures, keys.glob("*.pem"), phi_of(patients))


def phi_of(patients: Iterable[bytes]) -> set[str]:
    """Words that only these patients' resources hold: names, streets, identifiers, telephone numbers."""
    found: set[str] = set()
    for line in patients:
        patient = json.loads(line)
        for name in patient.get("name", []):
            found.update(filter(None, [name.get("family"), name.get("text")]))
        for address in patient.get("address", []):
            found.update(address.get("line", []))
        for member in ("identifier", "telecom"):
            found.update(each["value"] for each in patient.get(member, []) if "value" in each)
    return {each for each in found if len(each) >= 5}


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Logs, pages, DAGSTER_HOME (databases as they lie and row by row), facts, Delta logs, lineage."""
    for path in sorted((folder / "logs").rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
    for path in sorted((folder / "home").rglob("*")):
        if path.is_file() and path.suffix != ".pem":
            yield str(path.relative_to(folder)), path.read_bytes()
            if path.suffix == ".db":
                yield f"{path.relative_to(folder)} row by row", _dump(path)
    for source in (folder / "lake").glob("[a-z]*"):
        for path in sorted(source.rglob("*")):
            below = path.relative_to(source).parts[0]
            if path.is_file() and below not in ("raw", "quarantine") and path.suffix != ".parquet":
                yield str(path.relative_to(folder)), path.read_bytes()
        for name in ("_lineage", "_exports"):
            yield f"rows of {name}", _rows(source / "tables" / name)


def _dump(path: Path) -> bytes:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        return "\n".join(database.iterdump()).encode()


def _rows(table: Path) -> bytes:
    if not any((table / "_delta_log").glob("*.json")):
        return b""
    files = [uri.removeprefix("file://") for uri in DeltaTable(str(table)).file_uris()]
    return (
        json.dumps(duckdb.sql(f"select * from read_parquet({files})").fetchall(), default=str).encode()
        if files
        else b""
    )
