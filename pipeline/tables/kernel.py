"""The native part of the conversion: NDJSON bytes to a tape of values, and the tape to Arrow buffers.

Compiled once per machine (`native`) and free of the GIL, so lanes run side by side. It knows no FHIR: a
`Plan` (tables of small integers) tells it which key under which node leads where. What it is not sure of it
does not guess: a line that is no valid JSON, or does not fit the plan, is left out whole and reported.

Memory safety: numba checks no bounds. Every line ends with a newline that no token may cross, and the block
is followed by `PADDING` zero bytes, so scanning ends inside the buffer; an event takes two bytes of source at
least, and the tape has room for as many; stacks are checked where they grow. Nothing allocates or raises.

One file, because all of it becomes one piece of machine code.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from pipeline.tables.codes import (
    BACKSLASH,
    BAD_COLUMNS,
    BAD_ESCAPE,
    BAD_JSON,
    BAD_NUMBER,
    BAD_UTF8,
    BADS,
    BOOLEAN,
    CONSTANT,
    CONTROL,
    CUT,
    DATE,
    DATED,
    DECIMAL,
    DEEP,
    DEEPEST,
    DONE,
    DUPLICATE,
    ESCAPED,
    EXPAND,
    EXPANDED,
    FILL,
    FIRST,
    FRAMES,
    FULL,
    INTEGER,
    ITEM,
    KEY,
    KEY_LENGTH,
    KIND,
    LAYOUT_COLUMNS,
    LENGTH,
    LINE,
    LIST,
    LONE_SURROGATE,
    MEASURE,
    NEWLINE,
    NEXT,
    NO_TYPE,
    NODE,
    NODE_COLUMNS,
    NOT_ARRAY,
    NOT_BOOLEAN,
    NOT_INTEGER,
    NOT_NUMBER,
    NOT_OBJECT,
    NOT_RESOURCE,
    NOT_STRING,
    NOTES,
    NULL_ITEM,
    NULLS,
    OFFSETS,
    PARENT,
    POS,
    QUOTE,
    RAW,
    ROWS,
    SHRED,
    SPACE,
    STAMP,
    STARTS,
    STRUCT,
    TAPE,
    TEXT,
    THIN,
    TRAILING,
    TYPE,
    UNDATED,
    VALIDITY,
    VALUES,
    WRONG_TYPE,
)
from pipeline.tables.thinning_kernel import thin_page

_jit: Any = numba.njit(nogil=True, boundscheck=False, error_model="numpy")


@_jit
def _hex(c):
    if 48 <= c <= 57:
        return c - 48
    if 97 <= c <= 102:
        return c - 87
    if 65 <= c <= 70:
        return c - 55
    return -1


@_jit
def _hex4(data, p):
    a = _hex(data[p])
    if a < 0:
        return -1
    b = _hex(data[p + 1])
    if b < 0:
        return -1
    c = _hex(data[p + 2])
    if c < 0:
        return -1
    d = _hex(data[p + 3])
    if d < 0:
        return -1
    return (a << 12) | (b << 8) | (c << 4) | d


@_jit
def _utf8(data, p):
    """Bytes of the valid UTF-8 sequence at p, or 0."""
    c = data[p]
    if c < 0xC2:
        return 0
    c1 = data[p + 1]
    if (c1 & 0xC0) != 0x80:
        return 0
    if c < 0xE0:
        return 2
    c2 = data[p + 2]
    if (c2 & 0xC0) != 0x80:
        return 0
    if c < 0xF0:
        if c == 0xE0 and c1 < 0xA0:
            return 0
        if c == 0xED and c1 >= 0xA0:
            return 0
        return 3
    c3 = data[p + 3]
    if (c3 & 0xC0) != 0x80 or c > 0xF4:
        return 0
    if c == 0xF0 and c1 < 0x90:
        return 0
    if c == 0xF4 and c1 >= 0x90:
        return 0
    return 4


@_jit
def _string(data, p, kinds):
    """From the byte behind the opening quote: (position of the closing quote, has escapes, error)."""
    escaped = False
    while True:
        while kinds[data[p]] == 0:
            p += 1
        c = data[p]
        if c == QUOTE:
            return p, escaped, 0
        if c == BACKSLASH:
            escaped = True
            c = data[p + 1]
            if c == 117:
                high = _hex4(data, p + 2)
                if high < 0:
                    return p, escaped, BAD_ESCAPE
                if 0xD800 <= high < 0xDC00:
                    if data[p + 6] != BACKSLASH or data[p + 7] != 117:
                        return p, escaped, LONE_SURROGATE
                    low = _hex4(data, p + 8)
                    if low < 0xDC00 or low > 0xDFFF:
                        return p, escaped, LONE_SURROGATE
                    p += 12
                elif 0xDC00 <= high < 0xE000:
                    return p, escaped, LONE_SURROGATE
                else:
                    p += 6
            elif (
                c == QUOTE
                or c == BACKSLASH
                or c == 47
                or c == 98
                or c == 102
                or c == 110
                or c == 114
                or c == 116
            ):
                p += 2
            else:
                return p, escaped, CUT if c == NEWLINE else BAD_ESCAPE
        elif c < 32:
            return p, escaped, CUT if c == NEWLINE else CONTROL
        else:
            n = _utf8(data, p)
            if n == 0:
                return p, escaped, BAD_UTF8
            p += n


@_jit
def _number(data, p):
    """(end, is written as an integer) of the JSON number at p; end -1 where there is none."""
    if data[p] == 45:
        p += 1
    c = data[p]
    if c == 48:
        p += 1
    elif 49 <= c <= 57:
        p += 1
        while 48 <= data[p] <= 57:
            p += 1
    else:
        return -1, False
    whole = True
    if data[p] == 46:
        whole = False
        p += 1
        if not (48 <= data[p] <= 57):
            return -1, False
        while 48 <= data[p] <= 57:
            p += 1
    if data[p] == 101 or data[p] == 69:
        whole = False
        p += 1
        if data[p] == 43 or data[p] == 45:
            p += 1
        if not (48 <= data[p] <= 57):
            return -1, False
        while 48 <= data[p] <= 57:
            p += 1
    c = data[p]
    # `01`, `1x`, `1.2.3`: a number ends where a value may end.
    if c == 44 or c == 125 or c == 93 or c == 32 or c == 10 or c == 13 or c == 9:
        return p, whole
    return -1, False


@_jit
def _blank(data, p):
    while data[p] == 32 or data[p] == 9 or data[p] == 13:
        p += 1
    return p


@_jit
def _literal(data, p):
    """Length of `true`, `false` or `null` at p, or 0."""
    c = data[p]
    if c == 116 and data[p + 1] == 114 and data[p + 2] == 117 and data[p + 3] == 101:
        return 4
    if c == 102 and data[p + 1] == 97 and data[p + 2] == 108 and data[p + 3] == 115 and data[p + 4] == 101:
        return 5
    if c == 110 and data[p + 1] == 117 and data[p + 2] == 108 and data[p + 3] == 108:
        return 4
    return 0


@_jit
def unescape(data, a, b, out, o):
    """Writes the text of data[a:b], a valid JSON string's inside, to out[o:]; returns the new o."""
    while a < b:
        c = data[a]
        if c != BACKSLASH:
            out[o] = c
            o += 1
            a += 1
            continue
        c = data[a + 1]
        a += 2
        if c == 117:
            code = _hex4(data, a)
            a += 4
            if 0xD800 <= code < 0xDC00:
                code = 0x10000 + ((code - 0xD800) << 10) + (_hex4(data, a + 2) - 0xDC00)
                a += 6
            if code < 0x80:
                out[o] = code
                o += 1
            elif code < 0x800:
                out[o] = 0xC0 | (code >> 6)
                out[o + 1] = 0x80 | (code & 63)
                o += 2
            elif code < 0x10000:
                out[o] = 0xE0 | (code >> 12)
                out[o + 1] = 0x80 | ((code >> 6) & 63)
                out[o + 2] = 0x80 | (code & 63)
                o += 3
            else:
                out[o] = 0xF0 | (code >> 18)
                out[o + 1] = 0x80 | ((code >> 12) & 63)
                out[o + 2] = 0x80 | ((code >> 6) & 63)
                out[o + 3] = 0x80 | (code & 63)
                o += 4
            continue
        if c == 110:
            c = 10
        elif c == 116:
            c = 9
        elif c == 114:
            c = 13
        elif c == 98:
            c = 8
        elif c == 102:
            c = 12
        out[o] = c
        o += 1
    return o


