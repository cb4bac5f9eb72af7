"""A storage that is busy for a moment in the middle of a large file is asked again, as for a small one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from azure_storage import Azurite
from lake_on_azurite import lake_by_key
from storage_front import lake_behind


@pytest.mark.parametrize(("size", "at"), [(1 << 20, "PUT "), (20 << 20, "blockid=")])
def test_a_file_whose_upload_met_a_busy_storage_lands_whole(
    azurite: Azurite, tmp_path: Path, size: int, at: str
) -> None:
    local = tmp_path / "part"
    local.write_bytes(os.urandom(size))
    container = azurite.new_container()
    with lake_behind(azurite, container, "busy", at) as (lake, front):
        lake.put_file(local, "raw/part")
        assert front.spoiled == 1
    assert lake_by_key(azurite, container).read("raw/part") == local.read_bytes()
