"""The lake: files appear whole or not at all, and the first one stays (design, Facts)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, LakeError
from pipeline.lake.lake import Lake, open_lake

RACER = """
import sys, time
from pathlib import Path
from pipeline.lake.lake import open_lake
root, me, names = sys.argv[1], sys.argv[2], int(sys.argv[3])
lake = open_lake(root, Path("/"))
lake.put_new(f"ready/{me}", b"")
while not (Path(root) / "go").exists():
    time.sleep(0.001)
print([name for name in range(names) if lake.put_new(f"race/{name}.json", me.encode() * 1000)])
"""
WRITER = """
import sys
from pathlib import Path
from pipeline.lake.lake import open_lake
lake = open_lake(sys.argv[1], Path("/"))
number = 0
while True:
    lake.put_new(f"facts/{sys.argv[2]}-{number:05d}", b"whole " * 100_000)
    if number == 0:
        print("writing", flush=True)
    number += 1
"""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return open_lake(str(tmp_path / "lake"), tmp_path)


def test_of_many_processes_that_create_a_file_exactly_one_wins(lake: Lake) -> None:
    names, racers = 60, [f"racer-{n}" for n in range(4)]
    command = [sys.executable, "-c", RACER, lake.root]
    running = [
        subprocess.Popen([*command, me, str(names)], stdout=subprocess.PIPE, text=True) for me in racers
    ]
    for _ in range(2000):
        if len(lake.names("ready")) == len(racers):
            break
        time.sleep(0.01)
    lake.put_new("go", b"")
    won = {me: eval(each.communicate(timeout=30)[0]) for me, each in zip(racers, running, strict=True)}
    assert sorted(name for names_won in won.values() for name in names_won) == list(range(names))
    for me, names_won in won.items():
        for name in names_won:
            assert lake.read(f"race/{name}.json") == me.encode() * 1000


def test_a_writer_killed_in_the_middle_leaves_no_half_file(lake: Lake) -> None:
    for life in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, lake.root, str(life)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        time.sleep(0.05 + 0.03 * life)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    sizes = lake.sizes("facts")
    assert len(sizes) >= 3
    assert set(sizes.values()) == {600_000}
    assert all(lake.read(f"facts/{name}") == b"whole " * 100_000 for name in list(sizes)[:20])


def test_the_first_content_stays_and_the_same_content_counts_as_ours(lake: Lake) -> None:
    assert lake.put_new("a/b.json", b"first")
    assert not lake.put_new("a/b.json", b"other")
    assert lake.put_new("a/b.json", b"first")
    assert lake.read("a/b.json") == b"first"


def test_a_file_that_is_not_there_reads_as_none(lake: Lake) -> None:
    assert lake.read("a/b.json") is None
    assert lake.sizes("a") == {}
    assert lake.names("a") == []
    lake.remove("a/b.json")


def test_unfinished_files_are_neither_listed_nor_counted(lake: Lake) -> None:
    lake.put_new("a/whole", b"12345")
    assert lake.folder
    (lake.folder / "a" / ".unfinished-0123").write_bytes(b"half")
    (lake.folder / "a" / "deep").mkdir()
    (lake.folder / "a" / "deep" / ".unfinished-4567").write_bytes(b"half")
    lake.put_new("a/deep/whole", b"12")
    assert lake.sizes("a") == {"whole": 5, "deep/whole": 2}
    assert lake.names("a") == ["deep", "whole"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a/.."])
def test_paths_that_leave_the_lake_are_refused(lake: Lake, path: str) -> None:
    for act in (lake.read, lake.sizes, lake.names, lake.remove, lake.open):
        with pytest.raises(LakeError, match="not a path inside the lake"):
            act(path)
    with pytest.raises(LakeError, match="not a path inside the lake"):
        lake.put_new(path, b"")


def test_put_file_links_what_is_on_the_same_disk_and_leaves_it_readable(lake: Lake, tmp_path: Path) -> None:
    with lake.spool() as spool:
        assert spool.stat().st_mode & 0o777 == 0o700
        local = spool / "part"
        local.write_bytes(b"12345")
        lake.put_file(local, "tables/part")
        assert local.stat().st_ino == Path(lake.full("tables/part")).stat().st_ino
    assert not spool.exists()
    assert lake.read("tables/part") == b"12345"


def test_put_file_does_not_replace_a_file(lake: Lake, tmp_path: Path) -> None:
    local = tmp_path / "part"
    local.write_bytes(b"new")
    lake.put_new("tables/part", b"old")
    with pytest.raises(LakeError, match="exists"):
        lake.put_file(local, "tables/part")
    assert lake.read("tables/part") == b"old"


def test_what_cannot_be_written_is_a_lake_error_with_the_path_and_advice(tmp_path: Path) -> None:
    """A path below a regular file is not writable for anybody, root included."""
    (tmp_path / "file").write_text("")
    lake = open_lake(str(tmp_path / "file"), tmp_path)
    with pytest.raises(LakeError, match="hosp_a/exports/x") as refused:
        lake.put_new("hosp_a/exports/x", b"")
    assert "write" in refused.value.advice
    with pytest.raises(LakeError, match="cannot be read"):
        lake.read("hosp_a/exports/x")


def test_a_folder_in_the_place_of_a_fact_is_an_error_not_an_absence(lake: Lake) -> None:
    assert lake.folder
    (lake.folder / "a" / "b.json").mkdir(parents=True)
    with pytest.raises(LakeError):
        lake.read("a/b.json")


def test_a_relative_lake_starts_at_the_folder_of_the_configuration(tmp_path: Path) -> None:
    assert open_lake("../lake", tmp_path / "home").root == str(tmp_path / "lake")
    assert open_lake(f"file://{tmp_path}/a%20b", Path("/")).root == f"{tmp_path}/a b"


@pytest.mark.parametrize("url", ["file://host/path", "abfs://c@a.dfs.core.windows.net/x"])
def test_a_lake_that_this_version_cannot_open_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_lake(url, tmp_path)


def test_opening_a_lake_creates_and_contacts_nothing(tmp_path: Path) -> None:
    open_lake("lake", tmp_path)
    assert list(tmp_path.iterdir()) == []
