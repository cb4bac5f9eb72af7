"""A few seeds of the long run (`make chaos`) over the command line, each of which must end without a problem.

Kills at any moment and behind the commit of the lineage, a full disk, bad lines, files that are refused,
are HTML or are short of lines.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chaos.trial import run_seed

SEEDS = (11, 12, 16, 18, 20)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_loses_nothing(seed: int, tmp_path: Path) -> None:
    result = run_seed(seed, tmp_path / "site")
    assert result["problems"] == {}, json.dumps(result, indent=1)
    assert result["verdict"]["published"] >= 1
    assert result["verdict"]["scans"] > 10
