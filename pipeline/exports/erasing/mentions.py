"""Where an id stands: in rows of Parquet parts, in lines of NDJSON, in bytes of anything else.

It counts where it stands alone, so that `12` is not found in `123`; how it is reached does not matter: as a
reference in any form, as an id, in free text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from pipeline.errors import LakeError
from pipeline.tables.parts import open_part
from pipeline.tables.sparse_reading import held_columns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_ROWS = 16 * 1024
_BLOCK = 1 << 20
_ESCAPED = re.compile(rb"\\u00[2-7]")
"""An id that is written with escapes is seen only when the line is understood."""


@dataclass(frozen=True)
class Needle:
    """An id, to be looked for."""

    id: str

    @cached_property
    def pattern(self) -> str:
        """For RE2 too, which cannot look around."""
        before = r"(^|[^A-Za-z0-9_.\-]|%2[Ff]|%7[Cc])"
        after = r"($|[^A-Za-z0-9_.\-]|\.($|[^A-Za-z0-9]))"
        return f"{before}{re.escape(self.id)}{after}"

    @cached_property
    def _text(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    @cached_property
    def _bytes(self) -> re.Pattern[bytes]:
        return re.compile(self.pattern.encode())

    def in_text(self, text: str) -> bool:
        return self.id in text and self._text.search(text) is not None

    def in_bytes(self, data: bytes) -> bool:
        return self.id.encode() in data and self._bytes.search(data) is not None

    def may_be_in(self, line: bytes) -> bool:
        """Whether a line of JSON is worth being understood."""
        return self.id.encode() in line or _ESCAPED.search(line) is not None

    def in_value(self, value: object) -> bool:
        """Whether any text of a decoded JSON value has it."""
        if isinstance(value, str):
            return self.in_text(value)
        if isinstance(value, dict):
            return any(self.in_value(each) for pair in value.items() for each in pair)
        return isinstance(value, list) and any(self.in_value(each) for each in value)

    def in_line(self, line: bytes) -> bool:
        """Whether a line of JSON has it; one that cannot be understood is taken as text."""
        if not self.may_be_in(line):
            return False
        decoded = resource_in(line)
        return self.in_bytes(line) if decoded is None else self.in_value(decoded)

    def in_rows(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """The rows that have it in any text column, at any depth."""
        import pyarrow.compute as pc

        def has(texts: Any) -> Any:
            if not pc.any(pc.match_substring(texts, self.id)).as_py():
                return None
            return pc.match_substring_regex(texts, self.pattern).fill_null(False)

        found = np.zeros(batch.num_rows, np.bool_)
        for column in batch.columns:
            matched = _matched(column, has)
            if matched is not None:
                found |= matched
        return found


def resource_in(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where there is none."""
    try:
        decoded = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _matched(array: Any, has: Callable[[Any], Any]) -> NDArray[np.bool_] | None:
    """Which elements hold a text that matches; None: none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = has(array)
        return None if found is None else np.asarray(found)
    if pa.types.is_struct(kind):
        parts = [part for each in array.flatten() if (part := _matched(each, has)) is not None]
        return np.logical_or.reduce(parts) if parts else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _matched(array.flatten(), has)
        if inner is None:
            return None
        mask = np.zeros(len(array), np.bool_)
        mask[np.asarray(pc.list_parent_indices(array))[inner]] = True
        return mask
    if pa.types.is_map(kind):  # in Delta's checkpoints only: whichever entry it is
        parts = [part for each in (array.keys, array.items) if (part := _matched(each, has)) is not None]
        return np.ones(len(array), np.bool_) if any(part.any() for part in parts) else None
    return None


def batches_of(
    path: Path, columns: list[str] | None = None, *, foreign: bool = False
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, rows) through a local part; those columns, else all that hold anything.

    `foreign`: it was not written by us, and is read as it is.

    Raises OSError when it is no Parquet file or its footer is damaged, ArrowException for damaged pages.
    """
    try:
        yield from _batches_of(path, columns, ours=columns is None and not foreign)
    except LakeError as bad:
        raise OSError(bad.cause) from None  # whoever knows which part it is has better words


def _batches_of(path: Path, columns: list[str] | None, *, ours: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
    with path.open("rb") as file, open_part(file) as part:
        groups = part.metadata.num_row_groups
        at = 0
        for group, wanted in enumerate(held_columns(file) if ours else [columns] * groups):
            for batch in part.iter_batches(_ROWS, row_groups=[group], columns=wanted, use_threads=False):
                yield at, batch
                at += batch.num_rows


def blocks_of_anything(path: Path) -> Iterator[bytes]:
    """The bytes of a file; of gzip, cut or damaged too, what can be unpacked, however many members."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0)
        if head != b"\x1f\x8b":
            while block := file.read(_BLOCK):
                yield block
            return
        unpacker = zlib.decompressobj(31)
        while block := file.read(_BLOCK):
            while block:
                try:
                    yield unpacker.decompress(block)
                except zlib.error:
                    yield block
                    break
                block = unpacker.unused_data
                if unpacker.eof:
                    unpacker = zlib.decompressobj(31)
                else:
                    break
