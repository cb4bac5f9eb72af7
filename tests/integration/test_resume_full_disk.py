"""A disk that takes no more, at several places: a clear end, nothing half counted, and the next one goes on.

RLIMIT_FSIZE lets real writes fail beyond a size (EFBIG), whoever makes them: Python, pyarrow, delta-rs,
SQLite.
"""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest_by_hand import EXPORT, ingest, session_of, wait_until_ready
from nightly_site import BIN, Site, open_site
from test_resume_killed_commands import commits, fetched, landed

from pipeline.errors import LakeError
from pipeline.tables.definitions import table_name

TYPES = {"types": ["Patient", "Encounter", "Observation"]}


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def run(site: Site, size: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "fhir-export"), "run", "hosp", "--wait", "--json"],
        env=site.environment,
        cwd=site.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        preexec_fn=limited(size),
    )


def test_after_a_full_disk_the_next_command_finishes_the_same_export(tmp_path: Path) -> None:
    """Dagster's SQLite is what fills first: a clear end, and what has landed is not fetched again."""
    with open_site(tmp_path, patients=4, export=TYPES, source={"max_attempts": 20}) as site:
        ended = []
        for size in (1, 60_000, 250_000):
            before, there = fetched(site), {url for each in site.export_ids() for url in landed(site, each)}
            done = run(site, size)
            assert "Traceback" not in done.stderr
            assert done.returncode in (0, 7), (size, done.returncode, done.stderr)
            assert all(fetched(site)[url] == before[url] for url in there)
            assert not list(site.lake.rglob(".unfinished-*"))
            ended.append(done.returncode)
            if done.returncode == 0:
                break
        assert ended[0] == 7
        if done.returncode != 0:
            done = site.cli("run", "hosp", "--wait", "--json")
        assert json.loads(done.stdout.splitlines()[-1])["state"] == "published"
        (export_id,) = site.export_ids()
        assert site.sandbox.control()["kickoffs"] == 1
        assert set(commits(site, export_id).values()) == {1}
        for kind in TYPES["types"]:
            assert site.ids_in(table_name(kind), export_id) == site.ids_in_truth(1)[kind]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_wherever_the_ingest_runs_out_of_space_it_says_so_and_nothing_half_counts(tmp_path: Path) -> None:
    """Facts, spool, raw bytes, parts and Delta commits fail one after the other, as the limit grows."""
    source = {"downloads": {"concurrency": 1}}
    export = {**TYPES, "since": "never"}
    with open_site(tmp_path, patients=30, export=export, source=source, file_lines=10_000) as site:
        wait_until_ready(site)
        stopped: list[str] = []
        for number, size in enumerate((150, 500, 900, 3_000, 9_000, 20_000, 40_000, 80_000, 160_000)):
            before, there = fetched(site), landed(site, EXPORT)
            try:
                with room_for(size):
                    ingest(session_of(site, f"run {number}"))
            except LakeError as error:
                stopped.append(error.cause)
            else:
                break
            assert all(fetched(site)[url] == before[url] for url in there), size
            assert not list(site.lake.rglob(".unfinished-*"))
            assert site.facts(EXPORT).receipt is None
            assert site.facts(EXPORT).damaged == ()
        assert len(stopped) >= 4, stopped
        assert any("on its way" in each for each in stopped), stopped
        if site.facts(EXPORT).receipt is None:
            ingest(session_of(site, "with room"))
        for kind in TYPES["types"]:
            assert site.ids_in(table_name(kind), EXPORT) == site.ids_in_truth(1)[kind]
        assert set(commits(site, EXPORT).values()) == {1}
