"""A wrong configuration file is one clear error where Dagster loads the definitions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_wrong_configuration_is_one_error_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "exports.yaml").write_text(
        "lake: lake\nsources:\n  - name: hosp\n    schedul: '0 2 * * *'\n"
        "    fhir_url: https://fhir.example.org\n"
        "    auth: {client_id: me, private_key: 'file:k.pem'}\n    export: {group: '1'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import pipeline.definitions"],
        env={**os.environ, "EXPORTS_CONFIG": str(tmp_path / "exports.yaml")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    message = done.stderr[done.stderr.index("ConfigError:") :]
    assert "sources[hosp].schedul: there is no such key" in message
    assert done.stderr.count("Traceback") == 1, "no chain of causes that hides the reason"
