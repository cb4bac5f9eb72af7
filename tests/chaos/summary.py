"""What many seeds came to: a Markdown table per fault, per kill point and per event, with totals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

Result = dict[str, Any]

DEFAULT_SECONDS = 35.0
"""For a seed, before any was measured."""

_BAD = ("lost", "altered", "duplicated", "stuck", "secrets", "partial", "server", "course", "harness")


def read_results(path: Path) -> list[Result]:
    """Of a results file; the last one of each seed and commit counts. None where there is no file."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return list({(each["commit"], each["seed"]): each for each in found}.values())


def seconds_per_seed(results: list[Result]) -> float:
    """As measured, or a guess."""
    return mean(each["seconds"] for each in results) if results else DEFAULT_SECONDS


def summary(results: list[Result]) -> str:
    """Markdown."""
    if not results:
        return "No results."
    ended: dict[str, int] = {}
    for each in results:
        for state, number in each.get("verdict", {}).get("ended", {}).items():
            ended[state] = ended.get(state, 0) + number
    commits = sorted({each["commit"] for each in results})
    lines = [
        f"{len(results)} seeds at {', '.join(commits)}: "
        f"{sum(each['driver'] == 'services' for each in results)} over the services, the others by command; "
        f"{sum(each.get('lives', 0) for each in results)} lives, "
        f"{sum(sum(each.get('kills', {}).values()) for each in results)} of them killed; "
        f"{sum(each.get('verdict', {}).get('resources', 0) for each in results)} resources compared; "
        f"{sum(each.get('verdict', {}).get('scans', 0) for each in results)} scans by the reader.",
        "Exports: " + ", ".join(f"{number} {state}" for state, number in sorted(ended.items())) + ".",
        "Problems: " + ", ".join(f"{kind} {_count(results, kind)}" for kind in _BAD) + ".",
        f"{sum(each['seconds'] for each in results):.0f} s, "
        f"{sum(each['cpu_seconds'] for each in results):.0f} s of CPU.",
        "",
        *_table("Fault", results, lambda each: each.get("faults", {})),
        "",
        *_table("Killed at", results, lambda each: each.get("kills", {})),
        "",
        *_table("Befell", results, lambda each: each.get("events", {})),
    ]
    return "\n".join(lines)


def _count(results: Iterable[Result], kind: str) -> int:
    return sum(len(each["problems"].get(kind, [])) for each in results)


def _table(title: str, results: list[Result], met: Callable[[Result], dict[str, int]]) -> list[str]:
    """A row per thing that was met; exports and problems are of the seeds that met it."""
    names = sorted({name for each in results for name, number in met(each).items() if number})
    lines = [
        f"| {title} | times | seeds | exports published | ended without data | seeds with problems |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        having = [each for each in results if met(each).get(name)]
        ended = [each.get("verdict", {}).get("ended", {}) for each in having]
        published = sum(states.get("published", 0) for states in ended)
        without = sum(number for states in ended for state, number in states.items() if state != "published")
        bad = sum(bool(each["problems"]) for each in having)
        times = sum(met(each)[name] for each in having)
        lines.append(f"| {name} | {times} | {len(having)} | {published} | {without} | {bad} |")
    return lines
