"""Reads the body of an answer that is no file, unpacked here: never more in memory than was asked for.

httpx unpacks each piece of an answer as a whole, and several times where `Content-Encoding` says
`gzip, gzip, gzip`: there 64 kB can become gigabytes before anybody may look.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import httpx

ACCEPTED = "gzip"
"""What requests for such answers send as `Accept-Encoding`."""

PIECE = 1 << 16

OF_THE_TRANSFER = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers, in lower case, that are not true any more of a body that was read through `pieces`."""

_PLAIN = ("", "identity")
_GZIP = ("gzip", "x-gzip")


def pieces(answer: httpx.Response) -> Iterator[bytes]:
    """The body in pieces of at most 64 kB, as they come; `answer` is not read yet.

    Raises `httpx.DecodingError` for damaged gzip and for an encoding that was not asked for, and what httpx
    raises for a broken connection. Stopping early leaves the rest unread.
    """
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    if encoding in _PLAIN:
        for chunk in answer.iter_raw():
            yield from (chunk[start : start + PIECE] for start in range(0, len(chunk), PIECE))
    elif encoding in _GZIP:
        yield from _unzipped(answer)
    else:
        raise httpx.DecodingError("an encoding that was not asked for", request=answer.request)


def _unzipped(answer: httpx.Response) -> Iterator[bytes]:
    gunzip = zlib.decompressobj(wbits=31)
    for chunk in answer.iter_raw():
        data = chunk
        while data and not gunzip.eof:
            try:
                piece = gunzip.decompress(data, PIECE)
            except zlib.error:
                raise httpx.DecodingError("damaged gzip", request=answer.request) from None
            data = gunzip.unconsumed_tail
            yield piece
    if not gunzip.eof and answer.num_bytes_downloaded:
        raise httpx.DecodingError("gzip that is cut short", request=answer.request)
