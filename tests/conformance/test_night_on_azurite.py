"""The whole main job with its lake in Azure storage; killed in the middle of uploads (issue 4, 2)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from azure_storage import ACCOUNT, KEY, Azurite
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from installation import Installation, truth_of
from stalling_proxy import stalling_proxy

from pipeline.sandbox.process import SandboxProcess, start_sandbox

PATIENTS, SEED = 40, 5
TYPES = ("Patient", "Observation", "Encounter")


@contextmanager
def night(
    folder: Path, azurite: Azurite, **sandbox_options: Any
) -> Iterator[tuple[Installation, SandboxProcess]]:
    site = Installation(folder, azurite, azurite.new_container(), [])
    keys = site.new_key("hosp", "ES384")
    options = {"export_seconds": 0.5, "poll_seconds": 0.5, "file_lines": 200, **sandbox_options}
    with start_sandbox(patients=PATIENTS, seed=SEED, night=1, jwks=keys, **options) as sandbox:
        site.sources.append(
            {
                "name": "hosp",
                "fhir_url": sandbox.fhir_url,
                "auth": {"client_id": "nightly", "private_key": "file:keys/hosp.pem", "algorithm": "ES384"},
                "export": {"group": "demo", "types": list(TYPES), "since": "never"},
                "schedule": "0 0 29 2 *",  # never while the test runs
                "flat": ["Patient"],
            }
        )
        site.write()
        yield site, sandbox


def test_two_nights_land_on_azure_storage_with_every_resource_as_the_server_has_it(
    tmp_path: Path, azurite: Azurite
) -> None:
    with night(tmp_path, azurite) as (site, sandbox):
        for number in (1, 2):
            sandbox.control(night=number)
            outcome = site.run("hosp")
            assert outcome["state"] == "published"
            assert site.require_same("hosp", outcome["export_id"], truth_of(SEED, PATIENTS, number, TYPES))
            export_id = outcome["export_id"]
            flat = site.table("hosp", "patient_flat", export_id)
            assert len(flat) == outcome["tables"]["patient"]
            assert site.fact("hosp", export_id, "receipts/0001.json")["tables"]["patient"]["rows"] == len(
                flat
            )
            assert {name.rsplit("/", 1)[-1] for name in site.blobs(f"hosp/exports/{export_id}/")} >= {
                "intent.json",
                "request.json",
                "manifest.json",
                "released.json",
            }
        shown = site.cli("show", f"hosp/{export_id}").stdout
        assert "published" in shown
        lines = site.cli("to-ndjson", "hosp/patient", "--export", export_id).stdout.splitlines()
        assert len(lines) == len(flat)


class Watcher(threading.Thread):
    """A reader that looks all the time: of one export, a table shows nothing or everything."""

    def __init__(self, site: Installation, endpoint: str, whole: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.site, self.whole = site, whole
        self.over = threading.Event()
        self.looks = 0
        self.wrong: list[str] = []
        self.options = {
            "azure_storage_account_name": ACCOUNT,
            "azure_storage_account_key": KEY,
            "azure_storage_endpoint": endpoint,
            "azure_allow_http": "true",
        }

    def rows(self, table: str) -> dict[str, int]:
        """Rows by export, from the Delta log."""
        uri = f"az://{self.site.container}/lake/hosp/tables/{table}"
        try:
            actions = DeltaTable(uri, storage_options=self.options).get_add_actions(flatten=True)
        except TableNotFoundError:
            return {}
        found: dict[str, int] = {}
        for export_id, count in zip(
            actions["partition.export_id"].to_pylist(), actions["num_records"].to_pylist(), strict=True
        ):
            found[export_id] = found.get(export_id, 0) + count
        return found

    def look(self) -> set[str]:
        """The exports that are whole by `_exports`; half ones are noted."""
        complete = set(self.rows("_exports"))
        for table, count in self.whole.items():
            seen = self.rows(table)
            self.wrong += [f"{table} {each}" for each, rows in seen.items() if rows != count]
            self.wrong += [f"{table} lacks {each}" for each in complete - set(seen)]
        self.looks += 1
        return complete

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.look()


KILLED_IN = {
    "a raw file": r"PUT \S+/raw/\S+",
    "a part of a table": r"PUT \S+/tables/observation/export_id\S+",
    "a commit": r"PUT \S+/tables/\S+/_delta_log/\S+",
    "the receipt": r"PUT \S+/receipts/\S+",
}


@pytest.mark.parametrize("upload", KILLED_IN)
def test_killed_in_the_middle_of_an_upload_no_reader_sees_half_an_export_and_it_is_completed(
    tmp_path: Path, azurite: Azurite, upload: str
) -> None:
    """azure-and-aidbox E: an upload that breaks off must not become a blob."""
    parts = urlsplit(azurite.endpoint)
    truth = truth_of(SEED, PATIENTS, 1, TYPES)
    with stalling_proxy(parts.hostname or "", parts.port or 0) as proxy:
        behind = replace(azurite, endpoint=f"http://127.0.0.1:{proxy.port}/{ACCOUNT}")
        with night(tmp_path, behind) as (site, _):
            watcher = Watcher(
                site, azurite.endpoint, {kind.lower(): len(rows) for kind, rows in truth.items()}
            )
            watcher.start()
            proxy.stall(KILLED_IN[upload], after=800)
            run = site.spawn("run", "hosp", "--wait")
            assert proxy.stalled.wait(300), (tmp_path / "processes.log").read_text()[-3000:]
            os.killpg(run.pid, signal.SIGKILL)
            run.wait(30)
            (export_id,) = {name.split("/")[2] for name in site.blobs("hosp/exports/")}
            if upload != "the receipt":
                assert watcher.look() == set()
            assert f"hosp/exports/{export_id}/receipts/0001.json" not in site.blobs("hosp/")
            finish(site, export_id)
            watcher.over.set()
            watcher.join(30)
            assert watcher.look() == {export_id}
            assert watcher.wrong == []
            assert watcher.looks > 5
            assert site.require_same("hosp", export_id, truth)


def finish(site: Installation, export_id: str) -> None:
    """A daemon for as long as the export needs it, as an operator has one running."""
    with site.daemon() as log:
        deadline = time.monotonic() + 600
        while not any(name.endswith("/released.json") for name in site.blobs(f"hosp/exports/{export_id}/")):
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
