"""Microsoft's job that the server cancels: 200, part of the files, an empty `error` (protocol 22)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from ingest_by_hand import EXPORT, ingest
from sandbox_as_caller import ENTRA_JWKS, entra_token

from pipeline.bulkdata.answers import Complete
from pipeline.config import Config
from pipeline.errors import VerificationFailed
from pipeline.exports.connection import Connection, bulk_client
from pipeline.exports.owner import this_process
from pipeline.exports.repair import retry
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.state import Closed
from pipeline.sandbox.process import start_sandbox

AUDIENCE = "https://azurehealthcareapis.com"
LATER = "20260102T020000Z"


class _Token(httpx.Auth):
    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {entra_token(AUDIENCE)}"
        yield request


@contextmanager
def night(lake: Path, run_id: str, export_id: str, port: int = 0, *, cancelled: bool) -> Iterator[Session]:
    """A server that has finished the export, and the run that is to ingest it; all on one port."""
    with start_sandbox(
        stand_in="azure-fhir",
        patients=8,
        export_seconds=0,
        file_lines=20,
        token_keys=ENTRA_JWKS,
        token_audience=AUDIENCE,
        port=port,
        cancelled_by_server=cancelled,
    ) as box:
        entry = {
            "name": "hosp",
            "profile": "azure-fhir",
            "fhir_url": box.fhir_url,
            "auth": {"kind": "none"},
            "export": {"group": "demo", "types": ["Patient", "Encounter", "Condition"]},
            "on_partial": "hold",
            "release": False,
        }
        config = Config.model_validate({"lake": str(lake), "sources": [entry], "folder": lake})
        source = config.source(None)
        session = Session(config, source, this_process(run_id), is_dead=lambda _: True)
        with httpx.Client(auth=_Token()) as http:
            session.__dict__["connection"] = Connection(bulk_client(config, source, http), http.auth)
            request = request_export(session, export_id).request
            assert request is not None
            while not isinstance(session.client.status(request.status_url), Complete):
                pass
            yield session


def test_a_job_that_azure_cancelled_is_told_by_the_export_before_and_held(tmp_path: Path) -> None:
    """No sign in status, headers or `error`: only the numbers of the last whole export tell."""
    with night(tmp_path, "first", EXPORT, cancelled=False) as session:
        whole = ingest(session, EXPORT)
        assert whole.incomplete == ()
        port = urlsplit(session.source.fhir_url).port
    assert port is not None
    with night(tmp_path, "second", LATER, port, cancelled=True) as session:
        with pytest.raises(VerificationFailed, match=f"smaller than the last whole one .{EXPORT}.: ") as held:
            ingest(session, LATER)
        assert "lines" in held.value.cause
        facts = session.ledger.read(LATER)
        assert session.next_step(facts) == Closed("held")
        retry(session, LATER, accept_partial=True)
        taken = ingest(Session(session.config, session.source, this_process("third"), lambda _: True), LATER)
        assert taken.watermark is None
        assert 0 < taken.rows < whole.rows
