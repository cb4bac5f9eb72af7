"""`spool.wipe`: patients' data on its way is overwritten before it is removed, and the lake's own never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nightly_site import open_site

from pipeline.exports.strays import StrayLines
from pipeline.lake.azure import open_azure
from pipeline.lake.local import open_local
from pipeline.lake.spool import WIPED_PREFIX, discard, private_folder

PATIENTS = b'{"resourceType":"Patient","name":[{"family":"Miller"}]}\n' * 60_000  # 3 MB: more than one block


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


class Watched:
    """A file's blocks after its name is gone, as somebody who still holds it open would read them."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._link = path.with_name(f"{path.name}.kept")

    def content(self) -> bytes:
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0)


@pytest.fixture
def overwritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, bytes]]:
    """inode -> what the file held when it was forced to the disk and before it was cut."""
    seen: dict[int, bytes] = {}
    truncate = os.ftruncate

    def watching(descriptor: int, length: int) -> None:
        found = os.fstat(descriptor)
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            seen[found.st_ino] = file.read()
        truncate(descriptor, length)

    monkeypatch.setattr("pipeline.lake.spool.os.ftruncate", watching)
    yield seen


def test_every_file_of_a_spool_is_overwritten_with_zeros(here: Path, overwritten: dict[int, bytes]) -> None:
    with private_folder(wipe=True) as folder:
        (folder / "deep" / "deeper").mkdir(parents=True)
        names = [
            "output-000001",
            "output-000002.part",
            "raw-1",
            "deep/part-00000.parquet",
            "deep/deeper/stray-X",
        ]
        files = [folder / name for name in names]
        for each in files:
            each.write_bytes(PATIENTS)
        empty = folder / "empty"
        empty.touch()
        inodes = [each.stat().st_ino for each in files]
        held = [Watched(each) for each in files]
    assert not folder.exists()
    assert [overwritten[each] for each in inodes] == [bytes(len(PATIENTS))] * len(files)
    assert [each.content() for each in held] == [b""] * len(files)


def test_without_the_choice_nothing_is_overwritten(here: Path, overwritten: dict[int, bytes]) -> None:
    with private_folder() as folder:
        (folder / "raw").write_bytes(PATIENTS)
        held = Watched(folder / "raw")
        discard(folder / "raw")
    assert held.content() == PATIENTS
    assert overwritten == {}


def test_what_is_linked_into_the_lake_stays_whole(here: Path, overwritten: dict[int, bytes]) -> None:
    """A local lake takes a spool's file by linking it: both names are one file."""
    lake = open_local(str(here / "lake"), here, wipe=True)
    with lake.spool() as folder:
        for name in ("one", "two"):
            (folder / name).write_bytes(PATIENTS)
            lake.put_file(folder / name, f"raw/{name}")
        assert (folder / "one").stat().st_nlink == 2
        discard(folder / "one")
    assert overwritten == {}
    assert lake.read("raw/one") == lake.read("raw/two") == PATIENTS


def test_a_filesystem_that_does_not_count_links_loses_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network filesystems say 1 for every file: there the lake gets a copy."""
    lake = open_local(str(here / "lake"), here, wipe=True)
    stat = Path.stat

    def uncounted(self: Path, **named: bool) -> os.stat_result:
        found = stat(self, **named)
        return os.stat_result((*found[:3], 1, *found[4:]))

    with lake.spool() as folder:
        (folder / "one").write_bytes(PATIENTS)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "stat", uncounted)
            lake.put_file(folder / "one", "raw/one")
        assert (folder / "one").stat().st_nlink == 1
    assert lake.read("raw/one") == PATIENTS


def test_a_link_in_a_spool_does_not_lead_out_of_it(here: Path) -> None:
    outside = here / "outside"
    outside.write_bytes(PATIENTS)
    with private_folder(wipe=True) as folder:
        (folder / "link").symlink_to(outside)
        (folder / "other").symlink_to(outside)
        discard(folder / "other")
    assert outside.read_bytes() == PATIENTS


def test_files_taken_away_in_the_middle_are_overwritten_too(
    here: Path, overwritten: dict[int, bytes]
) -> None:
    with private_folder(wipe=True) as folder:
        strays = StrayLines(folder)
        strays.put("Patient", b"Miller", "output-000001", 1)
        inode = (folder / "stray-Patient").stat().st_ino
        assert [each.line for each in strays.take("Patient")] == [b"Miller"]
        assert not (folder / "stray-Patient").exists()
        assert set(overwritten[inode]) == {0}


def test_what_a_killed_process_has_left_is_overwritten_by_whoever_finds_it(
    here: Path, overwritten: dict[int, bytes]
) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.lake.spool import private_folder\n"
        "with private_folder(wipe=True) as folder:\n"
        "    (folder / 'patients.part').write_bytes(b'Miller' * 1000)\n"
        "    print(folder, flush=True)\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "TMPDIR": str(here), "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
    inode = (left / "patients.part").stat().st_ino
    assert left.name.startswith(WIPED_PREFIX)
    then = time.time() - 120
    os.utime(left, (then, then))
    with private_folder():  # one that has no such choice itself
        assert not left.exists()
    assert overwritten[inode] == bytes(6000)


def test_an_azure_lake_takes_the_choice_into_other_processes() -> None:
    import pickle

    lake = open_azure("abfss://lake@account.dfs.core.windows.net/x", None, None, wipe=True)
    assert pickle.loads(pickle.dumps(lake)).wipes
    with lake.spool() as folder:
        assert folder.name.startswith(WIPED_PREFIX)


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_spools_are_private_whatever_the_umask(here: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        lake = open_local(str(here / "lake"), here)
        with lake.spool() as folder, private_folder() as other:
            for each in (folder, folder.parent, other):
                assert each.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_whole_night_with_wiping_publishes_all_and_leaves_nothing(tmp_path: Path) -> None:
    with open_site(tmp_path, patients=4, config={"spool": {"wipe": True}}, source={"flat": True}) as site:
        assert site.run_night()["state"] == "published"
        last = site.export_ids()[-1]
        assert site.ids_in("patient", last) == site.ids_in_truth(1)["Patient"]
        assert site.ids_in("observation", last) == site.ids_in_truth(1)["Observation"]
        assert list((site.lake / ".spool").iterdir()) == []
        for batch in site.session.ledger.landed(last):
            assert (site.lake / batch.raw).stat().st_size == batch.raw_bytes
            assert b"\x00" not in (site.lake / batch.raw).read_bytes() or batch.raw.endswith("gz")