@_jit
def _hash(data, a, b, seed):
    h = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xCBF29CE484222325)
    for i in range(a, b):
        h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    return h ^ (h >> np.uint64(29))


@_jit
def _key_hash(data, a, b, node):
    return _hash(data, a, b, node + 1)


@_jit
def _text_hash(data, a, b, escaped, scratch):
    if escaped:
        return _hash(scratch, 0, unescape(data, a, b, scratch, 0), 0)
    return _hash(data, a, b, 0)


@_jit
def _twice(hashes, a, b):
    """Whether a value occurs twice in hashes[a:b]; may sort them."""
    n = b - a
    if n < 2:
        return False
    if n <= 24:
        for i in range(a + 1, b):
            h = hashes[i]
            for j in range(a, i):
                if hashes[j] == h:
                    return True
        return False
    gap = n
    while gap > 1:  # Shell's sort, by Ciura's ratio: in place, and quick enough for any object
        gap = 1 if gap < 5 else gap * 5 // 11
        for i in range(a + gap, b):
            h = hashes[i]
            j = i
            while j >= a + gap and hashes[j - gap] > h:
                hashes[j] = hashes[j - gap]
                j -= gap
            hashes[j] = h
    for i in range(a + 1, b):
        if hashes[i] == hashes[i - 1]:
            return True
    return False


