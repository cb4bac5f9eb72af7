"""The numbers that the kernel and its callers agree on."""

from __future__ import annotations

from typing import Final

import numpy as np

PADDING: Final = 64

# --- kinds of nodes ---
TEXT: Final = 0
BOOLEAN: Final = 1
INTEGER: Final = 2
DECIMAL: Final = 3
DATE: Final = 4
RAW: Final = 5
STRUCT: Final = 6
LIST: Final = 7
TYPE: Final = 8
"""`resourceType`: a text that must have the expected value."""

# --- columns of the plan's node table ---
KIND: Final = 0
SPACE: Final = 1
"""The row space of the node's own column: 0 is the table; each list opens one for its items."""
ITEM: Final = 2
"""LIST: the node of its items, which lies in a space of its own."""
NULLS: Final = 3
"""LIST: whether items may be null."""
KEY: Final = 4
KEY_LENGTH: Final = 5
FIRST: Final = 6
"""STRUCT: the member met first the last time (-1: not yet)."""
NEXT: Final = 7
"""The sibling met behind this member the last time (-1: not yet)."""
EXPANDED: Final = 8
"""STRUCT: whether its members are in the plan."""
PARENT: Final = 9
NODE_COLUMNS: Final = 10

# --- why `shred` stopped ---
DONE: Final = 0
EXPAND: Final = 1
FULL: Final = 2

# --- what is wrong with a line ---
BAD_JSON: Final = 1
BAD_STRING: Final = 2
BAD_ESCAPE: Final = 3
BAD_UTF8: Final = 4
LONE_SURROGATE: Final = 5
BAD_NUMBER: Final = 6
CONSTANT: Final = 7
DUPLICATE: Final = 8
DEEP: Final = 9
CUT: Final = 10
TRAILING: Final = 11
NOT_OBJECT: Final = 12
NOT_ARRAY: Final = 13
NOT_STRING: Final = 14
NOT_BOOLEAN: Final = 15
NOT_NUMBER: Final = 16
NOT_INTEGER: Final = 17
NULL_ITEM: Final = 18
WRONG_TYPE: Final = 19
NO_TYPE: Final = 20
NOT_RESOURCE: Final = 21
CONTROL: Final = 22

DEEPEST: Final = 512
"""Levels of JSON inside one verbatim value."""
FRAMES: Final = 96
"""Levels of typed structures and lists; the plan is less deep."""

# --- results of `shred`, in `state` ---
POS: Final = 0
LINE: Final = 1
ROWS: Final = 2
TAPE: Final = 3
BADS: Final = 4
NOTES: Final = 5
STAMP: Final = 6
NODE: Final = 7
KEPT: Final = 8
"""Lines seen that are not blank."""
STATES: Final = 16

ESCAPED: Final = 1 << 30
"""On a tape entry's end: the text holds escapes."""
BAD_COLUMNS: Final = 8 + 2 * FRAMES
"""line, start, end, code, position, found, depth, unused, then (node, item) for each frame."""

NEWLINE: Final = 10
QUOTE: Final = 34
BACKSLASH: Final = 92

CLASSES: Final = np.zeros(256, np.uint8)
CLASSES[:32] = 1
CLASSES[QUOTE] = 1
CLASSES[BACKSLASH] = 1
CLASSES[128:] = 1

# --- functions of the kernel ---
SHRED: Final = 0
MEASURE: Final = 1
FILL: Final = 2
THIN: Final = 3

# --- columns of the layout: where a node's buffers lie in the arena ---
VALIDITY: Final = 0
"""Byte offset of the bitmap."""
OFFSETS: Final = 1
"""Index into the arena as int32 (TEXT ...: n + 1 offsets; LIST likewise; INTEGER: n values)."""
VALUES: Final = 2
"""Byte offset of text bytes, or of the bitmap of BOOLEAN."""
STARTS: Final = 3
"""DATE: index into the arena as int64: n starts, then n ends."""
DATED: Final = 4
"""DATE: byte offset of the bitmap of texts that are dates."""
LENGTH: Final = 5
UNDATED: Final = 6
"""DATE, result: texts that are no dates."""
LAYOUT_COLUMNS: Final = 7

# --- what is known of a Parquet page that loses rows ---
PAGE_ENTRIES: Final = 0
PAGE_DEPTH: Final = 1
"""Greatest definition level."""
PAGE_REPEATS: Final = 2
"""Greatest repetition level."""
PAGE_MODE: Final = 3
PAGE_WIDTH: Final = 4
"""PAGE_FIXED: bytes of a value."""
PAGE_ROW: Final = 5
"""Of the row group, at which it ended; -1 before the first."""
PAGE_ROWS: Final = 6
"""That began in it and stay."""
PAGE_AT: Final = 7
"""Bytes that were written."""
PAGE_TELLS: Final = 8
"""Values that stay."""
PAGE_HELD: Final = 9
"""Values that there were."""
PAGE_COLUMNS: Final = 10

# --- how its values are written ---
PAGE_DICTIONARY: Final = 0
PAGE_FIXED: Final = 1
PAGE_TEXTS: Final = 2
PAGE_BITS: Final = 3
PAGE_BOOLEANS: Final = 4
"""Run by run."""
