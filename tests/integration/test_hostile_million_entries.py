"""A manifest of a million entries: stored and matched within bounds; one more entry is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from file_server import EXPORT, Ask, FileServer, Say, configured

FILES = 200_000
"""A million would cost five times the CPU time and the memory of these: both grow with the files alone."""
LIMIT = 1_000_000
"""`downloads.limits.files` where nothing is configured."""
MOST_OF_A_FILE = 4.0
"""Kilobytes of memory; measured 2.4: its entry as JSON, as the stored file and as the live one."""
BEFORE = 100.0
"""Megabytes of the process itself."""
REFUSED = 1_000.0
"""Megabytes for a manifest of one entry too many: 110 MB of JSON, read and parsed; measured 605."""

PROCESS = """
    import json, os, re, sys
    from pathlib import Path
    sys.path[:0] = [{root!r}, {tests!r}]
    from file_server import EXPORT, session_of
    from pipeline.config import load_config
    from pipeline.errors import VerificationFailed
    from pipeline.exports.attempt import claim_attempt
    from pipeline.exports.manifests import live_manifest, open_manifest, stored_manifest
    from pipeline.exports.request import request_export

    session = session_of(load_config(Path({folder!r}) / "exports.yaml"))
    request_export(session, EXPORT)
    attempt = claim_attempt(session, EXPORT)
    files = 0
    said = ""
    try:
        files = len(open_manifest(session, attempt).files)
        live = live_manifest(session, attempt)
        last, _ = live.file(("output", files - 1))
        live.expire(last)
        again, _ = live.file(("output", files - 1))
        assert again is not last and again.url.partition("?")[0] == last.url.partition("?")[0]
        assert again.url != last.url
    except VerificationFailed as error:
        said = str(error)
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
    print(json.dumps({{"files": files, "said": said, "peak": peak, "cpu": sum(os.times()[:2])}}))
"""


def signed_manifest(server: FileServer, files: int, reading: int) -> bytes:
    """Links that are signed anew at every reading."""
    entries = ",".join(
        f'{{"type":"Patient","url":"{server.base}/files/{number}.ndjson?sig={reading:04d}{number:040d}","count":1}}'
        for number in range(files)
    )
    head = '{"transactionTime":"2026-01-01T02:00:00Z","requiresAccessToken":false,"error":[],"output":['
    return f"{head}{entries}]}}".encode()


def opened(folder: Path, files: int, seconds: float = 500.0) -> dict[str, Any]:
    """A process of its own reads the manifest, stores it, and matches it with one read again."""
    reading = 0

    class Server(FileServer):
        def _job(self, ask: Ask) -> Say:
            nonlocal reading
            if ask.method != "GET" or "$export" in ask.target:
                return super()._job(ask)
            reading += 1
            body = signed_manifest(self, files, reading)
            return Say(body, headers={"Content-Type": "application/json"})

    server = Server([])
    try:
        configured(folder, server)
        code = textwrap.dedent(PROCESS).format(
            root=str(Path(__file__).parents[2]), tests=str(Path(__file__).parent), folder=str(folder)
        )
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=seconds
        )
    finally:
        server.close()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_hundred_thousand_files_are_stored_and_matched_in_bounded_memory(tmp_path: Path) -> None:
    """Protocol 28 and 30: links are signed anew at each reading, and each file is found again."""
    found = opened(tmp_path, FILES)
    assert (found["files"], found["said"]) == (FILES, "")
    assert found["peak"] < BEFORE + FILES * MOST_OF_A_FILE / 1000
    facts = tmp_path / "lake" / "many" / "exports" / EXPORT
    text = (facts / "manifest.json").read_text()
    assert text.count("?sha256=") == FILES
    assert "sig=" not in text


def test_one_file_more_than_a_million_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    """`downloads.limits.files`, with words that name it."""
    found = opened(tmp_path, LIMIT + 1, 150.0)  # it takes 10; a million stored and matched far more
    assert found["files"] == 0
    assert "more than 1000000 files" in found["said"] and "downloads.limits.files" in found["said"]
    assert found["peak"] < REFUSED
    assert not list((tmp_path / "lake").glob("**/manifest*.json"))