@_jit
def _skip(data, p, kinds, scratch, hashes, top, open_at, is_object):
    """From a value's first byte: (position behind it, error). Checks it whole, duplicate keys too.

    `hashes[top:]`, `open_at` and `is_object` are its stacks.
    """
    depth = 0
    floor = top
    while True:
        # a value
        c = data[p]
        if c == 123 or c == 91:
            if depth == DEEPEST:
                return p, DEEP
            open_at[depth] = top
            is_object[depth] = c == 123
            depth += 1
            p = _blank(data, p + 1)
            if data[p] == c + 2:
                p += 1
                depth -= 1
            elif c == 123:
                q, top, error = _key(data, p, kinds, scratch, hashes, top)
                if error != 0:
                    return q, error
                p = q
                continue
            else:
                continue
        elif c == QUOTE:
            q, _escaped, error = _string(data, p + 1, kinds)
            if error != 0:
                return q, error
            p = q + 1
        elif c == 45 or 48 <= c <= 57:
            q, _whole = _number(data, p)
            if q < 0:
                return p, _word(data, p)
            p = q
        else:
            n = _literal(data, p)
            if n == 0:
                return p, _word(data, p)
            p += n
        # behind a value
        while True:
            if depth == 0:
                return p, 0
            p = _blank(data, p)
            c = data[p]
            if c == 44:
                p = _blank(data, p + 1)
                if is_object[depth - 1]:
                    q, top, error = _key(data, p, kinds, scratch, hashes, top)
                    if error != 0:
                        return q, error
                    p = q
                break
            if is_object[depth - 1]:
                if c != 125:
                    return p, CUT if c == NEWLINE else BAD_JSON
                if _twice(hashes, open_at[depth - 1], top):
                    return p, DUPLICATE
            elif c != 93:
                return p, CUT if c == NEWLINE else BAD_JSON
            depth -= 1
            top = open_at[depth]
            p += 1
    return floor, 0


@_jit
def _key(data, p, kinds, scratch, hashes, top):
    """A key and its colon: (position of the value, new top of the hashes, error)."""
    if data[p] != QUOTE:
        return p, top, CUT if data[p] == NEWLINE else BAD_JSON
    q, escaped, error = _string(data, p + 1, kinds)
    if error != 0:
        return q, top, error
    hashes[top] = _text_hash(data, p + 1, q, escaped, scratch)
    top += 1
    p = _blank(data, q + 1)
    if data[p] != 58:
        return p, top, CUT if data[p] == NEWLINE else BAD_JSON
    return _blank(data, p + 1), top, 0


@_jit
def _word(data, p):
    """What is wrong where a value should begin."""
    c = data[p]
    if c == NEWLINE:
        return CUT
    if (c == 45 and data[p + 1] == 73) or c == 73 or c == 78:
        return CONSTANT
    if c == 45 or 48 <= c <= 57 or c == 43 or c == 46:
        return BAD_NUMBER
    return BAD_JSON


@_jit
def _other(data, p, code):
    """The code where another kind of value was expected; what is no JSON at all is said first."""
    c = data[p]
    if c == QUOTE or c == 123 or c == 91 or _literal(data, p) > 0:
        return code
    if c == 45 or 48 <= c <= 57:
        end, _whole = _number(data, p)
        if end > 0:
            return code
    return _word(data, p)


