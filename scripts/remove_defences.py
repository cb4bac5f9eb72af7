"""Take each defence out, one at a time, and see that a test notices.

`tests/defences/*.yaml` name a defence, the text of it in a file of `pipeline/`, what stands there without it,
and the tests that must fail then. For each the tree is copied to a temporary folder; nothing is changed here:

    python scripts/remove_defences.py [--only PATTERN] [--jobs N] [--also-intact]

Ends with 1 where a defence is not noticed missing, where its text is not found exactly once, or (with
`--also-intact`) where its tests fail with the defence in place.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tests" / "defences"
FOLDERS = ("pipeline", "tests", "benchmarks", "docs", "scripts")
FILES = ("pyproject.toml", "README.md", "Makefile", "workspace.yaml", "dagster_home/dagster.yaml")
MEMBERS = ("defence", "file", "find", "replace", "tests")
LINKED = "node_modules"
SECONDS = 900
FAILED = re.compile(r"^FAILED (.+?)(?: - |$)", re.MULTILINE)


@dataclass(frozen=True)
class Defence:
    """One entry of a list."""

    defence: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Which test noticed; else `problem` says what went wrong."""

    defence: Defence
    noticed_by: str | None
    problem: str = ""


def read_defences(folder: Path) -> list[Defence]:
    """Every entry of every list, by file name. ValueError names the entry that is malformed."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        for number, entry in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")) or [], 1):
            if not isinstance(entry, dict) or set(entry) != set(MEMBERS) or not entry["tests"]:
                raise ValueError(f"{path.name}, entry {number}: needs {', '.join(MEMBERS)}, and nothing else")
            found.append(Defence(**{**entry, "tests": tuple(entry["tests"])}))
    return found


def remove(defence: Defence, *, also_intact: bool) -> Verdict:
    """Run the tests without the defence, in a copy of the tree; with it before that, where asked for."""
    with _copy() as tree:
        path = tree / defence.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(defence.find) != 1:
            return Verdict(defence, None, f"its text is there {text.count(defence.find)} times, not once")
        imported = _python(tree, "-c", "import pipeline; print(pipeline.__file__)").stdout.strip()
        if not Path(imported).is_relative_to(tree):
            return Verdict(defence, None, f"the copy is not what is imported, but {imported}")
        if also_intact and (before := _pytest(tree, defence.tests)).returncode != 0:
            return Verdict(defence, None, f"fails with the defence in place:\n{_end(before)}")
        path.unlink()
        path.write_text(text.replace(defence.find, defence.replace), encoding="utf-8")
        after = _pytest(tree, defence.tests)
        failed = FAILED.search(after.stdout)
        if after.returncode == 1 and failed:
            return Verdict(defence, failed[1])
        if after.returncode == 0:
            return Verdict(defence, None, "no test noticed")
        return Verdict(defence, None, f"pytest ended with {after.returncode}, no test failed:\n{_end(after)}")


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="defence-") as folder:
        tree = Path(folder).resolve() / "tree"
        tree.mkdir()
        for name in FOLDERS:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns(LINKED))
        for name in FILES:
            (tree / name).parent.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        packages = ROOT / "tests" / "azurite" / LINKED
        if packages.exists():
            (tree / "tests" / "azurite" / LINKED).symlink_to(packages)
        yield tree


def _pytest(tree: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return _python(tree, "-m", "pytest", "-x", "-n", "0", "-rf", "--tb=short", *tests)


def _python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The copy before the installed package, which is the tree here.
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "400"}
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, f"no end within {SECONDS} seconds")


def _end(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(done.stdout.splitlines()[-12:])


def main() -> int:
    """Print a table `defence | removed from | test that noticed`; 0 where each was noticed."""
    parser = argparse.ArgumentParser(description="Take each defence out and see that a test notices.")
    parser.add_argument("--only", metavar="PATTERN", help="defences whose words, file or tests have it")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once (default: 1)")
    parser.add_argument("--also-intact", action="store_true", help="run the tests with the defence, too")
    parser.add_argument(
        "--list", type=Path, default=LISTS, metavar="FOLDER", help="(default: tests/defences)"
    )
    options = parser.parse_args()
    wanted = re.compile(options.only or "")
    defences = [
        each
        for each in read_defences(options.list)
        if wanted.search("\n".join((each.defence, each.file, *each.tests)))
    ]
    missed = 0
    print("defence | removed from | test that noticed", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(lambda each: remove(each, also_intact=options.also_intact), defences):
            missed += verdict.noticed_by is None
            noticed = verdict.noticed_by or f"NOT NOTICED: {verdict.problem}"
            print(f"{verdict.defence.defence} | {verdict.defence.file} | {noticed}", flush=True)
    print(f"{len(defences) - missed} of {len(defences)} defences were noticed missing", flush=True)
    return 1 if missed or not defences else 0


if __name__ == "__main__":
    sys.exit(main())
