"""One seed of the long run over daemon, webserver, code server: run worker and code server are killed."""

from __future__ import annotations

import json
from pathlib import Path

from chaos.trial import run_seed

SEED = 119


def test_a_seed_over_the_services_loses_nothing(tmp_path: Path) -> None:
    result = run_seed(SEED, tmp_path / "site")
    assert result["problems"] == {}, json.dumps(result, indent=1)
    assert result["verdict"]["published"] >= 1
    assert result["kills"], "none of the services was killed"