@_jit
def shred(
    data,
    end,
    expected,
    nodes,
    keys,
    slots,
    slot_hash,
    last,
    counts,
    tape,
    lines,
    bads,
    notes,
    kinds,
    scratch,
    hashes,
    open_at,
    is_object,
    frame_node,
    frame_row,
    frame_stamp,
    frame_prev,
    frame_top,
    state,
):
    """Shreds lines from `state[POS]` to `end`: DONE, EXPAND (of `state[NODE]`) or FULL (a table is full).

    After EXPAND and FULL the caller mends the plan or the table and calls again: it goes on with the same
    line. `tape` has 4 values an event: node, row, a, b. `lines[row]` is the line of a row.
    """
    mask = np.uint64(slots.size - 1)
    pos = state[POS]
    line = state[LINE]
    rows = state[ROWS]
    tape_at = state[TAPE]
    notes_at = state[NOTES]
    stamp = state[STAMP]
    bad_at = state[BADS]
    outcome = DONE

    while pos < end:
        pos = _blank(data, pos)
        if data[pos] == NEWLINE:
            pos += 1
            line += 1
            continue
        if bad_at == bads.shape[0]:
            outcome = FULL
            break
        start = pos
        tape_start = tape_at
        notes_start = notes_at
        error = 0
        found = -1  # the member in whose value the error lies
        stop = 0
        depth = 0
        top = 0
        p = pos
        if data[p] != 123:
            _q, error = _skip(data, p, kinds, scratch, hashes, 0, open_at, is_object)
            if error == 0:
                error = NOT_RESOURCE
            else:
                p = _q
        else:
            p = _blank(data, p + 1)
            frame_node[0] = 0
            frame_row[0] = rows
            stamp += 1
            frame_stamp[0] = stamp
            frame_prev[0] = -1
            frame_top[0] = 0
            depth = 1
            if data[p] == 125:
                p += 1
                depth = 0
                error = NO_TYPE
        while depth > 0 and error == 0:
            # --- a member of the structure on top: p is at its key ---
            found = -1
            around = frame_node[depth - 1]
            row = frame_row[depth - 1]
            prev = frame_prev[depth - 1]
            if data[p] != QUOTE:
                error = CUT if data[p] == NEWLINE else BAD_JSON
                break
            p += 1
            key_start = p
            child = nodes[around, FIRST] if prev < 0 else nodes[prev, NEXT]
            hit = False
            if child >= 0:
                length = nodes[child, KEY_LENGTH]
                at = nodes[child, KEY]
                hit = True
                for i in range(length):
                    if data[p + i] != keys[at + i]:
                        hit = False
                        break
                if hit and data[p + length] == QUOTE:
                    p += length
                else:
                    hit = False
            if not hit:
                q, escaped, error = _string(data, p, kinds)
                if error != 0:
                    p = q
                    break
                if escaped:
                    n = unescape(data, p, q, scratch, 0)
                    h = _key_hash(scratch, 0, n, around)
                else:
                    n = q - p
                    h = _key_hash(data, p, q, around)
                slot = h & mask
                child = -1
                while slots[slot] >= 0:
                    if slot_hash[slot] == h:
                        candidate = slots[slot]
                        if nodes[candidate, PARENT] == around and nodes[candidate, KEY_LENGTH] == n:
                            at = nodes[candidate, KEY]
                            same = True
                            for i in range(n):
                                c = scratch[i] if escaped else data[p + i]
                                if c != keys[at + i]:
                                    same = False
                                    break
                            if same:
                                child = candidate
                                break
                    slot = (slot + np.uint64(1)) & mask
                p = q
                if child >= 0:
                    if prev < 0:
                        nodes[around, FIRST] = child
                    else:
                        nodes[prev, NEXT] = child
            key_end = p
            p = _blank(data, p + 1)
            if data[p] != 58:
                error = CUT if data[p] == NEWLINE else BAD_JSON
                break
            p = _blank(data, p + 1)
            if child >= 0:
                if last[child] == frame_stamp[depth - 1]:
                    error = DUPLICATE
                    found = child
                    break
                last[child] = frame_stamp[depth - 1]
                frame_prev[depth - 1] = child
            if child < 0 or (data[p] == 110 and nodes[child, KIND] != TYPE and _literal(data, p) == 4):
                # --- unknown, or null: kept with its place ---
                if notes_at + 8 + 2 * FRAMES > notes.size:
                    outcome = FULL
                    stop = 1
                    break
                if child < 0:
                    hashes[top] = _text_hash(data, key_start, key_end, True, scratch)
                    top += 1
                value_start = p
                q, error = _skip(data, p, kinds, scratch, hashes, top, open_at, is_object)
                p = q
                if error != 0:
                    break
                notes[notes_at] = rows
                notes[notes_at + 1] = key_start
                notes[notes_at + 2] = key_end
                notes[notes_at + 3] = value_start
                notes[notes_at + 4] = p
                notes[notes_at + 5] = depth
                notes_at += 6
                for i in range(depth):
                    notes[notes_at] = frame_node[i]
                    if nodes[frame_node[i], KIND] == LIST:
                        item = nodes[frame_node[i], ITEM]
                        # The item that is open is the newest of its space.
                        notes[notes_at + 1] = counts[nodes[item, SPACE]] - 1 - tape[4 * frame_row[i] + 2]
                    else:
                        notes[notes_at + 1] = -1
                    notes_at += 2
            else:
                found = child
                kind = nodes[child, KIND]
                c = data[p]
                if kind == TEXT or kind == DATE:
                    if c != QUOTE:
                        error = _other(data, p, NOT_STRING)
                        break
                    q, escaped, error = _string(data, p + 1, kinds)
                    if error != 0:
                        p = q
                        break
                    tape[4 * tape_at] = child
                    tape[4 * tape_at + 1] = row
                    tape[4 * tape_at + 2] = p + 1
                    tape[4 * tape_at + 3] = q | ESCAPED if escaped else q
                    tape_at += 1
                    p = q + 1
                elif kind == STRUCT:
                    if c != 123:
                        error = _other(data, p, NOT_OBJECT)
                        break
                    if nodes[child, EXPANDED] == 0:
                        state[NODE] = child
                        outcome = EXPAND
                        stop = 1
                        break
                    tape[4 * tape_at] = child
                    tape[4 * tape_at + 1] = row
                    tape_at += 1
                    if depth == FRAMES:
                        error = DEEP
                        break
                    frame_node[depth] = child
                    frame_row[depth] = row
                    stamp += 1
                    frame_stamp[depth] = stamp
                    frame_prev[depth] = -1
                    frame_top[depth] = top
                    depth += 1
                    p = _blank(data, p + 1)
                    if data[p] != 125:
                        continue
                    # The empty structure is closed below.
                elif kind == LIST:
                    if c != 91:
                        error = _other(data, p, NOT_ARRAY)
                        break
                    item = nodes[child, ITEM]
                    space = nodes[item, SPACE]
                    header = tape_at
                    first = counts[space]
                    tape[4 * header] = child
                    tape[4 * header + 1] = row
                    tape[4 * header + 2] = first
                    tape[4 * header + 3] = 0
                    tape_at += 1
                    p = _blank(data, p + 1)
                    if data[p] == 93:
                        p += 1
                    elif nodes[item, KIND] == STRUCT:
                        if depth == FRAMES:
                            error = DEEP
                            break
                        frame_node[depth] = child
                        frame_row[depth] = header
                        depth += 1
                        # Items that are null, and the first that is not.
                        entered = False
                        while True:
                            if data[p] == 123:
                                entered = True
                                break
                            if nodes[child, NULLS] == 0 or data[p] != 110 or _literal(data, p) == 0:
                                counts[space] += 1
                                error = (
                                    NULL_ITEM
                                    if data[p] == 110 and _literal(data, p) == 4
                                    else _other(data, p, NOT_OBJECT)
                                )
                                break
                            counts[space] += 1
                            p = _blank(data, p + 4)
                            if data[p] == 44:
                                p = _blank(data, p + 1)
                                continue
                            if data[p] == 93:
                                break
                            error = CUT if data[p] == NEWLINE else BAD_JSON
                            break
                        if error != 0:
                            break
                        if entered:
                            if nodes[item, EXPANDED] == 0:
                                state[NODE] = item
                                outcome = EXPAND
                                stop = 1
                                break
                            if depth == FRAMES:
                                error = DEEP
                                break
                            tape[4 * tape_at] = item
                            tape[4 * tape_at + 1] = counts[space]
                            tape_at += 1
                            frame_node[depth] = item
                            frame_row[depth] = counts[space]
                            counts[space] += 1
                            stamp += 1
                            frame_stamp[depth] = stamp
                            frame_prev[depth] = -1
                            frame_top[depth] = top
                            depth += 1
                            p = _blank(data, p + 1)
                            if data[p] != 125:
                                continue
                        else:
                            # Nulls only: the list ends here.
                            tape[4 * header + 3] = counts[space] - first
                            depth -= 1
                            p += 1
                    else:
                        item_kind = nodes[item, KIND]
                        while True:
                            c = data[p]
                            if c == 110 and _literal(data, p) == 4:
                                p += 4
                            elif item_kind == TEXT or item_kind == DATE:
                                if c != QUOTE:
                                    error = _other(data, p, NOT_STRING)
                                    break
                                q, escaped, error = _string(data, p + 1, kinds)
                                if error != 0:
                                    p = q
                                    break
                                tape[4 * tape_at] = item
                                tape[4 * tape_at + 1] = counts[space]
                                tape[4 * tape_at + 2] = p + 1
                                tape[4 * tape_at + 3] = q | ESCAPED if escaped else q
                                tape_at += 1
                                p = q + 1
                            else:
                                p, error = _simple(data, p, item_kind, item, counts[space], tape, tape_at)
                                if error != 0:
                                    break
                                tape_at += 1
                            counts[space] += 1
                            p = _blank(data, p)
                            if data[p] == 44:
                                p = _blank(data, p + 1)
                                continue
                            if data[p] == 93:
                                p += 1
                                break
                            error = CUT if data[p] == NEWLINE else BAD_JSON
                            break
                        if error != 0:
                            # For the path: which item.
                            if depth < FRAMES:
                                frame_node[depth] = child
                                frame_row[depth] = header
                                depth += 1
                                counts[space] += 1
                            break
                        tape[4 * header + 3] = counts[space] - first
                elif kind == RAW:
                    q, error = _skip(data, p, kinds, scratch, hashes, top, open_at, is_object)
                    if error != 0:
                        p = q
                        break
                    tape[4 * tape_at] = child
                    tape[4 * tape_at + 1] = row
                    tape[4 * tape_at + 2] = p
                    tape[4 * tape_at + 3] = q
                    tape_at += 1
                    p = q
                elif kind == TYPE:
                    if c != QUOTE:
                        error = _other(data, p, NOT_STRING)
                        break
                    q, escaped, error = _string(data, p + 1, kinds)
                    if error != 0:
                        p = q
                        break
                    n = q - p - 1
                    a = p + 1
                    same = True
                    if escaped:
                        n = unescape(data, a, q, scratch, 0)
                    if n != expected.size:
                        same = False
                    else:
                        for i in range(n):
                            if (scratch[i] if escaped else data[a + i]) != expected[i]:
                                same = False
                                break
                    if not same:
                        error = WRONG_TYPE
                        break
                    tape[4 * tape_at] = child
                    tape[4 * tape_at + 1] = row
                    tape[4 * tape_at + 2] = a
                    tape[4 * tape_at + 3] = q | ESCAPED if escaped else q
                    tape_at += 1
                    p = q + 1
                else:
                    p, error = _simple(data, p, kind, child, row, tape, tape_at)
                    if error != 0:
                        break
                    tape_at += 1
                found = -1
            # --- behind a value: close what ends here ---
            while True:
                p = _blank(data, p)
                c = data[p]
                node = frame_node[depth - 1]
                if nodes[node, KIND] == LIST:
                    header = frame_row[depth - 1]
                    item = nodes[node, ITEM]
                    space = nodes[item, SPACE]
                    if c == 44:
                        p = _blank(data, p + 1)
                        if data[p] == 110 and nodes[node, NULLS] != 0 and _literal(data, p) == 4:
                            counts[space] += 1
                            p += 4
                            continue
                        if data[p] != 123:
                            counts[space] += 1
                            if data[p] == 110 and _literal(data, p) == 4:
                                error = NULL_ITEM
                            else:
                                error = _other(data, p, NOT_OBJECT)
                            break
                        tape[4 * tape_at] = item
                        tape[4 * tape_at + 1] = counts[space]
                        tape_at += 1
                        if depth == FRAMES:
                            error = DEEP
                            break
                        if nodes[item, EXPANDED] == 0:
                            state[NODE] = item
                            outcome = EXPAND
                            stop = 1
                            break
                        frame_node[depth] = item
                        frame_row[depth] = counts[space]
                        counts[space] += 1
                        stamp += 1
                        frame_stamp[depth] = stamp
                        frame_prev[depth] = -1
                        frame_top[depth] = top
                        depth += 1
                        p = _blank(data, p + 1)
                        if data[p] == 125:
                            continue
                        break
                    if c != 93:
                        error = CUT if c == NEWLINE else BAD_JSON
                        break
                    tape[4 * header + 3] = counts[space] - tape[4 * header + 2]
                    depth -= 1
                    p += 1
                    continue
                if c == 44:
                    p = _blank(data, p + 1)
                    break
                if c != 125:
                    error = CUT if c == NEWLINE else BAD_JSON
                    break
                if top > frame_top[depth - 1]:
                    if _twice(hashes, frame_top[depth - 1], top):
                        error = DUPLICATE
                        break
                    top = frame_top[depth - 1]
                depth -= 1
                p += 1
                if depth == 0:
                    break
            if error != 0 or stop != 0:
                break
        if stop != 0:
            # The same line again, when the caller has mended the tables.
            _roll_back(tape, tape_start, tape_at, nodes, counts)
            tape_at = tape_start
            notes_at = notes_start
            break
        if error == 0:
            if last[1] != frame_stamp[0]:
                error = NO_TYPE
            else:
                p = _blank(data, p)
                if data[p] != NEWLINE:
                    error = TRAILING
        if error == 0:
            lines[rows] = line
            rows += 1
            pos = p + 1
            line += 1
            continue
        # --- a bad line: report it with its path, undo it, go on behind it ---
        bads[bad_at, 0] = line
        bads[bad_at, 1] = start
        bads[bad_at, 3] = error
        bads[bad_at, 4] = p
        bads[bad_at, 5] = found
        bads[bad_at, 6] = depth
        for i in range(depth):
            node = frame_node[i]
            bads[bad_at, 8 + 2 * i] = node
            if nodes[node, KIND] == LIST:
                space = nodes[nodes[node, ITEM], SPACE]
                bads[bad_at, 9 + 2 * i] = counts[space] - 1 - tape[4 * frame_row[i] + 2]
            else:
                bads[bad_at, 9 + 2 * i] = -1
        _roll_back(tape, tape_start, tape_at, nodes, counts)
        tape_at = tape_start
        notes_at = notes_start
        p = start
        while data[p] != NEWLINE:
            p += 1
        bads[bad_at, 2] = p
        bad_at += 1
        pos = p + 1
        line += 1

    state[POS] = pos
    state[LINE] = line
    state[ROWS] = rows
    state[TAPE] = tape_at
    state[NOTES] = notes_at
    state[STAMP] = stamp
    state[BADS] = bad_at
    counts[0] = rows
    return outcome


