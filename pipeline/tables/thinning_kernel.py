"""The native part of taking rows out of a Parquet page: levels and values are filtered as they are encoded.

Nothing is looked up in a dictionary and no text is looked into. Memory safety: numba checks no bounds, so
every read is checked against the page's end, and the caller gives `out` room for the worst case
(`room_for`). Returns 0, or -1 for a page that is damaged.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from pipeline.tables.codes import (
    PAGE_AT,
    PAGE_BITS,
    PAGE_BOOLEANS,
    PAGE_DEPTH,
    PAGE_DICTIONARY,
    PAGE_ENTRIES,
    PAGE_FIXED,
    PAGE_MODE,
    PAGE_REPEATS,
    PAGE_ROW,
    PAGE_ROWS,
    PAGE_TELLS,
    PAGE_TEXTS,
    PAGE_WIDTH,
)

_jit: Any = numba.njit(nogil=True, boundscheck=False, error_model="numpy")
_MOST_GROUPS: Final = 63
"""Eights of values in a bit-packed run, so that its head is one byte."""


@_jit
def _bits(most):
    """Bits that the numbers up to `most` take."""
    width = 0
    while most >> width:
        width += 1
    return width


@_jit
def _word(data, at):
    """Four bytes, little end first."""
    return (
        np.int64(data[at])
        | (np.int64(data[at + 1]) << 8)
        | (np.int64(data[at + 2]) << 16)
        | (np.int64(data[at + 3]) << 24)
    )


@_jit
def _unpack(data, at, end, width, count, values):
    """Reads `count` numbers of an RLE and bit-packed hybrid; returns where it ended, or -1."""
    done = 0
    mask = (np.int64(1) << width) - 1
    size = (width + 7) >> 3
    while done < count:
        head = np.int64(0)
        shift = 0
        while True:
            if at >= end or shift > 35:
                return -1
            byte = np.int64(data[at])
            at += 1
            head |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        if head & 1:
            length = (head >> 1) * 8
            stop = at + (head >> 1) * width
            length = min(length, count - done)
            # The last run may lack the bytes of what only fills it up.
            if at + ((length * width + 7) >> 3) > end or length == 0:
                return -1
            held = np.int64(0)
            have = 0
            place = at
            for i in range(length):
                while have < width:
                    held |= np.int64(data[place]) << have
                    place += 1
                    have += 8
                values[done + i] = held & mask
                held >>= width
                have -= width
            at = min(stop, end)
        else:
            length = min(head >> 1, count - done)
            if at + size > end or length == 0:
                return -1
            value = np.int64(0)
            for i in range(size):
                value |= np.int64(data[at + i]) << (8 * i)
            at += size
            for i in range(length):
                values[done + i] = value
        done += length
    return at


@_jit
def _same(values, at, count):
    """How many of the numbers from `at` on are equal, if at least eight are; else 0."""
    if at + 8 > count:
        return 0
    value = values[at]
    for i in range(1, 8):
        if values[at + i] != value:
            return 0
    length = 8
    while at + length < count and values[at + length] == value:
        length += 1
    return length


@_jit
def _pack(values, count, width, out, at):
    """Writes such a hybrid; returns where it ends."""
    size = (width + 7) >> 3
    i = 0
    while i < count:
        length = _same(values, i, count)
        if length:
            head = length << 1
            while head > 127:
                out[at] = (head & 127) | 128
                head >>= 7
                at += 1
            out[at] = head
            at += 1
            for k in range(size):
                out[at + k] = (np.int64(values[i]) >> (8 * k)) & 255
            at += size
            i += length
            continue
        place = at
        at += 1
        groups = 0
        held = np.int64(0)
        have = 0
        while True:
            for k in range(8):
                if i + k < count:
                    held |= np.int64(values[i + k]) << have
                have += width
                while have >= 8:
                    out[at] = held & 255
                    at += 1
                    held >>= 8
                    have -= 8
            i += 8
            groups += 1
            if i >= count or groups == _MOST_GROUPS or _same(values, i, min(count, i + 8)):
                break
        out[place] = (groups << 1) | 1
    return at


@_jit
def _levels(data, at, most, count, values):
    """Reads levels with their length before them; returns where they end, or -1."""
    if most == 0:
        for i in range(count):
            values[i] = 0
        return at
    if at + 4 > data.size:
        return -1
    end = at + 4 + _word(data, at)
    if end > data.size or end < at or _unpack(data, at + 4, end, _bits(most), count, values) < 0:
        return -1
    highest = 0
    for i in range(count):
        highest = max(highest, values[i])
    return -1 if highest > most else end


@_jit
def _copy(data, a, b, out, to):
    """Bytes `a` to `b`; places without a sign, which numba would ask about at each byte."""
    source, target = np.uint64(a), np.uint64(to)
    for k in range(np.uint64(b - a)):
        out[target + k] = data[source + k]
    return to + (b - a)


@_jit
def _alike(values, count):
    for i in range(1, count):
        if values[i] != values[0]:
            return False
    return True


@_jit
def _put_levels(values, count, most, out, at):
    if most == 0:
        return at
    return _put_length(out, at, _pack(values, count, _bits(most), out, at + 4))


@_jit
def _put_length(out, at, end):
    for k in range(4):
        out[at + k] = ((end - at - 4) >> (8 * k)) & 255
    return end


@_jit
def thin_page(data, page, keep, repeats, depths, numbers, out, told):
    """The page without the rows at which `keep` is 0.

    `page` holds what is known of it (`codes.PAGE_...`); of these its row, entries and rows, and where `out`
    ends, are written back. `repeats`, `depths` and `numbers` are room for a number for each entry. `told` has
    a count for each repetition level and then for each definition level, which is added to.
    """
    count, deepest, most = page[PAGE_ENTRIES], page[PAGE_DEPTH], page[PAGE_REPEATS]
    mode, size = page[PAGE_MODE], page[PAGE_WIDTH]
    at = _levels(data, 0, most, count, repeats)
    if at < 0:
        return -1
    at = _levels(data, at, deepest, count, depths)
    if at < 0:
        return -1
    end = data.size
    values = 0
    for i in range(count):
        if depths[i] == deepest:
            values += 1
    width = 1
    if mode == PAGE_DICTIONARY:
        if values:
            if at >= end:
                return -1
            width = np.int64(data[at])
            if width > 32 or _unpack(data, at + 1, end, width, values, numbers) < 0:
                return -1
    elif mode == PAGE_FIXED:
        if at + values * size > end:
            return -1
    elif mode == PAGE_BITS:
        if at + ((values + 7) >> 3) > end:
            return -1
        for i in range(values):
            numbers[i] = (data[at + (i >> 3)] >> (i & 7)) & 1
    elif mode == PAGE_BOOLEANS and values:
        if at + 4 > end or _unpack(data, at + 4, end, 1, values, numbers) < 0:
            return -1

    # What stays, moved together: levels and numbers here, other values from where they lie to the end of out.
    row, rows = page[PAGE_ROW], 0
    copied = mode == PAGE_TEXTS or mode == PAGE_FIXED
    kept = kept_values = 0
    source = span = at
    target = out.size - (end - at) if copied else out.size
    begin = target
    if most == 0 and row + count >= keep.size:
        return -1
    if most == 0 and not copied and _alike(depths, count):
        # The levels are right as they are.
        for i in range(count):
            kept += keep[row + 1 + i]
        if values:
            for i in range(count):
                numbers[kept_values] = numbers[i]
                kept_values += keep[row + 1 + i]
        row += count
        rows = kept
        told[0] += kept
        if count:
            told[1 + depths[0]] += kept
    else:
        value = 0
        for i in range(count):
            level = repeats[i]
            if level == 0:
                row += 1
                if row >= keep.size:
                    return -1
                rows += keep[row]
            elif row < 0:
                return -1
            stays = np.int64(keep[row])
            depth = depths[i]
            held = np.int64(depth == deepest)
            repeats[kept] = level
            depths[kept] = depth
            kept += stays
            if not copied:
                numbers[kept_values] = numbers[value]
            elif held:
                if mode == PAGE_TEXTS:
                    if source + 4 > end:
                        return -1
                    size = 4 + _word(data, source)
                if source + size > end:
                    return -1
                if not stays:
                    target = _copy(data, span, source, out, target)
                    span = source + size
                source += size
            value += held
            kept_values += stays & held
        target = _copy(data, span, source, out, target)
        for i in range(kept):
            told[repeats[i]] += 1
            told[most + 1 + depths[i]] += 1

    to = _put_levels(repeats, kept, most, out, 0)
    to = _put_levels(depths, kept, deepest, out, to)
    if copied:
        to = _copy(out, begin, target, out, to)
    elif mode == PAGE_DICTIONARY:
        out[to] = width
        to = _pack(numbers, kept_values, width, out, to + 1)
    elif mode == PAGE_BITS:
        for k in range((kept_values + 7) >> 3):
            out[to + k] = 0
        for i in range(kept_values):
            out[to + (i >> 3)] |= np.uint8(numbers[i] << (i & 7))
        to += (kept_values + 7) >> 3
    else:
        to = _put_length(out, to, _pack(numbers, kept_values, 1, out, to + 4))
    page[PAGE_ROW] = row
    page[PAGE_ROWS] = rows
    page[PAGE_ENTRIES] = kept
    page[PAGE_AT] = to
    page[PAGE_TELLS] = kept_values
    return 0
