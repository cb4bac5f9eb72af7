"""A reader that scans in a loop during fifty kills never sees part of an export (issue 5)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from chaos.command_line import kill_group
from chaos.killing import At
from chaos.plan import Moment
from independent_reader import differences, parse, rows
from nightly_site import BIN, Site, eventually, open_site
from scanning_reader import Scan, Whole, problems, read_scans

from pipeline.sandbox import truth

KILLS = 50
TYPES = ("Patient", "Encounter", "Observation")
HERE = Path(__file__).parent

ITSELF = (
    ["behind", "put_new", r"/attempts/\d+\.json"],
    ["behind", "put_file", r"/tables/patient/.*\.parquet"],
    ["before", "put_new", r"/staged/.*observation"],
    ["before", "commit", r"/tables/observation$"],
    ["behind", "commit", r"/tables/encounter$"],
    ["behind", "commit", r"/tables/observation$"],
    ["behind", "commit", r"/tables/_lineage$"],
    ["before", "put_new", r"/published/"],
    ["behind", "put_new", r"/published/"],
    ["behind", "put_new", r"/receipts/"],
)
"""A process that kills itself at a write of its own: exactly there. In the order of an export's life."""

WATCHED = (
    "claim",
    "raw",
    "landed",
    "part",
    "staged",
    "commit",
    "commit",
    "lineage",
    "exports row",
    "receipt",
)
"""A process that is killed from outside, a little behind what appears in the lake: also within a commit."""

COMMAND = ("landed", "staged", "commit", "commit", "lineage", "exports row", "published", "receipt")
"""The same with `fhir-export run --wait`, Dagster and all; it takes some seconds a life."""


@dataclass(frozen=True)
class Death:
    """Who dies, and where."""

    who: str
    where: Any


DEATHS = [
    *(Death("forked", each) for each in ITSELF),
    *(Death("watched", each) for each in WATCHED),
    *(Death("forked", each) for each in ITSELF),
    *(Death("watched", each) for each in WATCHED),
    *(Death("command", each) for each in COMMAND),
    Death("watched", "commit"),
    Death("watched", "exports row"),
]