@_jit
def _simple(data, p, kind, node, row, tape, tape_at):
    """A boolean, an integer or a decimal: (position behind it, error)."""
    if kind == BOOLEAN:
        n = _literal(data, p)
        if n == 0 or data[p] == 110:
            return p, _other(data, p, NOT_BOOLEAN)
        tape[4 * tape_at + 2] = 1 if n == 4 else 0
        q = p + n
    else:
        c = data[p]
        wrong = NOT_INTEGER if kind == INTEGER else NOT_NUMBER
        if c != 45 and not (48 <= c <= 57):
            return p, _other(data, p, NOT_NUMBER)
        q, whole = _number(data, p)
        if q < 0:
            return p, _word(data, p)
        if kind == INTEGER:
            negative = c == 45
            at = p + 1 if negative else p
            if not whole or q - at > 10:
                return p, wrong
            value = 0
            while at < q:
                value = value * 10 + (np.int64(data[at]) - 48)
                at += 1
            if negative:
                value = -value
            if value > 2147483647 or value < -2147483648:
                return p, wrong
            tape[4 * tape_at + 2] = value
        else:
            tape[4 * tape_at + 2] = p
    tape[4 * tape_at] = node
    tape[4 * tape_at + 1] = row
    tape[4 * tape_at + 3] = q
    return q, 0


