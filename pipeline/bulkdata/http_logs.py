"""Keeps signed URLs out of the log files: httpx logs whole URLs, httpcore all answer headers."""

from __future__ import annotations

from pipeline.log_redaction import keep_logs_clean

__all__ = ["keep_logs_clean"]