class Lives:
    """Starts one life after another and tells how each has ended."""

    def __init__(self, site: Site, errors: Path) -> None:
        self.site = site
        self.errors = errors.open("wb")
        self.parent = subprocess.Popen(
            [sys.executable, str(HERE / "forked_lives.py")],
            env={**site.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def end(self) -> None:
        self.parent.communicate(timeout=60)
        self.errors.close()

    def killed(self, death: Death) -> bool:
        """One life; whether it was killed there. False: it had nothing more to do before that."""
        itself = death.where if death.who == "forked" else None
        pids: list[int] = []
        watcher = self._watcher(death.where, pids) if death.who != "forked" else None
        try:
            code = self._command(pids) if death.who == "command" else self._forked(itself, pids)
        finally:
            if watcher:
                watcher.end()
        assert code in (0, -signal.SIGKILL), Path(self.errors.name).read_text()[-3000:]
        return code == -signal.SIGKILL

    def _watcher(self, point: str, pids: list[int]) -> At:
        """It counts from before the life on."""
        log = self.site.folder / "access.log"
        return At(Moment(point=point), self.site.lake / "hosp", log, lambda: kill_group(pids[0]))

    def _command(self, pids: list[int]) -> int:
        process = subprocess.Popen(
            [str(BIN / "fhir-export"), "run", "hosp", "--wait"],
            env=self.site.environment,
            cwd=self.site.folder,
            stdout=self.errors,
            stderr=self.errors,
            start_new_session=True,
        )
        pids.append(process.pid)
        return process.wait(200)

    def _forked(self, itself: list[str] | None, pids: list[int]) -> int:
        assert self.parent.stdin and self.parent.stdout
        self.parent.stdin.write(json.dumps(itself) + "\n")
        self.parent.stdin.flush()
        pids.append(int(self.parent.stdout.readline()))
        return int(self.parent.stdout.readline())


@contextmanager
def reader(tables: Path, out: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The reading process, from its first scan to its last."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "scanning_reader.py"), str(tables), str(out)], stdin=subprocess.PIPE
    )
    try:
        eventually(lambda: out.exists() and read_scans(out), 60)
        yield process
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()


def scanned_since(moment: float, out: Path) -> bool:
    """Whether a scan that began after a moment is over."""
    with out.open("rb") as lines:
        lines.seek(max(0, out.stat().st_size - 100_000))
        *_, last, _ = lines.read().split(b"\n")
    began: float = json.loads(last)["began"]
    return began >= moment


def of_night(site: Site, night: int) -> dict[str, dict[str, Any]]:
    """What the server has: table -> id -> resource."""
    found: dict[str, dict[str, Any]] = {kind.lower(): {} for kind in TYPES}
    for kind, line in truth(site.seed, site.patients, night, "demo"):
        if kind in TYPES:
            resource = parse(line)
            found[kind.lower()][resource["id"]] = resource
    return found


def assert_saw_every_state(scans: list[Scan], whole: Whole) -> None:
    """Each export before and after; and those that the kills are for: some tables have it, some have not."""
    middle: Counter[str] = Counter()
    for export_id, wanted in whole.items():
        seen = [{table for table in wanted if export_id in each["tables"].get(table, {})} for each in scans]
        assert seen[0] == set(), "not there before"
        assert seen[-1] == wanted.keys() and export_id in scans[-1]["listed"]
        for tables, each in zip(seen, scans, strict=True):
            if tables and export_id not in each["listed"]:
                middle["all but its line" if tables == wanted.keys() else "some tables"] += 1
    assert middle["some tables"] and middle["all but its line"], middle


def test_a_reader_sees_all_of_an_export_or_nothing_during_fifty_kills(tmp_path: Path) -> None:
    """Issue 5: never part of an export in any one table, nor in `_exports` one that is not whole."""
    options = {"export_seconds": 0.05, "poll_seconds": 0.0, "file_lines": 20}
    source = {"max_attempts": 20, "knobs": {"first_poll": 0.1, "longest_poll": 0.2}}
    out = tmp_path / "scans.jsonl"
    killed: list[tuple[float, float, Death]] = []
    with open_site(tmp_path, patients=6, export={"types": list(TYPES)}, source=source, **options) as site:
        tables = site.lake / "hosp" / "tables"
        lives = Lives(site, tmp_path / "lives.log")

        def published() -> int:
            return len(list((site.lake / "hosp" / "exports").glob("*/receipts")))

        def live(death: Death) -> bool:
            site.sandbox.control(night=published() + 1)
            began = time.monotonic()
            hit = lives.killed(death)
            ended = time.monotonic()
            eventually(lambda: scanned_since(ended, out), 60, 0.02)
            if hit:
                killed.append((began, ended, death))
            return hit

        with reader(tables, out) as reading:
            for death in DEATHS:
                assert any(live(death) for _ in range(3)), death
            nights = published()
            while live(Death("forked", None)) or published() == nights:
                assert reading.poll() is None
        lives.end()

        exports = site.export_ids()
        scans = read_scans(out)
        whole = {}
        for night, export_id in enumerate(exports, 1):
            server = of_night(site, night)
            for table, resources in server.items():
                found = rows(site.files_of(table, export_id))
                assert sorted(row["id"] for row in found) == sorted(resources), (export_id, table)
                assert [differences(row, resources[row["id"]]) for row in found] == [[]] * len(found)
            whole[export_id] = {table: len(resources) for table, resources in server.items()}
            whole[export_id]["_lineage"] = len(rows(site.files_of("_lineage", export_id)))

    assert len(killed) == KILLS
    assert scans[-1]["listed"] == dict.fromkeys(exports, 1)
    assert len(exports) >= 5
    assert problems(scans, whole) == []
    between = [
        sum(before[1] <= each["began"] and each["ended"] <= after[0] for each in scans)
        for before, after in pairwise(killed)
    ]
    assert all(between), "a scan between each two kills"
    assert_saw_every_state(scans, whole)
    assert min(Counter(death.who for *_, death in killed).values()) >= len(COMMAND)