@_jit
def _roll_back(tape, begin, end, nodes, counts):
    for k in range(end - 1, begin - 1, -1):
        node = tape[4 * k]
        if nodes[node, KIND] == LIST:
            counts[nodes[nodes[node, ITEM], SPACE]] = tape[4 * k + 2]


# --- from the tape to Arrow buffers ---


@_jit
def measure(tape, count, nodes, events, sizes):
    """Events of each node, and bytes of its texts (an upper bound where they hold escapes)."""
    for k in range(count):
        node = tape[4 * k]
        events[node] += 1
        kind = nodes[node, KIND]
        if kind == TEXT or kind == DATE or kind == DECIMAL or kind == RAW or kind == TYPE:
            sizes[node] += (tape[4 * k + 3] & ~ESCAPED) - tape[4 * k + 2]


@_jit
def fill(data, tape, count, nodes, layout, arena, arena32, arena64, filled, written):
    """Writes every event's value where `layout` says; gaps become nulls.

    `filled` and `written` are zeros, one for each node.
    """
    size = filled.size
    for k in range(count):
        node = tape[4 * k]
        row = np.int64(tape[4 * k + 1])
        kind = nodes[node, KIND]
        arena[layout[node, VALIDITY] + (row >> 3)] |= np.uint8(1 << (row & 7))
        if kind == TEXT or kind == DATE or kind == DECIMAL or kind == RAW or kind == TYPE:
            at = written[node]
            offsets = layout[node, OFFSETS]
            for i in range(filled[node], row + 1):
                arena32[offsets + i] = at
            filled[node] = row + 1
            a = np.int64(tape[4 * k + 2])
            b = np.int64(tape[4 * k + 3])
            begin = layout[node, VALUES] + at
            if b & ESCAPED:
                o = unescape(data, a, b & ~ESCAPED, arena, begin)
            else:
                o = begin + (b - a)
                for i in range(b - a):
                    arena[begin + i] = data[a + i]
            written[node] = o - layout[node, VALUES]
            if kind == DATE:
                ok, start, end = _instants(arena, begin, o)
                if ok:
                    at64 = layout[node, STARTS] + row
                    arena64[at64] = start
                    arena64[at64 + layout[node, LENGTH]] = end
                    arena[layout[node, DATED] + (row >> 3)] |= np.uint8(1 << (row & 7))
                else:
                    layout[node, UNDATED] += 1
        elif kind == LIST:
            first = tape[4 * k + 2]
            offsets = layout[node, OFFSETS]
            for i in range(filled[node], row + 1):
                arena32[offsets + i] = first
            filled[node] = row + 1
            written[node] = first + tape[4 * k + 3]
        elif kind == INTEGER:
            arena32[layout[node, OFFSETS] + row] = tape[4 * k + 2]
        elif kind == BOOLEAN:
            if tape[4 * k + 2] != 0:
                arena[layout[node, VALUES] + (row >> 3)] |= np.uint8(1 << (row & 7))
    for node in range(size):
        kind = nodes[node, KIND]
        if layout[node, LENGTH] >= 0 and (
            kind == TEXT or kind == DATE or kind == DECIMAL or kind == RAW or kind == TYPE or kind == LIST
        ):
            offsets = layout[node, OFFSETS]
            for i in range(filled[node], layout[node, LENGTH] + 1):
                arena32[offsets + i] = written[node]


