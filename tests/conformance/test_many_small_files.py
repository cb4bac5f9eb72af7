"""An export of thousands of files onto Azure storage: no listing for each of them (issue 4)."""

from __future__ import annotations

from pathlib import Path

from azure_storage import Azurite
from course import export_by_hand, session_of
from installation import Installation

from pipeline.sandbox.process import start_sandbox

FILES = 5000


def test_five_thousand_small_files_land_without_a_listing_per_file(tmp_path: Path, azurite: Azurite) -> None:
    site = Installation(tmp_path, azurite, azurite.new_container(), [])
    with start_sandbox(
        patients=FILES, seed=3, jwks=site.new_key("many"), export_seconds=0.2, poll_seconds=0.2, file_lines=1
    ) as box:
        site.sources.append(
            {
                "name": "many",
                "fhir_url": box.fhir_url,
                "auth": {"client_id": "nightly", "private_key": "file:keys/many.pem"},
                "export": {"group": "demo", "types": ["Patient"]},
                "downloads": {"concurrency": 16},
                "flat": False,
                "current": False,
            }
        )
        site.write()
        before = len(azurite.requests())
        receipt = export_by_hand(session_of(site, "many"), "20260101T020000Z")
    mine = [line for line in azurite.requests()[before:] if site.container in line]
    assert receipt.files >= FILES * 0.9
    assert receipt.rows == receipt.files
    listings = [line for line in mine if "comp=list" in line]
    assert 0 < len(listings) < 100
    assert len(mine) < 400, "small files are packed: far fewer requests than files"
