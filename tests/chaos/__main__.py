"""`python -m chaos --seeds 200 --from 0 --jobs 2 --results FILE`; `--summary FILE` counts it again."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from chaos.summary import read_results, seconds_per_seed, summary
from chaos.trial import try_seed


def main() -> int:
    """0 when no seed had a problem."""
    options = _options()
    if options.summary:
        print(summary(read_results(options.summary)))
        return 0
    seeds = range(options.first, options.first + options.seeds)
    each = seconds_per_seed(read_results(options.results))
    minutes = each * len(seeds) / options.jobs / 60
    print(
        f"{len(seeds)} seeds at {each:.0f} s each, {options.jobs} at a time: about {minutes:.0f} minutes",
        flush=True,
    )
    results = []
    for result in _all(seeds, options.jobs):
        results.append(result)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        _tell(result)
    print(summary(results))
    bad = [result["seed"] for result in results if result["problems"]]
    if bad:
        print(f"{len(bad)} seeds with problems: {' '.join(map(str, sorted(bad)))}")
    return 1 if bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--results", type=Path, default=Path("chaos-results.jsonl"), help="appended to")
    parser.add_argument("--summary", type=Path, help="print the summary of this file and end")
    return parser.parse_args()


def _all(seeds: range, jobs: int) -> Iterator[dict[str, Any]]:
    # A fresh process for each seed: its children's CPU time is counted, and nothing of one reaches the next.
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = iter(seeds)
        running: set[Future[dict[str, Any]]] = {pool.submit(try_seed, seed) for seed in islice(waiting, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
            running |= {pool.submit(try_seed, seed) for seed in islice(waiting, len(done))}


def _tell(result: dict[str, Any]) -> None:
    what = ", ".join(f"{kind} {len(found)}" for kind, found in result["problems"].items()) or "ok"
    met = (
        ", ".join([*result.get("faults", {}), *result.get("kills", {}), *result.get("events", {})])
        or "nothing"
    )
    print(
        f"seed {result['seed']}: {what}; {result['seconds']} s, CPU {result['cpu_seconds']} s; met {met}",
        flush=True,
    )
    for kind, found in result["problems"].items():
        for text in found[:5]:
            print(f"    {kind}: {text}")
    if result["problems"]:
        again = f"-m chaos --seeds 1 --from {result['seed']}"
        print(f"    again: PYTHONPATH=tests:tests/integration {sys.executable} {again}")
        print(f"    kept: {result['folder']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
