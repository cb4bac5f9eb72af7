"""What Dagster pays and touches when it loads the definitions (issue 2, Dagster)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

LIMIT = 0.85
"""Of the CPU time that `import dagster` itself takes: 0.55 s on a quiet machine, where that is 0.77 s. It was
under 0.5 s (issue 2) with a quarter of the assets: current tables, flat forms of them and checks came since.
A share, since a machine that is busy with other things makes CPU time longer, too."""
MOST_TRIES = 6
"""The best try counts."""

WATCH = """
import sys
seen = []
FILES = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove"}
def watch(event, given):
    if event in FILES or event.startswith("socket."):
        seen.append((event, str(given[0]) if event in FILES else str(given[-1])))
sys.addaudithook(watch)
"""

LOAD = """
import json, sys, time
begun = time.process_time()
import dagster
dagster_alone = time.process_time() - begun
begun = time.process_time()
import pipeline.definitions
repository = pipeline.definitions.defs.get_repository_def()
spent = time.process_time() - begun
assets = len(list(repository.asset_graph.get_all_asset_keys()))
json.dump({"share": spent / dagster_alone, "modules": sorted(sys.modules), "seen": globals().get("seen", []),
           "assets": assets, "jobs": list(repository.job_names)}, sys.stdout)
"""

TYPES = [
    *("AllergyIntolerance", "CarePlan", "CareTeam", "Claim", "Condition", "Coverage", "Device"),
    *("DiagnosticReport", "DocumentReference", "Encounter", "ExplanationOfBenefit", "Goal", "Immunization"),
    *("Location", "Medication", "MedicationRequest", "Observation", "Organization", "Patient"),
    *("Practitioner", "PractitionerRole", "Procedure", "RelatedPerson", "ServiceRequest", "Specimen"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three sources of 25 types; no lake, no key, and a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sources = [
        {
            "name": f"hosp_{letter}",
            "fhir_url": f"http://127.0.0.1:{port}/fhir",
            "auth": {"client_id": "nightly", "private_key": "file:keys/missing.pem"},
            "export": {"group": "demo", "types": TYPES},
        }
        for letter in "abc"
    ]
    (tmp_path / "exports.yaml").write_text(
        yaml.safe_dump({"lake": str(tmp_path / "lake"), "sources": sources})
    )
    return tmp_path


def load(home: Path, program: str) -> dict[str, Any]:
    environment = {**os.environ, "EXPORTS_CONFIG": str(home / "exports.yaml"), "DAGSTER_HOME": str(home)}
    # An installation has its bytecode cached; compiling is not what is measured.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_loading_touches_neither_network_nor_lake_nor_keys_and_imports_nothing_heavy(home: Path) -> None:
    found = load(home, WATCH + LOAD)
    flat = len(TYPES) + 2  # one each, and the items of Claim and ExplanationOfBenefit
    assert found["assets"] == 3 * (4 + 2 * (len(TYPES) + flat)), "of exports, and current"
    assert len(found["jobs"]) >= 3 * 3
    opened = [path for event, path in found["seen"] if event == "open"]
    assert str(home / "exports.yaml") in opened, "the hook sees what is opened"
    assert [event for event, _ in found["seen"] if event.startswith("socket.")] == []
    for place in ("lake", "keys"):
        assert [path for _, path in found["seen"] if path.startswith(str(home / place))] == []
        assert not (home / place).exists()
    assert [path for path in opened if path.endswith("definitions.json.gz")] == []
    packages = {module.partition(".")[0] for module in found["modules"]}
    assert packages & {"pyarrow", "deltalake", "adlfs", "fsspec", "httpx", "cryptography", "msgspec"} == set()


def test_loading_three_sources_adds_less_than_importing_dagster_takes(home: Path) -> None:
    shares: list[float] = []
    while not shares or (min(shares) >= LIMIT and len(shares) < MOST_TRIES):
        shares.append(load(home, LOAD)["share"])
    assert min(shares) < LIMIT, shares
