"""`check` must not be green where each export fails, nor red where they succeed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from azure_storage import ACCOUNT, KEY, Azurite

from pipeline.config import Config
from pipeline.exports.check import Verdict, check_source, first_bad

CAPABILITY = {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": []}


class _Fhir(BaseHTTPRequestHandler):
    """A small FHIR server whose answers can be set; `drips`: /metadata never ends."""

    def do_GET(self) -> None:
        server: Any = self.server
        path = self.path.partition("?")[0].rpartition("/fhir/")[2]
        status, body = server.answers[path.partition("/")[0]]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + 1_000_000 * server.drips))
        self.end_headers()
        self.wfile.write(body)
        while server.drips and not server.over.wait(0.02):
            try:
                self.wfile.write(b" ")
            except OSError:
                return

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def fhir() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Fhir)
    server.drips, server.over = False, threading.Event()
    server.answers = {
        "metadata": (200, json.dumps(CAPABILITY).encode()),
        "Patient": (200, b'{"resourceType": "Bundle"}'),
        "Group": (200, b'{"resourceType": "Group", "id": "g"}'),
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def check(fhir: Any, folder: Path, top: dict[str, Any] | None = None, **source: Any) -> list[Verdict]:
    entry = {
        "name": "hosp_a",
        "fhir_url": f"http://127.0.0.1:{fhir.server_port}/fhir",
        "auth": {"kind": "none"},
        "export": {"group": "g"},
        **source,
    }
    config = Config.model_validate(
        {"lake": str(folder / "lake"), "folder": folder, "sources": [entry], **(top or {})}
    )
    return check_source(config, config.source(None))


def status(verdicts: list[Verdict], name: str) -> str:
    return next(each.status for each in verdicts if each.name == name)


def test_the_small_server_is_in_order(fhir: Any, tmp_path: Path) -> None:
    assert first_bad(check(fhir, tmp_path)) is None


@pytest.mark.parametrize(
    "body", [b"<html>Please sign in</html>", b'{"resourceType": "OperationOutcome"}', b""]
)
def test_an_answer_200_that_is_no_bundle_is_no_read(fhir: Any, tmp_path: Path, body: bytes) -> None:
    fhir.answers["Patient"] = (200, body)
    bad = first_bad(check(fhir, tmp_path))
    assert bad is not None
    assert bad.name == "read"
    assert "no Bundle" in bad.cause


@pytest.mark.parametrize(
    ("profile", "export", "words"),
    [
        ("azure-fhir", {"group": "g", "elements": ["id"]}, "does not take _elements"),
        ("apim-smart", {"level": "system"}, "does not export at level system"),
        ("apim-smart", {"group": "a.b"}, "group ids of the form"),
        ("aidbox", {"group": "g", "type_filters": ["Patient?active=true"]}, "does not take _typeFilter"),
        ("smart", {"group": "g", "types": ["Patients"]}, "not a resource type"),
        ("smart", {"group": "g", "types": ["Observatoin"]}, "not a resource type"),
        ("smart", {"group": "g", "type_filters": ["Patient?_sort=x"]}, "result parameter _sort"),
    ],
)
@pytest.mark.parametrize("metadata", [200, 401])
def test_what_each_kickoff_would_be_refused_for_is_said(
    fhir: Any, tmp_path: Path, profile: str, export: dict[str, Any], words: str, metadata: int
) -> None:
    """The refusal comes before anything is sent, so no server could have told."""
    fhir.answers["metadata"] = (metadata, fhir.answers["metadata"][1])
    bad = first_bad(check(fhir, tmp_path, profile=profile, export=export))
    assert bad is not None
    assert words in bad.cause
    assert bad.advice
    assert bad.exit_code == 2


def test_a_server_that_drips_for_ever_is_given_up(fhir: Any, tmp_path: Path) -> None:
    """Each byte comes well within the timeout of a single read."""
    fhir.drips = True
    begun = time.monotonic()
    bad = first_bad(check(fhir, tmp_path, timeouts={"answer_seconds": 2}))
    assert time.monotonic() - begun < 15
    assert bad is not None
    assert (bad.name, bad.exit_code) == ("capability", 6)
    assert "not ended its answer" in bad.cause or "did not answer in time" in bad.cause


def test_a_lake_that_cannot_be_listed_is_not_in_order_and_keeps_no_probe(
    fhir: Any, tmp_path: Path, azurite: Azurite
) -> None:
    """Runs look for their exports in it: a SAS may allow everything but that."""
    container = azurite.new_container()
    (tmp_path / "sas").write_text(azurite.sas("rwdac"))
    top = {
        "lake": f"abfs://{container}@{ACCOUNT}.dfs.core.windows.net/lake",
        "lake_auth": {"kind": "sas", "sas": "file:sas", "endpoint": azurite.endpoint},
    }
    bad = first_bad(check(fhir, tmp_path, top))
    assert bad is not None
    assert bad.name == "lake"
    assert "listed" in bad.cause
    assert azurite.names(container) == []


def container_sas(container: str, minutes: float) -> str:
    return str(
        generate_container_sas(
            ACCOUNT,
            container,
            account_key=KEY,
            permission=ContainerSasPermissions(read=True, list=True),
            start=datetime.now(UTC) - timedelta(hours=1),
            expiry=datetime.now(UTC) + timedelta(minutes=minutes),
        )
    )


@pytest.mark.parametrize(("minutes", "expected"), [(60, "skipped"), (-1, "bad")])
def test_a_sas_of_the_exports_container_is_not_refused_for_being_of_no_other(
    fhir: Any, tmp_path: Path, azurite: Azurite, minutes: float, expected: str
) -> None:
    (tmp_path / "sas").write_text(container_sas(azurite.new_container("exports"), minutes))
    storage = {"account": ACCOUNT, "kind": "sas", "sas": "file:sas", "endpoint": azurite.endpoint}
    verdicts = check(fhir, tmp_path, profile="azure-fhir-export", downloads={"storage": storage})
    assert status(verdicts, "export storage") == expected
