"""Keeps signed URLs out of the log files: httpx logs each request's whole URL, httpcore all answer
headers.
"""

from __future__ import annotations

import logging

from pipeline.auth.origins import printable


class _WithoutQueries(logging.Filter):
    """Cuts the query off each URL that httpx logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(printable(str(each)) if "://" in str(each) else each for each in record.args)
        return True


class _WithoutHeaders(logging.Filter):
    """Drops httpcore's debug lines that print headers (a Location may be signed)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "return_value=(" not in record.getMessage()


_URLS = _WithoutQueries()
_HEADERS = _WithoutHeaders()


def keep_logs_clean() -> None:
    """Install the filters; doing it again changes nothing."""
    logging.getLogger("httpx").addFilter(_URLS)
    for name in ("httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.connection"):
        logging.getLogger(name).addFilter(_HEADERS)
