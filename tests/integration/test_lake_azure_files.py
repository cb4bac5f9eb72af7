"""The lake on Azure storage: files appear whole or not at all, and the first one stays."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure_storage import Azurite
from lake_on_azurite import lake_by_key, lake_by_sas, lake_by_token, lake_url, logged
from stalling_proxy import stalling_proxy

from pipeline.config import LakeAuth
from pipeline.errors import LakeError
from pipeline.lake.azure import AzureLake
from pipeline.lake.lake import Lake, open_lake

OPENED = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipeline.config import LakeAuth
from pipeline.lake.lake import open_lake
auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
lake = open_lake(sys.argv[1], Path("/"), auth, lambda _: os.environ["HELD"].encode())
"""
RACER = (
    OPENED
    + """
me = sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
def race(twin):
    return [name for name in range(25) if lake.put_new(f"race/{name}.json", f"{me}-{twin}".encode() * 1000)]
with ThreadPoolExecutor(2) as pool:
    print(json.dumps(list(pool.map(race, range(2)))))
"""
)
PUTTER = (
    OPENED
    + """
print("putting", flush=True)
lake.put_file(Path(sys.argv[2]), "big")
print("done", flush=True)
"""
)


def child(program: str, azurite: Azurite, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "HELD": azurite.connection_string},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(params=["key", "sas", "token"])
def lake(request: pytest.FixtureRequest) -> Lake:
    if request.param == "token":
        return lake_by_token(request.getfixturevalue("azurite_tls"))
    azurite: Azurite = request.getfixturevalue("azurite")
    return lake_by_key(azurite) if request.param == "key" else lake_by_sas(azurite, azurite.sas())


def test_every_method_does_what_the_contract_says(lake: Lake, tmp_path: Path) -> None:
    assert lake.read("a/b.json") is None
    assert (lake.sizes("a"), lake.names("a")) == ({}, [])
    lake.remove("a/b.json")
    assert lake.put_new("a/b.json", b"first")
    assert not lake.put_new("a/b.json", b"other")
    assert lake.put_new("a/b.json", b"first"), "the same content counts as ours"
    local = tmp_path / "part"
    local.write_bytes(os.urandom(20 << 20))
    lake.put_file(local, "a/deep/part")
    assert lake.read("a/deep/part") == local.read_bytes()
    assert lake.sizes("a") == {"b.json": 5, "deep/part": 20 << 20}
    assert lake.names("a") == ["b.json", "deep"]
    with lake.open("a/deep/part") as file:
        file.seek(9 << 20)
        assert file.read(1000) == local.read_bytes()[9 << 20 : (9 << 20) + 1000]
    with lake.local_copy("a/deep/part") as copy:
        assert copy.read_bytes() == local.read_bytes()
        assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert not copy.exists()
    lake.remove("a/b.json")
    assert lake.read("a/b.json") is None
    assert lake.folder is None


def test_neighbours_with_the_same_beginning_are_not_listed(azurite: Azurite) -> None:
    lake = lake_by_key(azurite)
    for name in ("exports/a", "exports_old/b", "export", "exports/deep/c"):
        lake.put_new(name, b"12")
    assert lake.names("exports") == ["a", "deep"]
    assert lake.sizes("exports") == {"a": 2, "deep/c": 2}


def test_folders_of_a_hierarchical_namespace_are_no_files(azurite: Azurite) -> None:
    """There a directory is an empty blob with `hdi_isfolder`; other tools end its name with a slash."""
    container = azurite.new_container()
    lake = lake_by_key(azurite, container)
    blobs = azurite.container(container)
    for marked in ("hdi_isfolder", "Hdi_isfolder", "is_directory"):
        blobs.upload_blob(f"night/a/{marked}", b"", metadata={marked: "true"})
    blobs.upload_blob("night/a/", b"", metadata={"hdi_isfolder": "true"})
    blobs.upload_blob("night/a/slash/", b"")
    blobs.upload_blob("night/a/hdi_isfolder/file", b"12345")
    lake.put_new("a/.unfinished-1", b"half")
    lake.put_new("a/empty", b"")
    assert lake.sizes("a") == {"hdi_isfolder/file": 5, "empty": 0}
    assert lake.names("a") == ["Hdi_isfolder", "empty", "hdi_isfolder", "is_directory", "slash"]


