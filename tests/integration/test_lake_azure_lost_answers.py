"""A request whose answer was lost is sent again by the SDK: our own file is recognised, another's is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from azure_storage import Azurite
from lake_on_azurite import lake_by_key
from storage_front import lake_behind

from pipeline.errors import LakeError


@pytest.mark.parametrize(("size", "loses"), [(10, "PUT "), (20 << 20, "comp=blocklist")])
def test_a_put_whose_answer_was_lost_counts_as_ours(
    azurite: Azurite, tmp_path: Path, size: int, loses: str
) -> None:
    local = tmp_path / "part"
    local.write_bytes(os.urandom(size))
    container = azurite.new_container()
    with lake_behind(azurite, container, "answer lost", loses) as (lake, proxy):
        lake.put_file(local, "tables/part")
        assert proxy.spoiled == 1
    assert lake_by_key(azurite, container).read("tables/part") == local.read_bytes()


@pytest.mark.parametrize(("size", "loses"), [(10, "PUT "), (20 << 20, "comp=blocklist")])
def test_another_writers_file_of_the_same_content_is_kept_though_an_answer_was_lost(
    azurite: Azurite, tmp_path: Path, size: int, loses: str
) -> None:
    """The lost answer was a refusal: only the mark of the upload tells, not the content."""
    local = tmp_path / "part"
    local.write_bytes(b"x" * size)
    container = azurite.new_container()
    lake_by_key(azurite, container).put_file(local, "tables/part")
    blob = azurite.container(container).get_blob_client("night/tables/part")
    before = blob.get_blob_properties().etag
    with lake_behind(azurite, container, "answer lost", loses) as (lake, proxy):
        with pytest.raises(LakeError, match="File exists"):
            lake.put_file(local, "tables/part")
        assert proxy.spoiled == 1
    assert blob.get_blob_properties().etag == before


def test_a_fact_and_a_swap_whose_answers_were_lost_count_as_ours(azurite: Azurite) -> None:
    container = azurite.new_container()
    with lake_behind(azurite, container, "answer lost", "PUT ") as (lake, proxy):
        assert lake.put_new("fact.json", b"1")
        assert proxy.spoiled == 1
        found = lake.read_version("fact.json")
        assert found is not None
        proxy.spoiled = 0
        assert lake.replace_if("fact.json", b"2", found.etag)
        assert proxy.spoiled == 1
    assert lake_by_key(azurite, container).read("fact.json") == b"2"
