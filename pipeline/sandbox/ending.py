"""How a server that was started as a process of its own is ended."""

from __future__ import annotations

import subprocess

_PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


def end(process: subprocess.Popen[bytes]) -> int:
    """End it with SIGTERM, then with SIGKILL; its exit code. One that has ended already is fine."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    code = process.wait()
    if process.stdin:
        process.stdin.close()
    return code
