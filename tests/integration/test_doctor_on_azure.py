"""The doctor at a lake in Azure storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from azure_storage import Azurite
from lake_on_azurite import lake_url
from nightly_site import open_site

from pipeline.exports.doctor import examine_lake

TABLES = "hosp/tables"


def test_a_remote_lake_is_examined_as_a_local_one(
    tmp_path: Path, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELD", azurite.connection_string)
    lake = {
        "lake": lake_url(azurite.new_container()),
        "lake_auth": {"kind": "connection-string", "connection_string": "env:HELD"},
    }
    with open_site(tmp_path, export={"types": ["Patient"]}, config=lake) as site:
        night = site.run_night()
        session = site.session
        assert examine_lake(session) == []
        files = session.lake.sizes(TABLES)
        part = next(name for name in files if name.startswith("patient/export_id="))
        session.lake.remove(f"{TABLES}/{part}")
        session.lake.remove(f"hosp/exports/{night['export_id']}/intent.json")
        checks = {each.check for each in examine_lake(site.session)}
        assert {"parts-missing", "request-without-intent"} <= checks
