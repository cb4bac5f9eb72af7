"""Files on their way hold patients' data: a killed process leaves none of them for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.lake.local import open_local
from pipeline.lake.spool import ABANDONED_ON_SHARED_SECONDS, private_folder

_HOLDING = """
import sys, time
from pathlib import Path
from pipeline.lake.spool import private_folder
with private_folder(Path(sys.argv[1]) if len(sys.argv) > 1 else None) as folder:
    (folder / "patients").write_text("Ann")
    print(folder, flush=True)
    time.sleep(600)
"""


def spooling(temporary: Path, *shared: str) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a file in its spool."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDING, *shared],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def aged(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder, (then, then))


def test_a_killed_processes_spool_is_removed_by_the_next_and_a_living_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, left = spooling(tmp_path)
    living, used = spooling(tmp_path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait(20)
        assert (left / "patients").read_text() == "Ann"
        aged(left, 120)
        aged(used, 120)
        with private_folder() as own:
            assert not left.exists()
            assert (used / "patients").read_text() == "Ann"
            assert own.stat().st_mode & 0o777 == 0o700
            assert list(own.iterdir()) == []
        assert not own.exists()
    finally:
        living.kill()
        living.wait(20)
        for each in (dead, living):
            assert each.stdout is not None
            each.stdout.close()


def test_a_spool_that_is_just_being_made_and_what_is_not_ours_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    new = tmp_path / "fhir-export-spool-new"
    other = tmp_path / "spool-of-something-else"
    kept = tmp_path / "kept"
    link = tmp_path / "fhir-export-spool-link"
    for each in (new, other, kept):
        each.mkdir()
        (each / "file").write_text("x")
    link.symlink_to(kept)
    for each in (other, kept):
        aged(each, 1e6)
    with private_folder():
        assert (new / "file").exists()
        assert (other / "file").exists()
        assert (kept / "file").exists()
        assert link.is_symlink()


def test_in_a_folder_that_machines_may_share_only_what_no_run_can_still_use_is_removed(
    tmp_path: Path,
) -> None:
    lake = open_local(tmp_path.as_uri(), tmp_path)
    with lake.spool() as first:
        left = [first.parent / "fhir-export-spool-night", first.parent / "fhir-export-spool-week"]
    for each in left:
        each.mkdir()
    aged(left[0], ABANDONED_ON_SHARED_SECONDS / 2)
    aged(left[1], ABANDONED_ON_SHARED_SECONDS * 2)
    with lake.spool():
        assert [each.exists() for each in left] == [True, False]