# --- dates ---


@_jit
def _digits(data, a, n):
    value = 0
    for i in range(a, a + n):
        c = data[i]
        if c < 48 or c > 57:
            return -1
        value = value * 10 + (np.int64(c) - 48)
    return value


@_jit
def _days(year, month, day):
    """Days from 1970-01-01 in the proleptic Gregorian calendar."""
    y = year - 1 if month <= 2 else year
    era = y // 400
    yoe = y - era * 400
    mp = (month + 9) % 12
    doy = (153 * mp + 2) // 5 + day - 1
    doe = yoe * 365 + yoe // 4 - yoe // 100 + doy
    return era * 146097 + doe - 719468


@_jit
def _month_length(year, month):
    if month == 2:
        return 29 if (year % 4 == 0 and year % 100 != 0) or year % 400 == 0 else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


_DAY: Final = 86_400_000_000
_FIRST: Final = -62_135_596_800_000_000
"""0001-01-01 and 9999-12-31T23:59:59.999999 in microseconds: what readers can show."""
_LAST: Final = 253_402_300_799_999_999


@_jit
def _instants(data, a, b):
    """(is a date, earliest, latest) of a FHIR date, dateTime or instant in data[a:b], in microseconds UTC."""
    none = (False, np.int64(0), np.int64(0))
    n = b - a
    if n < 4:
        return none
    year = _digits(data, a, 4)
    if year < 1:
        return none
    if n == 4:
        return True, _days(year, 1, 1) * _DAY, _days(year + 1, 1, 1) * _DAY - 1
    if n < 7 or data[a + 4] != 45:
        return none
    month = _digits(data, a + 5, 2)
    if month < 1 or month > 12:
        return none
    if n == 7:
        start = _days(year, month, 1) * _DAY
        return True, start, start + _month_length(year, month) * _DAY - 1
    if n < 10 or data[a + 7] != 45:
        return none
    day = _digits(data, a + 8, 2)
    if day < 1 or day > _month_length(year, month):
        return none
    start = _days(year, month, day) * _DAY
    if n == 10:
        return True, start, start + _DAY - 1
    if n < 16 or data[a + 10] != 84 or data[a + 13] != 58:
        return none
    hour = _digits(data, a + 11, 2)
    minute = _digits(data, a + 14, 2)
    if hour < 0 or hour > 23 or minute < 0 or minute > 59:
        return none
    start += (hour * 3600 + minute * 60) * 1_000_000
    width = np.int64(60_000_000)
    p = a + 16
    if p < b and data[p] == 58:
        if p + 3 > b:
            return none
        second = _digits(data, p + 1, 2)
        if second < 0 or second > 59:
            return none
        start += second * 1_000_000
        width = np.int64(1_000_000)
        p += 3
        if p < b and data[p] == 46:
            p += 1
            first = p
            while p < b and 48 <= data[p] <= 57:
                if width > 1:
                    width //= 10
                    start += (np.int64(data[p]) - 48) * width
                p += 1
            if p == first:
                return none
    if p < b:
        if data[p] == 90:
            p += 1
        elif data[p] == 43 or data[p] == 45:
            if p + 6 > b or data[p + 3] != 58:
                return none
            hours = _digits(data, p + 1, 2)
            minutes = _digits(data, p + 4, 2)
            if hours < 0 or minutes < 0 or minutes > 59 or 60 * hours + minutes > 14 * 60:
                return none
            offset = (hours * 3600 + minutes * 60) * 1_000_000
            start = start - offset if data[p] == 43 else start + offset
            p += 6
    if p != b or start < _FIRST or start + width - 1 > _LAST:
        return none
    return True, start, start + width - 1


