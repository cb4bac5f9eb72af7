"""`fhir-export demo`, as `make demo` runs it: schedule, daemon, sensor, and what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from own_ports import own_port

from pipeline.sandbox import truth

PROJECT = Path(__file__).parents[2]


def test_the_demo_runs_a_night_and_shows_tables_and_the_lineage_of_one_row(tmp_path: Path) -> None:
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text((PROJECT / "dagster_home" / "dagster.yaml").read_text())
    configuration = (PROJECT / "dagster_home" / "exports.yaml").read_text()
    assert "127.0.0.1:8765" in configuration
    (home / "exports.yaml").write_text(configuration.replace(":8765", f":{own_port()}"))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "EXPORTS_CONFIG")
    }

    def night() -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("fhir-export")), "demo"],
            cwd=tmp_path,
            env={**environment, "COLUMNS": "140"},
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    done = night()
    rows = sum(1 for _ in truth(1, 100, 1, "demo"))
    assert re.search(rf"all\s*│\s*{rows:,}", done.stdout), done.stdout
    words = ("opened export run", "output-000000, line", "sha256", "Dagster run", "make dev")
    for word in (*words, "flat tables are made", "are made and checked"):
        assert word in done.stdout + done.stderr, word
    assert {each.name for each in tmp_path.iterdir()} == {"dagster_home", "lake"}
    assert (tmp_path / "lake").stat().st_mode & 0o077 == 0
    # The next one has a supplement, which is published while the current tables are made.
    second = night()
    for word in ("100 patients, night 2", "are new in the group", "are made and checked"):
        assert word in second.stdout + second.stderr, word
    assert len(list((tmp_path / "lake" / "sandbox" / "exports").iterdir())) == 3