def test_a_lake_without_a_prefix_is_the_container_itself(azurite: Azurite) -> None:
    container = azurite.new_container()
    lake = lake_by_key(azurite, container, prefix="")
    lake.put_new("hosp_a/exports/x", b"1")
    assert azurite.names(container) == ["hosp_a/exports/x"]
    assert lake.table_uri("hosp_a/tables/patient") == f"az://{container}/hosp_a/tables/patient"


def test_listings_of_more_than_a_page_are_whole(azurite: Azurite) -> None:
    """The service gives 5,000 names at a time at most; here 10."""
    container = azurite.new_container()
    key = lake_by_key(azurite, container)
    assert isinstance(key, AzureLake)
    lake = AzureLake(key.address, lambda: key.account, page=10)
    for number in range(35):
        lake.put_new(f"raw/{number:05d}", b"x")
    assert list(lake.sizes("raw")) == lake.names("raw") == [f"{number:05d}" for number in range(35)]
    assert len(logged(azurite, f"{container}?restype=container&comp=list", 8)) == 8


def test_of_eight_threads_that_create_a_file_exactly_one_wins(azurite: Azurite) -> None:
    lake = lake_by_key(azurite)
    start = threading.Barrier(8)

    def race(me: int) -> list[bool]:
        start.wait()
        return [lake.put_new(f"race/{name}", f"{me}".encode() * 5000) for name in range(20)]

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    for name in range(20):
        winners = [me for me in range(8) if won[me][name]]
        assert len(winners) == 1
        assert lake.read(f"race/{name}") == f"{winners[0]}".encode() * 5000


def test_of_eight_writers_in_four_processes_exactly_one_wins(azurite: Azurite) -> None:
    container = azurite.new_container()
    racers = {f"r{n}": child(RACER, azurite, lake_url(container), f"r{n}") for n in range(4)}
    for racer in racers.values():
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {me: json.loads(racer.communicate(timeout=60)[0]) for me, racer in racers.items()}
    winners = {name: f"{me}-{twin}" for me, twins in won.items() for twin in (0, 1) for name in twins[twin]}
    assert sum(len(names) for twins in won.values() for names in twins) == 25
    lake = lake_by_key(azurite, container)
    for name in range(25):
        assert lake.read(f"race/{name}.json") == winners[name].encode() * 1000


@pytest.mark.parametrize("size", [10, 9 << 20], ids=["one request", "blocks"])
def test_of_eight_threads_that_put_a_file_exactly_one_wins_with_its_own_bytes(
    azurite: Azurite, tmp_path: Path, size: int
) -> None:
    """Blocks of several writers of one name lie side by side: none may end up in another's file."""
    lake = lake_by_key(azurite)
    start = threading.Barrier(8)

    def race(me: int) -> bool:
        local = tmp_path / f"part-{me}"
        local.write_bytes(bytes([me]) * size)
        start.wait()
        try:
            lake.put_file(local, "tables/part")
        except LakeError as error:
            assert "exists" in error.cause
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert won.count(True) == 1
    assert lake.read("tables/part") == bytes([won.index(True)]) * size


def test_compare_and_swap_replaces_only_what_has_not_changed(lake: Lake) -> None:
    lake.put_new("state.json", b"1")
    first = lake.read_version("state.json")
    assert first is not None
    assert first.data == b"1"
    assert lake.replace_if("state.json", b"2", first.etag)
    assert not lake.replace_if("state.json", b"3", first.etag), "stale"
    assert not lake.replace_if("none.json", b"3", first.etag)
    assert lake.read("state.json") == b"2"
    assert lake.read_version("none.json") is None


