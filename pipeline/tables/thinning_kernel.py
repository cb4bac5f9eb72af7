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
    PAGE_HELD,
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
def _eight(data, at):
    """Eight bytes, little end first; one load for the compiler."""
    return (
        np.int64(data[at])
        | (np.int64(data[at + 1]) << 8)
        | (np.int64(data[at + 2]) << 16)
        | (np.int64(data[at + 3]) << 24)
        | (np.int64(data[at + 4]) << 32)
        | (np.int64(data[at + 5]) << 40)
        | (np.int64(data[at + 6]) << 48)
        | (np.int64(data[at + 7]) << 56)
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
            # Eight bytes at a time, as long as they are there.
            safe = 0
            if width and at + 8 <= data.size:
                safe = min(length, ((data.size - at - 8) * 8) // width + 1)
            for i in range(safe):
                bit = i * width
                values[done + i] = (_eight(data, at + (bit >> 3)) >> (bit & 7)) & mask
            for i in range(safe, length):
                number = np.int64(0)
                for k in range(width):
                    bit = i * width + k
                    number |= ((np.int64(data[at + (bit >> 3)]) >> (bit & 7)) & 1) << k
                values[done + i] = number
            at = min(stop, end)
        else:
            length = min(head >> 1, count - done)
            if at + size > end or length == 0:
                return -1
            value = np.int64(0)
            for i in range(size):
                value |= np.int64(data[at + i]) << (8 * i)
            at += size
            for i in range(np.uint64(done), np.uint64(done + length)):
                values[i] = value
        done += length
    return at


@_jit
def _same(values, at, count):
    """How many of the numbers from `at` on are equal, if at least eight are; else 0."""
    if at + 8 > count:
        return 0
    begin, end = np.uint64(at), np.uint64(count)
    value = values[begin]
    for i in range(begin + np.uint64(1), begin + np.uint64(8)):
        if values[i] != value:
            return 0
    place = begin + np.uint64(8)
    while place < end and values[place] == value:
        place += np.uint64(1)
    return np.int64(place - begin)


@_jit
def _pack(values, i, count, width, out, at):
    """Writes the numbers from `i` to `count` as such a hybrid; returns where it ends."""
    size = (width + 7) >> 3
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
            if width <= 7 and i + 8 <= count:
                for k in range(8):
                    held |= np.int64(values[i + k]) << (k * width)
                for k in range(width):
                    out[at + k] = (held >> (8 * k)) & 255
                held = 0
                at += width
            else:
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
    """Reads levels with their length before them; returns where they end, or -1, and the level that all have.

    Where all are one run that level is not written to `values`; it is -1 where they differ.
    """
    if most == 0:
        return at, 0
    if at + 4 > data.size:
        return -1, -1
    end = at + 4 + _word(data, at)
    if end > data.size or end < at:
        return -1, -1
    if count:
        head = np.int64(0)
        place = at + 4
        shift = 0
        while place < end and shift <= 35:
            byte = np.int64(data[place])
            place += 1
            head |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                if head & 1 == 0 and head >> 1 >= count and place < end and data[place] <= most:
                    return end, np.int64(data[place])
                break
    if _unpack(data, at + 4, end, _bits(most), count, values) < 0:
        return -1, -1
    highest = 0
    for i in range(count):
        highest = max(highest, values[i])
    return (-1 if highest > most else end), -1


@_jit
def _copy(data, a, b, out, to):
    """Items `a` to `b`; places have no sign here and below, which numba would ask about at each of them."""
    source, target = np.uint64(a), np.uint64(to)
    for k in range(np.uint64(b - a)):
        out[target + k] = data[source + k]
    return to + (b - a)


@_jit
def _span(
    a, b, stays, data, depths, depth, repeats, repeat, numbers, out, count, deepest, mode, size, kept, found,
    value, source, target,
):  # fmt: skip
    """The entries from `a` to `b`, which all stay or all go: those that stay are copied behind `count`.

    Returns how many entries and values have stayed until then, and how many values there were, where their
    bytes end in `data` (-1: beyond its end), and in `out`.
    """
    values = 0
    if depth == deepest:
        values = b - a
    elif depth < 0:
        for i in range(np.uint64(a), np.uint64(b)):
            values += depths[i] == deepest
    stop = source
    if mode == PAGE_TEXTS:
        for _ in range(values):
            if stop + 4 > data.size:
                return kept, found, value, -1, target
            stop += 4 + _word(data, stop)
        if stop > data.size:
            return kept, found, value, -1, target
    elif mode == PAGE_FIXED:
        stop += values * size
    if stays:
        if depth < 0:
            _copy(depths, a, b, depths, count + kept)
        if repeat < 0:
            _copy(repeats, a, b, repeats, count + kept)
        if mode == PAGE_TEXTS or mode == PAGE_FIXED:
            target = _copy(data, source, stop, out, target)
        else:
            _copy(numbers, value, value + values, numbers, count + found)
        kept += b - a
        found += values
    return kept, found, value + values, stop, target


@_jit
def _put_levels(values, same, begin, end, most, out, at):
    if most == 0:
        return at
    if same < 0:
        return _put_length(out, at, _pack(values, begin, end, _bits(most), out, at + 4))
    to = at + 4
    head = (end - begin) << 1
    while head > 127:
        out[to] = (head & 127) | 128
        head >>= 7
        to += 1
    out[to] = head
    out[to + 1] = same
    return _put_length(out, at, to + 2)


@_jit
def _put_length(out, at, end):
    for k in range(4):
        out[at + k] = ((end - at - 4) >> (8 * k)) & 255
    return end


@_jit
def _count(values, begin, end, most, told, at):
    """How often each level is there; one after the other, many at a time."""
    for level in range(most + 1):
        found = 0
        for i in range(np.uint64(begin), np.uint64(end)):
            found += values[i] == level
        told[at + level] += found


@_jit
def thin_page(data, page, keep, repeats, depths, numbers, out, told):
    """The page without the rows at which `keep` is 0.

    `page` holds what is known of it (`codes.PAGE_...`); of these its row, entries and rows, and where `out`
    ends, are written back. `repeats`, `depths` and `numbers` are room for two numbers for each entry. `told`
    has a count for each repetition level and then for each definition level, which is added to.
    """
    count, deepest, most = page[PAGE_ENTRIES], page[PAGE_DEPTH], page[PAGE_REPEATS]
    mode, size = page[PAGE_MODE], page[PAGE_WIDTH]
    at, repeat = _levels(data, 0, most, count, repeats)
    if at < 0:
        return -1
    at, depth = _levels(data, at, deepest, count, depths)
    if at < 0:
        return -1
    end = data.size
    values = 0
    if depth == deepest:
        values = count
    elif depth < 0:
        for i in range(count):
            values += depths[i] == deepest
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

    # What stays: levels and numbers behind those that were read, other values at the end of `out`.
    row, rows = page[PAGE_ROW], 0
    copied = mode == PAGE_TEXTS or mode == PAGE_FIXED
    kept = found = value = 0
    source = at
    target = out.size - (end - at) if copied else out.size
    begin, span, stays = target, 0, False
    if repeat == 0:
        # Each entry is a row.
        if row + count >= keep.size:
            return -1
        first = np.uint64(row + 1)
        for i in range(count):
            now = keep[first + np.uint64(i)] != 0
            rows += now
            if now != stays:
                kept, found, value, source, target = _span(
                    span, i, stays, data, depths, depth, repeats, repeat, numbers, out, count, deepest, mode,
                    size, kept, found, value, source, target,
                )  # fmt: skip
                if source < 0:
                    return -1
                span, stays = i, now
        row += count
    else:
        if count and (repeat > 0 or repeats[0]):
            if row < 0:
                return -1
            stays = keep[row] != 0
        for i in range(count if repeat < 0 else 0):
            if repeats[i]:
                continue
            row += 1
            if row >= keep.size:
                return -1
            now = keep[row] != 0
            rows += now
            if now != stays:
                kept, found, value, source, target = _span(
                    span, i, stays, data, depths, depth, repeats, repeat, numbers, out, count, deepest, mode,
                    size, kept, found, value, source, target,
                )  # fmt: skip
                if source < 0:
                    return -1
                span, stays = i, now
    kept, found, value, source, target = _span(
        span, count, stays, data, depths, depth, repeats, repeat, numbers, out, count, deepest, mode, size,
        kept, found, value, source, target,
    )  # fmt: skip
    if source < 0:
        return -1
    if repeat < 0:
        _count(repeats, count, count + kept, most, told, 0)
    else:
        told[repeat] += kept
    if depth < 0:
        _count(depths, count, count + kept, deepest, told, most + 1)
    else:
        told[most + 1 + depth] += kept

    to = _put_levels(repeats, repeat, count, count + kept, most, out, 0)
    to = _put_levels(depths, depth, count, count + kept, deepest, out, to)
    if copied:
        to = _copy(out, begin, target, out, to)
    elif mode == PAGE_DICTIONARY:
        out[to] = width
        to = _pack(numbers, count, count + found, width, out, to + 1)
    elif mode == PAGE_BITS:
        for k in range((found + 7) >> 3):
            out[to + k] = 0
        for i in range(found):
            out[to + (i >> 3)] |= np.uint8(numbers[count + i] << (i & 7))
        to += (found + 7) >> 3
    else:
        to = _put_length(out, to, _pack(numbers, count, count + found, 1, out, to + 4))
    page[PAGE_ROW] = row
    page[PAGE_ROWS] = rows
    page[PAGE_ENTRIES] = kept
    page[PAGE_AT] = to
    page[PAGE_TELLS] = found
    page[PAGE_HELD] = values
    return 0