# --- the way in ---


@intrinsic
def _pointer(_context, address, like):
    """An address as a pointer to items of the type of `like`."""
    pointer = types.CPointer(like.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(address, like), generate


@_jit
def _flat(call, i, kind):
    """Array i of a call: its address and its length stand in the call."""
    return carray(_pointer(call[2 * i + 2], kind), (call[2 * i + 3],))


@_jit
def _table(call, i, kind, columns):
    return carray(_pointer(call[2 * i + 2], kind), (call[2 * i + 3] // columns, columns))


def entry(address):
    """Runs what the int64 values at `address` ask for, and returns what that returns.

    They are: the function, a number for it, then address and length of each array in the order of the
    function's parameters.
    """
    call = carray(_pointer(address, np.int64), (64,))
    function = call[0]
    if function == SHRED:
        return shred(
            _flat(call, 0, np.uint8),
            call[1],
            _flat(call, 1, np.uint8),
            _table(call, 2, np.int32, NODE_COLUMNS),
            _flat(call, 3, np.uint8),
            _flat(call, 4, np.int32),
            _flat(call, 5, np.uint64),
            _flat(call, 6, np.int64),
            _flat(call, 7, np.int64),
            _flat(call, 8, np.int32),
            _flat(call, 9, np.int32),
            _table(call, 10, np.int64, BAD_COLUMNS),
            _flat(call, 11, np.int32),
            _flat(call, 12, np.uint8),
            _flat(call, 13, np.uint8),
            _flat(call, 14, np.uint64),
            _flat(call, 15, np.int64),
            _flat(call, 16, np.uint8),
            _flat(call, 17, np.int32),
            _flat(call, 18, np.int32),
            _flat(call, 19, np.int64),
            _flat(call, 20, np.int32),
            _flat(call, 21, np.int64),
            _flat(call, 22, np.int64),
        )
    if function == MEASURE:
        measure(
            _flat(call, 0, np.int32),
            call[1],
            _table(call, 1, np.int32, NODE_COLUMNS),
            _flat(call, 2, np.int64),
            _flat(call, 3, np.int64),
        )
    if function == FILL:
        fill(
            _flat(call, 0, np.uint8),
            _flat(call, 1, np.int32),
            call[1],
            _table(call, 2, np.int32, NODE_COLUMNS),
            _table(call, 3, np.int64, LAYOUT_COLUMNS),
            _flat(call, 4, np.uint8),
            _flat(call, 5, np.int32),
            _flat(call, 6, np.int64),
            _flat(call, 7, np.int64),
            _flat(call, 8, np.int64),
        )
    if function == THIN:
        return thin_page(
            _flat(call, 0, np.uint8),
            _flat(call, 1, np.int64),
            _flat(call, 2, np.uint8),
            _flat(call, 3, np.uint8),
            _flat(call, 4, np.uint8),
            _flat(call, 5, np.uint32),
            _flat(call, 6, np.uint8),
            _flat(call, 7, np.int64),
        )
    return 0


def compiled() -> tuple[str, bytes]:
    """Name and machine code (an object file) of `entry` for this processor. Takes about half a minute."""
    signature = types.int64(types.int64)
    compiler: Any = numba.njit
    dispatcher = compiler(
        signature,
        nogil=True,
        boundscheck=False,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )(entry)
    result = dispatcher.overloads[(types.int64,)]
    _name, _kind, (code, _bitcode) = result.library.serialize_using_object_code()
    return result.fndesc.llvm_func_name, code