def test_of_eight_threads_that_count_up_none_is_lost(azurite: Azurite) -> None:
    lake = lake_by_key(azurite)
    lake.put_new("counter", b"0")

    def count(_: int) -> None:
        while True:
            found = lake.read_version("counter")
            assert found is not None
            if lake.replace_if("counter", str(int(found.data) + 1).encode() + b" " * _, found.etag):
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert int(lake.read("counter") or b"") == 8


def test_a_writer_killed_in_the_middle_of_an_upload_leaves_nothing_visible(
    azurite: Azurite, tmp_path: Path
) -> None:
    container = azurite.new_container()
    local = tmp_path / "big"
    local.write_bytes(os.urandom(1 << 20) * 96)
    before = len(azurite.requests())
    parts = urlsplit(azurite.endpoint)
    with stalling_proxy(parts.hostname or "", parts.port or 0) as proxy:
        proxy.stall("comp=block&", number=3, after=1_000_000)
        through = replace(azurite, endpoint=azurite.endpoint.replace(f":{parts.port}/", f":{proxy.port}/"))
        writer = child(PUTTER, through, lake_url(container), str(local))
        try:
            assert proxy.stalled.wait(60), "no third block came"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                staged = [line for line in azurite.requests()[before:] if "comp=block&" in line]
                if len(staged) >= 2:
                    break
                time.sleep(0.01)
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            said = writer.communicate()[0]
    assert len(staged) >= 2, "whole blocks lie there"
    assert "done" not in said, "killed too late"
    assert not any("comp=blocklist" in line for line in azurite.requests()[before:])
    lake = lake_by_key(azurite, container)
    assert azurite.names(container) == []
    assert lake.read("big") is None
    lake.put_file(local, "big")
    with lake.local_copy("big") as copy:
        assert copy.read_bytes() == local.read_bytes()


def test_a_lake_survives_a_fork_and_its_child_ends(azurite: Azurite) -> None:
    """Event loop and connections belong to the parent; adlfs's own exit handler would wait for ever."""
    program = OPENED + (
        'lake.put_new("x/parent", b"1")\n'
        "child = os.fork()\n"
        "if child == 0:\n"
        '    lake.put_new("x/child", b"2")\n'
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        'print(json.dumps(lake.names("x")))\n'
    )
    running = child(program, azurite, lake_url(azurite.new_container()))
    try:
        assert json.loads(running.communicate(timeout=120)[0]) == ["child", "parent"]
    finally:
        running.kill()


def test_a_lake_can_be_pickled_and_holds_no_secret(azurite: Azurite) -> None:
    url = lake_url(azurite.new_container())
    lake = open_lake(url, Path("/"), LakeAuth(kind="managed-identity"), _never)
    again = pickle.loads(pickle.dumps(lake))
    assert again.place == lake.place == url.replace("abfs:", "abfss:")
    assert again.full("a") == lake.full("a")


def _never(reference: str) -> bytes:
    raise AssertionError(reference)


def test_one_account_is_opened_once_and_a_new_secret_opens_another(azurite: Azurite) -> None:
    first, second = azurite.sas(minutes=30), azurite.sas(minutes=31)
    container = azurite.new_container()
    one, same, other = (lake_by_sas(azurite, sas, container) for sas in (first, first, second))
    assert one.account is same.account  # type: ignore[attr-defined]
    assert one.account is not other.account  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a/.."])
def test_paths_that_leave_an_azure_lake_are_refused(azurite: Azurite, path: str, tmp_path: Path) -> None:
    lake = lake_by_key(azurite, "any-container")
    for act in (lake.read, lake.sizes, lake.names, lake.remove, lake.open, lake.table_uri):
        with pytest.raises(LakeError, match="not a path inside the lake"):
            act(path)
    with pytest.raises(LakeError, match="not a path inside the lake"):
        lake.put_new(path, b"")
    with pytest.raises(LakeError, match="not a path inside the lake"):
        lake.put_file(tmp_path, path)
